"""Every example runs, in a process of its own, as a reader would run it."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.py"))
SLOW = {"bfloat16", "transformer_lm", "watch_language_model"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
        for path in EXAMPLES
    ],
)
def test_runs(path):
    result = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert len(path.read_text().splitlines()) <= (140 if path.stem == "whole_run" else 100)
