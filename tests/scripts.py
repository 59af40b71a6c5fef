"""Runs benchmark scripts with ``--quick``, several in one process: each start takes 5 s.

The scripts of one call share imports and compiled programs.
"""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
_RUN = """
import runpy, sys
_, out, *modules = sys.argv
for module in modules:
    sys.argv = [module, "--quick", "--out", out]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_quickly(modules: Sequence[str], out: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE --quick --out OUT`` for each module; the first failure ends it."""
    command = [sys.executable, "-c", _RUN, str(out), *modules]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
