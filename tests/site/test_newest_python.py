"""The gate's search for a newer Python, on machines that have none of pyenv."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "newest_python"
# A Python 3.13 that answers as the given one does, and imports as it does.
FAKE = """#!/bin/sh
exec {python} -c "import sys; sys.version_info = (3, 13); {before}exec(sys.argv[1])" "$2"
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="nothing is newer")
@pytest.mark.parametrize(
    ("before", "usable"),
    [("", True), ("sys.modules['ensurepip'] = None; ", False)],
    ids=["whole", "without ensurepip"],
)
def test_a_newer_python_is_used_only_if_it_can_make_an_environment(tmp_path, before, usable):
    fake = tmp_path / "python3.13"
    fake.write_text(FAKE.format(python=sys.executable, before=before))
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}  # and no HOME
    done = subprocess.run(
        ["bash", str(SCRIPT), sys.executable], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() == str(fake)) == usable
