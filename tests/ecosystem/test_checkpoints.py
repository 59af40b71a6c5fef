"""Orbax checkpoints: of an AdamWR run, resumed in a fresh process and killed while saving; of runs
that are pulled to where they started.
"""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_decoupled as od

PROGRAM = pathlib.Path(__file__).with_name("checkpointed_run.py")


def _start(directory, first, last, out):
    command = [sys.executable, str(PROGRAM), str(directory), str(first), str(last), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(*arguments):
    process = _start(*arguments)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return output


def _final(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _latest(directory):
    with ocp.CheckpointManager(directory) as manager:
        return manager.latest_step()


@pytest.mark.slow
def test_a_run_resumed_in_a_fresh_process_is_bit_equal(tmp_path):
    """30 steps at once, or 20 in one process (within the second cycle) and 10 in another."""
    _run(tmp_path / "whole", 0, 30, tmp_path / "whole.npz")
    _run(tmp_path / "parts", 0, 20, tmp_path / "middle.npz")
    _run(tmp_path / "parts", 20, 30, tmp_path / "parts.npz")
    whole, parts, middle = (_final(tmp_path / f"{x}.npz") for x in ("whole", "parts", "middle"))
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)
        assert not np.array_equal(middle[name], value)


@pytest.mark.slow
def test_killed_while_saving_the_previous_checkpoint_restores(tmp_path):
    _run(tmp_path / "whole", 0, 40, tmp_path / "whole.npz")
    whole = _final(tmp_path / "whole.npz")
    for delay in (0.0, 0.02, 0.1):
        run, end = tmp_path / f"run {delay}", tmp_path / f"resumed {delay}.npz"
        _killed_while_saving(run, delay)
        latest = _latest(run)
        assert latest in (10, 20), f"killed after {delay} s"
        _run(run, latest, 40, end)
        resumed = _final(end)
        for name, value in whole.items():
            np.testing.assert_array_equal(resumed[name], value, f"killed after {delay} s")


def _killed_while_saving(directory, delay):
    """Starts a run, and kills it `delay` seconds after it began to save step 20."""
    process = _start(directory, 0, 40, directory.with_name("never.npz"))
    assert process.stdout is not None
    for line in process.stdout:
        if line == "saving 20\n":
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


PULLED = {
    "the start": lambda: od.adamw(0.01, 0.005, toward=od.toward_init()),
    "its rms": lambda: od.adamw(0.01, 0.005, toward=od.toward_rms()),
    "a sphere": lambda: od.hyperball(optax.scale_by_adam(), 0.01),
}


@pytest.mark.parametrize("name", PULLED)
def test_what_weights_are_pulled_to_is_restored(name, tmp_path):
    """Bit-equal to the run that went on; without what is kept the run goes elsewhere."""
    tx = PULLED[name]()

    @jax.jit
    def step(run, t):
        grads = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), (8, 4))
        updates, state = tx.update({"kernel": grads}, run["opt_state"], run["params"])
        return {"params": optax.apply_updates(run["params"], updates), "opt_state": state}

    def trained(run, first, last):
        for t in range(first, last):
            run = step(run, t)
        return run

    def begin(params):
        return {"params": params, "opt_state": tx.init(params)}

    start = {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}
    middle = trained(begin(start), 0, 20)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "middle", middle)
        checkpointer.wait_until_finished()
        elsewhere = begin({"kernel": jnp.full((8, 4), 7.0)})  # nothing of it may survive
        restored = checkpointer.restore(tmp_path / "middle", elsewhere)
    whole, resumed = (trained(run, 20, 40)["params"]["kernel"] for run in (middle, restored))
    np.testing.assert_array_equal(resumed, whole)

    kept = "radius" if name == "a sphere" else "reference"
    lost = {kept: optax.tree.get(elsewhere["opt_state"], kept)}
    other = trained(middle | {"opt_state": optax.tree.set(middle["opt_state"], **lost)}, 20, 40)
    assert np.abs(other["params"]["kernel"] - whole).max() > 0.1
