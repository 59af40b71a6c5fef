"""Sweeps that are killed, resumed, misdirected, and spread over devices and processes."""

import dataclasses
import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import optax_decoupled as od
from optax_decoupled import _sweep_store, sweep

ROOT = Path(__file__).resolve().parent.parent
TARGET = jnp.arange(4.0)
TASK = sweep.Task(
    init=lambda key: (jax.random.normal(key, (4,)), ()),
    loss=lambda params, state, batch, key: (jnp.sum(batch * (params - TARGET) ** 2), state),
    batches=lambda seed: np.random.default_rng(seed).random((10, 4), np.float32),
    evaluate=lambda params, state: {"error": jnp.sum((params - TARGET) ** 2)},
    steps=10,
)
GRID = {"learning_rates": [0.01, 0.1, 1e20], "weight_decays": [1e-3, 1e-2], "seeds": [0, 1]}


def _sgdw(learning_rate, weight_decay):
    return od.sgdw(learning_rate, weight_decay)


def _run(task=TASK, make_optimizer=_sgdw, **changes):
    return sweep.run(task, make_optimizer, **{"progress": False, **GRID, **changes})


def _files(directory):
    return {
        path.name: (path.read_text(), path.stat().st_mtime_ns)
        for path in Path(directory).glob("cell-*")
    }


def _assert_same(a, b):
    np.testing.assert_array_equal(a.metrics["error"], b.metrics["error"])
    np.testing.assert_array_equal(a.diverged, b.diverged)


class _StopError(Exception):
    pass


def _stop_after(cells):
    def progress(done, total):
        if done >= cells:
            raise _StopError

    return progress


@pytest.mark.parametrize("vectorize", [None, 4])
def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_numbers(tmp_path, vectorize):
    trained = []

    def batches(seed):
        trained.append(seed)
        return TASK.batches(seed)

    task = dataclasses.replace(TASK, batches=batches)
    with pytest.raises(_StopError):
        _run(task, directory=tmp_path, vectorize=vectorize, progress=_stop_after(4))
    kept = _files(tmp_path)
    assert len(kept) >= 4
    trained.clear()
    result = _run(task, directory=tmp_path, vectorize=vectorize)
    probes = 2 + len(GRID["seeds"])  # for the first batch, twice, and for the fingerprint
    assert len(trained) - probes <= 12 - len(kept)
    assert kept.items() <= _files(tmp_path).items()
    _assert_same(result, _run(vectorize=vectorize))
    trained.clear()
    _assert_same(_run(task, directory=tmp_path, vectorize=vectorize), result)
    assert len(trained) == probes  # nothing was left to train


def test_diverged_cells_are_kept_with_their_step(tmp_path):
    first = _run(directory=tmp_path)
    assert (first.diverged[2] > 0).all()
    assert np.isnan(first.metrics["error"][2]).all()
    _assert_same(_run(directory=tmp_path), first)


def test_progress_counts_kept_cells(tmp_path):
    with pytest.raises(_StopError):
        _run(directory=tmp_path, progress=_stop_after(5))
    kept = len(_files(tmp_path))
    calls = []
    _run(directory=tmp_path, progress=lambda done, total: calls.append(done))
    assert calls == list(range(kept + 1, 13))


OTHER_TARGET = dataclasses.replace(
    TASK,
    loss=lambda params, state, batch, key: (jnp.sum(batch * (params - 2 * TARGET) ** 2), state),
)
OTHER_DATA = dataclasses.replace(TASK, batches=lambda seed: np.ones((10, 4), np.float32))
OTHER_LAST_BATCH = dataclasses.replace(
    TASK, batches=lambda seed: [*list(TASK.batches(seed))[:9], np.ones(4, np.float32)]
)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rates": [0.01, 0.1]}, "learning_rates"),
        ({"weight_decays": [1e-3, 2e-2]}, "weight_decays"),
        ({"seeds": [0, 2]}, "seeds, task"),  # other seeds have other batches
        ({"task": dataclasses.replace(TASK, steps=9)}, "steps, task"),
        ({"task": OTHER_TARGET}, "task"),
        ({"task": OTHER_DATA}, "task"),
        ({"task": OTHER_LAST_BATCH}, "task"),
        ({"make_optimizer": lambda a, b: od.sgdw(a, b, momentum=0.5)}, "task"),
        ({"make_optimizer": lambda a, b: od.sgdw(b, a)}, "task"),
    ],
)
def test_a_directory_of_another_sweep_is_refused_and_untouched(tmp_path, changes, difference):
    _run(directory=tmp_path)
    kept = _files(tmp_path)
    with pytest.raises(ValueError, match=f"holds another sweep: it differs in {difference}\\."):
        _run(directory=tmp_path, **changes)
    assert _files(tmp_path) == kept
    _run(directory=tmp_path)  # and still usable


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_data_that_the_task_holds_are_part_of_its_fingerprint(tmp_path, wrap):
    def make(target):
        loss = lambda params, state, batch, key: (jnp.sum(batch * (params - target) ** 2), state)
        return dataclasses.replace(TASK, loss=wrap(loss))

    _run(make(jnp.arange(4.0)), directory=tmp_path)
    _run(make(jnp.arange(4.0)), directory=tmp_path)
    with pytest.raises(ValueError, match="it differs in task"):
        _run(make(jnp.array([0.0, 1.0, 2.0, 3.5])), directory=tmp_path)


