"""What a sweep shows: progress, public names, what is missing, and what is kept at Ctrl-C."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from sweep_cases import ROOT, environment, files, run

import optax_decoupled as od
from optax_decoupled import sweep


def test_progress_counts_every_cell():
    calls = []
    run(progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 12) for n in range(1, 13)]


def test_progress_bar_is_drawn(capsys):
    run(learning_rates=[0.1], progress=True)
    assert "4/4" in capsys.readouterr().out


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
    """The last line of a sweep that is interrupted after so many cells."""
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
def test_an_interrupt_says_what_is_kept(tmp_path, cells):
    last = _interrupted(str(tmp_path), cells=cells)
    kept = len(files(tmp_path))
    assert cells <= kept < 2000
    assert last == (
        f"KeyboardInterrupt: stopped; {kept} of 2000 cells are kept in {str(tmp_path)!r}. Run the "
        "same sweep again to go on."
    )


def test_an_interrupt_without_a_directory_says_that_nothing_is_kept():
    last = _interrupted("", cells=2)
    assert re.fullmatch(
        r"KeyboardInterrupt: stopped after \d+ of 2000 cells; none is kept\. Pass directory= to "
        r"keep them and to go on later\.",
        last,
    )


class _Loses:
    """Lets an interrupt come where Python drops what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_is_heard_at_the_next_cell(monkeypatch):
    dropped, done = [], []

    def progress(cells, total):
        done.append(cells)
        if cells == 3:
            _Loses()

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: dropped.append(lost.exc_type))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped after 3 of 12 cells"):
            run(progress=progress)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert dropped == [KeyboardInterrupt]
    assert done == [1, 2, 3]
