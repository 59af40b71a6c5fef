"""Every Python block of the README runs alone; its numbers are the committed ones."""

import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readmes_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_the_readme_is_read_in_minutes():
    assert len(README.read_text().splitlines()) <= 220


def test_the_numbers_are_those_of_the_committed_results():
    command = [sys.executable, str(README.with_name("benchmarks") / "report.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
