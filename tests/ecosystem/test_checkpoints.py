"""Orbax checkpoints of an AdamWR run: resumed in a fresh process, and killed while saving."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

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
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
def test_killed_while_saving_the_previous_checkpoint_restores(tmp_path, delay):
    process = _start(tmp_path / "run", 0, 40, tmp_path / "never.npz")
    assert process.stdout is not None
    for line in process.stdout:
        if line == "saving 20\n":
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    latest = _latest(tmp_path / "run")
    assert latest in (10, 20)
    _run(tmp_path / "run", latest, 40, tmp_path / "resumed.npz")
    _run(tmp_path / "whole", 0, 40, tmp_path / "whole.npz")
    resumed, whole = (_final(tmp_path / f"{x}.npz") for x in ("resumed", "whole"))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)
