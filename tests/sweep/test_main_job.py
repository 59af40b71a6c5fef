"""`make run` trains the paper's figure and draws it."""

import subprocess
import sys

import pytest
from sweep_cases import ROOT


@pytest.mark.slow
def test_the_main_job_runs(tmp_path):
    script = ROOT / "benchmarks" / "figure2_digits.py"
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "The paper's Figure 2 with batch norm" in done.stdout
    assert (tmp_path / "figure2_digits_quick.png").stat().st_size > 10_000
    assert (tmp_path / "figure2_digits_quick.json").exists()
