"""Two real JAX processes that talk over loopback take the steps of one."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _start(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.study.distributed", *arguments]
    return subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_two_processes_over_loopback(tmp_path):
    single = _finish(_start(tmp_path / "one.json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process")
    processes = [_start(tmp_path / "two.json", *arguments, str(i)) for i in range(2)]
    outputs = [_finish(process) for process in processes]
    assert "1 processes" in single
    assert "2 processes, 2 devices" in outputs[0]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    losses = one["losses"]
    np.testing.assert_allclose(two["losses"], losses, rtol=1e-4)
    assert losses[-1] < 0.3 * losses[0]
    assert one["rms"].keys() == two["rms"].keys() != set()
    for path, rms in one["rms"].items():  # what the recorder saw
        np.testing.assert_allclose(two["rms"][path], rms, rtol=1e-4, atol=1e-6)
    assert np.ptp(one["rms"]["head/kernel"]) > 0.01
