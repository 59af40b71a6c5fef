"""Arrays that are spread over processes are sampled where they are."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_parameters_of_two_processes_are_explained_by_each():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    script = str(Path(__file__).with_name("spread_over_processes.py"))
    processes = [
        subprocess.Popen(
            [sys.executable, script, coordinator, str(i)], stdout=-1, stderr=-2, text=True
        )
        for i in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert output.endswith("explained\n"), output
