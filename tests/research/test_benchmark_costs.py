"""The scripts that measure costs run, small."""

import json
import subprocess
import sys

import pytest

from benchmarks.lib.harness import ROOT, in_new_process


@pytest.mark.slow
def test_explain_speed():
    case = ("--quick", "--case", "adamw, decay_mask")
    assert in_new_process("benchmarks.cost.explain_speed", *case)["leaves"] == 43


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_fused_outputs(tmp_path):
    """With the flag XLA moves fewer numbers for every optimizer, and computes the same bits."""
    module = "benchmarks.cost.fused_outputs"
    command = [sys.executable, "-m", module, "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    record = json.loads((tmp_path / "fused_outputs.json").read_text())
    for tree in record["trees"].values():
        assert all(tree["same_bits"].values())
        for name, x in tree["default"].items():
            fused = tree["fused outputs"][name]["bytes_accessed"]
            assert 4 * 8.9 < fused < 4 * 9.2 < 4 * 9.9 < x["bytes_accessed"] < 4 * 10.2
