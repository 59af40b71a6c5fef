"""Progress, public names, missing extras, and messages at Ctrl-C."""

import contextlib
import dataclasses
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from sweep_cases import ROOT, TASK, assert_same, environment, files, run
from terminals import terminal

import optax_decoupled as od
from optax_decoupled import sweep


def test_progress_counts_every_cell():
    calls = []
    run(progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 12) for n in range(1, 13)]


def test_progress_bar_is_drawn_in_a_terminal(monkeypatch):
    with terminal() as (stderr, read):
        monkeypatch.setattr(sys, "stderr", stderr)
        run(learning_rates=[0.1], progress=True)
    assert "4/4" in read()


def test_no_progress_bar_is_drawn_in_a_pipe(capsys):
    run(learning_rates=[0.1], progress=True)
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("extra", ["rich.progress", "matplotlib.pyplot"])
def test_a_missing_extra_names_the_installation(monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    one = np.ones(1)
    landscape = sweep.Landscape(one, one, one, {"error": np.ones((1, 1, 1))})
    with pytest.raises(ImportError, match=r'pip install "optax-decoupled\[sweep\]"'):
        run(progress=True) if "rich" in extra else landscape.plot()


_LAZY = """
import sys, optax_decoupled as od
lazy = {'matplotlib', 'rich', 'optax_decoupled.sweep', 'jax.experimental.multihost_utils'}
lazy.add('jax.extend')
assert not lazy & set(sys.modules), lazy & set(sys.modules)
assert 'sweep' in dir(od)
od.sweep.Task
assert not {'matplotlib', 'rich'} & set(sys.modules)
from optax_decoupled import sweep
assert sweep is od.sweep
"""


def test_the_sweep_is_imported_when_it_is_first_used():
    done = subprocess.run([sys.executable, "-c", _LAZY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_completion_lists_public_names_only():
    records = ["Advantage", "Basin", "Best", "Estimate", "Landscape", "SequentialCost", "Shear"]
    functions = ["advantage", "basin", "run", "shear", "tuning_cost"]
    assert dir(sweep) == [*records, "Task", "TuningCost", "ValleySlope", *functions]
    assert not [name for name in dir(od) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="has no attribute 'adamv'"):
        od.adamv  # noqa: B018


# Cells of about 0.1 s, two thousand of them.
_LONG = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
import numpy as np, jax.numpy as jnp
import optax_decoupled as od

def batches(seed):
    time.sleep(0.1)
    return np.ones((5, 3), np.float32)

task = od.sweep.Task(
    init=lambda key: (jnp.ones(3), ()),
    loss=lambda params, state, batch, key: (jnp.sum((params - 2 * batch) ** 2), state),
    batches=batches,
    evaluate=lambda params, state: {"error": jnp.sum(params)},
    steps=5,
)
done = lambda done, total: print(done, flush=True)
grid = {"learning_rates": np.arange(1, 41) / 400, "weight_decays": np.arange(1, 51) / 1e5}
od.sweep.run(task, od.adamw, **grid, seeds=[0], directory=sys.argv[1] or None, progress=done)
"""


def _interrupted(*arguments, cells):
    """The last line of output of a sweep that is interrupted after `cells` cells."""
    command = [sys.executable, "-c", _LONG, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        assert process.stdout is not None
        for _ in range(cells):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Exception in thread" not in errors
    assert len(errors.splitlines()) < 40
    return errors.splitlines()[-1]


@pytest.mark.parametrize("cells", [1, 5])  # while the threads start, and later
def test_an_interrupt_counts_the_kept_cells(tmp_path, cells):
    last = _interrupted(str(tmp_path), cells=cells)
    kept = len(files(tmp_path))
    assert cells <= kept < 2000
    assert last == (
        f"KeyboardInterrupt: stopped; {kept} of 2000 cells are kept in {str(tmp_path)!r}. Run the "
        "same sweep again to go on."
    )


def test_an_interrupt_without_a_directory_suggests_one():
    last = _interrupted("", cells=2)
    assert re.fullmatch(
        r"KeyboardInterrupt: stopped after \d+ of 2000 cells; none is kept\. Pass directory= to "
        r"keep them and to go on later\.",
        last,
    )


@pytest.mark.parametrize("call", range(1, 6))
def test_an_interrupt_before_the_first_cell_is_explained(tmp_path, call):
    """The calls of `batches`: two for checks, two for the fingerprint, and one for training."""
    run(directory=tmp_path)
    kept = files(tmp_path)
    for name in list(kept)[4:]:
        (tmp_path / name).unlink()
    calls = []

    def batches(seed):
        calls.append(seed)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return TASK.batches(seed)

    message = f"stopped; 4 of 12 cells are kept in '{tmp_path}'. Run the same sweep again to go on."
    if call < 5:
        message = f"stopped before training; '{tmp_path}' keeps its cells. Run the same sweep again"
    with default_interrupts(), pytest.raises(KeyboardInterrupt, match=re.escape(message)):
        run(dataclasses.replace(TASK, batches=batches), directory=tmp_path)
    assert len(files(tmp_path)) == 4
    assert_same(run(directory=tmp_path), run())


@pytest.mark.parametrize("traced", ["init", "loss", "evaluate"])
def test_an_interrupt_while_a_task_is_traced_is_explained(traced):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)

    task = dataclasses.replace(TASK, **{traced: interrupted})
    with default_interrupts(), pytest.raises(KeyboardInterrupt, match="stopped after 0 of 12"):
        run(task)


@contextlib.contextmanager
def default_interrupts():
    """Python's handling of interrupts, which must be there again at the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


class _InterruptsWhenDeleted:
    """Raises an interrupt in `__del__`, where Python drops exceptions."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_stops_the_sweep(monkeypatch):
    dropped, done = [], []

    def progress(cells, total):
        done.append(cells)
        if cells == 3:
            _InterruptsWhenDeleted()

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: dropped.append(lost.exc_type))
    with default_interrupts(), pytest.raises(KeyboardInterrupt, match="after 3 of 12 cells"):
        run(progress=progress)
    assert dropped == [KeyboardInterrupt]
    assert done == [1, 2, 3]
