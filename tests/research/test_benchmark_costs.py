"""The scripts that measure costs run, small."""

import pytest

from benchmarks.lib.harness import in_new_process


@pytest.mark.slow
def test_explain_speed():
    case = ("--quick", "--case", "adamw, decay_mask")
    assert in_new_process("benchmarks.cost.explain_speed", *case)["leaves"] == 43
