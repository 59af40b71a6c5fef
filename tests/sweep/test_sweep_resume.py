"""A sweep that was interrupted goes on, and reads no file that it did not write."""

import dataclasses
import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sweep_cases import GRID, TASK, assert_same, environment, files, run

from optax_decoupled import sweep


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
        run(task, directory=tmp_path, vectorize=vectorize, progress=_stop_after(4))
    kept = files(tmp_path)
    assert len(kept) >= 4
    trained.clear()
    result = run(task, directory=tmp_path, vectorize=vectorize)
    probes = 2 + len(GRID["seeds"])  # for the first batch, twice, and for the fingerprint
    assert len(trained) - probes <= 12 - len(kept)
    assert kept.items() <= files(tmp_path).items()
    assert_same(result, run(vectorize=vectorize))
    trained.clear()
    assert_same(run(task, directory=tmp_path, vectorize=vectorize), result)
    assert len(trained) == probes  # nothing was left to train


def test_diverged_cells_are_kept_with_their_step(tmp_path):
    first = run(directory=tmp_path)
    assert (first.diverged[2] > 0).all()
    assert np.isnan(first.metrics["error"][2]).all()
    record = json.loads((tmp_path / "cell-0002-0001-0001.json").read_text())
    assert record["metrics"] == {"error": None}  # NaN is not valid JSON
    assert_same(run(directory=tmp_path), first)


def test_progress_counts_kept_cells(tmp_path):
    with pytest.raises(_StopError):
        run(directory=tmp_path, progress=_stop_after(5))
    kept = len(files(tmp_path))
    calls = []
    run(directory=tmp_path, progress=lambda done, total: calls.append(done))
    assert calls == list(range(kept + 1, 13))


CELL = "cell-0001-0001-0001.json"
FOREIGN = "is damaged or was not written by this sweep"


@pytest.mark.parametrize("name", [CELL, "manifest.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 10**5, "1" * 10**5, "\0", "\ufeff{}"])
def test_a_damaged_file_is_refused(tmp_path, name, content):
    run(directory=tmp_path)
    damaged = tmp_path / name
    damaged.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)} {FOREIGN}: .* [dD]elete"):
        run(directory=tmp_path)
    damaged.unlink()
    for path in list(tmp_path.iterdir()) if name == "manifest.json" else ():
        path.unlink()
    assert_same(run(directory=tmp_path), run())


def test_a_file_that_is_not_text_is_refused(tmp_path):
    run(directory=tmp_path)
    (tmp_path / CELL).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"{CELL} {FOREIGN}: .*Delete it"):
        run(directory=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"accuracy": 0.5}},
        {"metrics": {"error": 0.5, "accuracy": 0.5}},
        {"metrics": {}},
        {"metrics": {"error": 0.5}},
        {"metrics": {"error": float("inf")}},
        {"metrics": {"error": None}},
        {"metrics": {"error": 10**400}},
        {"metrics": {"error": "0.5"}},
        {"metrics": [0.5]},
        {"diverged": 99},
        {"diverged": 3},
        {"diverged": True},
        {"sha256": None},
        {"seed": True},
        {"note": "edited"},
    ],
)
def test_a_cell_that_was_edited_is_refused(tmp_path, changes):
    run(directory=tmp_path)
    path = tmp_path / CELL
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    message = f"{CELL} {FOREIGN}: its content does not fit its checksum. Delete it, and its cell"
    with pytest.raises(ValueError, match=message):
        run(directory=tmp_path)


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "seed", "task", "metrics"])
def test_a_cell_without_an_entry_is_refused(tmp_path, field):
    run(directory=tmp_path)
    record = json.loads((tmp_path / CELL).read_text())
    del record[field]
    (tmp_path / CELL).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{CELL} {FOREIGN}: .*Delete it"):
        run(directory=tmp_path)


@pytest.mark.parametrize(
    ("other", "field"),
    [("0000-0001-0001", "learning_rate"), ("0001-0000-0001", "weight_decay"),
     ("0001-0001-0000", "seed")],
)  # fmt: skip
def test_a_copy_of_another_cell_is_refused(tmp_path, other, field):
    run(directory=tmp_path)
    (tmp_path / CELL).write_text((tmp_path / f"cell-{other}.json").read_text())
    message = f"{CELL} {FOREIGN}: its content differs in {field}, so it was .*copied. Delete"
    with pytest.raises(ValueError, match=message):
        run(directory=tmp_path)


@pytest.mark.parametrize("name", ["cell-1-1-1.json", "cell-0009-0001-0001.json", f"{CELL}.bak"])
def test_a_cell_outside_of_the_grid_is_refused(tmp_path, name):
    run(directory=tmp_path)
    (tmp_path / CELL).rename(tmp_path / name)
    message = rf"{name} {FOREIGN}: a grid of \(3, 2, 2\) has no such cell. Delete it"
    with pytest.raises(ValueError, match=message):
        run(directory=tmp_path)


def test_a_cell_of_another_sweep_of_the_same_grid_is_refused(tmp_path):
    run(directory=tmp_path / "a")
    run(dataclasses.replace(TASK, steps=9), directory=tmp_path / "b")
    (tmp_path / "a" / CELL).write_text((tmp_path / "b" / CELL).read_text())
    with pytest.raises(ValueError, match=r"differs in task, so it was renamed or copied"):
        run(directory=tmp_path / "a")


# The program of the slow test. Its cells take about 40 ms.
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


def _kill_during_training(command, directory, rng):
    """Kills a process at a random moment, mostly after it kept its first new cell."""

    def kept():
        return len(list(directory.glob("cell-*")))

    before = kept()
    process = subprocess.Popen(command, env=environment(PYTHONHASHSEED=str(rng.randrange(1000))))
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
    kept, kills = {}, 0
    for _ in range(20):
        before = kept
        code = _kill_during_training(command, directory, rng)
        kills += code == -signal.SIGKILL
        kept = files(directory)
        assert before.items() <= kept.items()
    assert kills == 20
    assert 20 < len(kept) < 600
    subprocess.run(command, check=True, env=environment())
    assert kept.items() <= files(directory).items()
    assert len(files(directory)) == 600
    assert not list(directory.glob("*.partial"))
    whole = tmp_path / "whole.npz"
    subprocess.run([sys.executable, "-c", KILLED, str(whole)], check=True, env=environment())
    a, b = sweep.Landscape.load(saved), sweep.Landscape.load(whole)
    for name in ("error", "max"):
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name])