def test_other_versions_are_refused(tmp_path, monkeypatch):
    _run(directory=tmp_path)
    monkeypatch.setattr(sweep, "versions", lambda: {"jax": "0.0"})
    with pytest.raises(ValueError, match="it differs in versions"):
        _run(directory=tmp_path)


def _must_not_train(seed):
    raise AssertionError("trained")


@pytest.fixture
def untrained(monkeypatch):
    """A sweep in which training is a failure of the test."""
    monkeypatch.setattr(sweep, "make_trainer", _must_not_train)


@pytest.mark.usefixtures("untrained")
def test_a_directory_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        _run(directory=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.usefixtures("untrained")
def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"No space left on device\. Nothing was trained") as caught:
        _run(directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untrained")
def test_an_unwritable_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep the sweep: .*Nothing was trained"):
        _run(directory=tmp_path / "file" / "below")

    def refuse(*arguments, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(_sweep_store, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"Permission denied\. Nothing was trained"):
        _run(directory=tmp_path / "new")


def test_a_disk_that_fills_up_loses_no_kept_cell(tmp_path, monkeypatch):
    replace, moved = os.replace, []

    def fail(source, target):
        moved.append(target)
        if len(moved) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            _run(directory=tmp_path)
    kept = _files(tmp_path)
    assert len(kept) == 5  # and the manifest
    _assert_same(_run(directory=tmp_path), _run())
    assert kept.items() <= _files(tmp_path).items()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cell-0001-0001-0001.json", "{"),
        ("cell-0001-0001-0001.json", "[]"),
        ("cell-0001-0001-0001.json", '{"metrics": {"error": "x"}, "diverged": -1}'),
        ("cell-0001-0001-0001.json", '{"metrics": {}, "diverged": -1}'),
        ("cell-0009-0001-0001.json", '{"metrics": {"error": 1.0}, "diverged": -1}'),
        ("manifest.json", "{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    _run(directory=tmp_path)
    damaged = tmp_path / name
    damaged.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} is damaged: .*Delete"):
        _run(directory=tmp_path)
    damaged.unlink()
    for path in list(tmp_path.iterdir()) if name == "manifest.json" else ():
        path.unlink()
    _assert_same(_run(directory=tmp_path), _run())


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("vectorize", [None, 16])
def test_cells_on_eight_devices_give_the_numbers_of_one(axis_type, vectorize):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    sharded = _run(mesh=mesh, vectorize=vectorize, weight_decays=np.geomspace(1e-4, 1e-2, 7))
    single = _run(weight_decays=np.geomspace(1e-4, 1e-2, 7))
    np.testing.assert_array_equal(sharded.diverged, single.diverged)
    np.testing.assert_allclose(sharded.metrics["error"], single.metrics["error"], rtol=1e-6)
    if vectorize is None:  # a cell per device: the very same program
        _assert_same(sharded, single)


def test_what_is_no_mesh_is_refused():
    with pytest.raises(TypeError, match=r"mesh=\[.*must be a jax.sharding.Mesh"):
        _run(mesh=jax.devices())


def test_fewer_cells_at_a_time_where_memory_is_short(monkeypatch):
    make_trainer, widths = sweep.make_trainer, []

    def scarce(cell, width, mesh):
        trainer = make_trainer(cell, width, mesh)
        widths.append(width)

        def exhausted(group):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

        if width > 2:
            object.__setattr__(trainer, "train", exhausted)
        return trainer

    monkeypatch.setattr(sweep, "make_trainer", scarce)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    result = _run()
    assert widths == [6, 3, 1]
    monkeypatch.undo()
    _assert_same(result, _run())


# What the processes of the slow tests run: cells of about 40 ms.
KILLED = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import optax_decoupled as od
from optax_decoupled import sweep

def batches(seed):
    time.sleep(0.04)
    return np.random.default_rng(seed).random((30, 8), np.float32)

task = sweep.Task(
    init=lambda key: (jax.random.normal(key, (8, 8)), ()),
    loss=lambda params, state, batch, key: (jnp.sum((batch @ params - 1) ** 2), state),
    batches=batches,
    evaluate=lambda params, state: {"error": jnp.sum((params - 1) ** 2), "max": jnp.max(params)},
    steps=30,
)
landscape = sweep.run(
    task, od.adamw, learning_rates=[0.001 * 2.0**k for k in range(10)],
    weight_decays=[2.0**k for k in range(-15, 0)], seeds=range(4),
    directory=sys.argv[1] if len(sys.argv) > 2 else None, progress=False,
)
landscape.save(sys.argv[-1])
"""


def _environment(**changes):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}


def _kill_during_training(command, directory, rng):
    """Kills a process at a random moment, mostly after it has kept its first new cell."""

    def kept():
        return len(list(directory.glob("cell-*")))

    before = kept()
    process = subprocess.Popen(command, env=_environment(PYTHONHASHSEED=str(rng.randrange(1000))))
    patience = rng.uniform(0, 0.3)
    while process.poll() is None and patience > 0:
        time.sleep(0.005)
        if kept() > before or rng.random() < 0.0005:
            patience -= 0.005
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.slow
def test_twenty_kills_lose_and_repeat_nothing(tmp_path):
    rng = random.Random(0)
    directory, saved = tmp_path / "cells", tmp_path / "killed.npz"
    command = [sys.executable, "-c", KILLED, str(directory), str(saved)]
    files, kills = {}, 0
    for _ in range(20):
        before = files
        code = _kill_during_training(command, directory, rng)
        kills += code == -signal.SIGKILL
        files = _files(directory)
        assert before.items() <= files.items()
    assert kills == 20
    assert 20 < len(files) < 600
    subprocess.run(command, check=True, env=_environment())
    assert files.items() <= _files(directory).items()
    assert len(_files(directory)) == 600
    assert not list(directory.glob("*.partial"))
    whole = tmp_path / "whole.npz"
    subprocess.run([sys.executable, "-c", KILLED, str(whole)], check=True, env=_environment())
    a, b = sweep.Landscape.load(saved), sweep.Landscape.load(whole)
    for name in ("error", "max"):
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name])


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_refused(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        (tmp_path / "ballast").write_bytes(bytes(60_000))
        with pytest.raises(OSError, match=r"No space left on device\. Nothing was trained"):
            _run(directory=tmp_path / "sweep")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    script = str(ROOT / "examples" / "landscape_cluster.py")
    environment = _environment(JAX_NUM_CPU_DEVICES="2", JAX_PLATFORMS="cpu")

    def launch(directory, saved):
        coordinator = ["--coordinator", f"localhost:{_free_port()}", "--processes", "2"]
        command = [sys.executable, script, *coordinator]
        outputs = ["--directory", str(directory), "--save", str(saved)]
        processes = [
            subprocess.Popen(
                [*command, "--process", str(n), *outputs],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for n in range(2)
        ]
        return [(p.communicate(timeout=300)[0], p.returncode) for p in processes]

    alone = tmp_path / "alone.npz"
    single = _environment(JAX_NUM_CPU_DEVICES="1", JAX_PLATFORMS="cpu")
    subprocess.run([sys.executable, script, "--save", str(alone)], check=True, env=single)
    done = launch(tmp_path / "cells", tmp_path / "two.npz")
    assert [code for _, code in done] == [0, 0], done
    assert "4 devices of 2 processes" in done[0][0]
    _assert_same(sweep.Landscape.load(tmp_path / "two.npz"), sweep.Landscape.load(alone))
    kept = _files(tmp_path / "cells")
    assert len(kept) == 165
    for name in list(kept)[::3]:  # as if it had been killed
        (tmp_path / "cells" / name).unlink()
    done = launch(tmp_path / "cells", tmp_path / "again.npz")
    assert [code for _, code in done] == [0, 0], done
    _assert_same(sweep.Landscape.load(tmp_path / "again.npz"), sweep.Landscape.load(alone))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").write_text("")
    done = launch(tmp_path / "foreign", tmp_path / "none.npz")
    assert all(code != 0 and "holds no sweep" in output for output, code in done), done


def test_the_same_sweep_works_with_any_optax_optimizer(tmp_path):
    def lion(learning_rate, weight_decay):
        return od.decouple(optax.lion(learning_rate, weight_decay=0.0), weight_decay)

    result = _run(make_optimizer=lion, directory=tmp_path, learning_rates=[0.01, 0.1])
    assert np.isfinite(result.metrics["error"]).all()
