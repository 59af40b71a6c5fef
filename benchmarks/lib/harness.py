"""What every benchmark records besides its numbers."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = (
    *("optax-decoupled", "jax", "jaxlib", "optax", "flax", "numpy"),
    *("scikit-learn", "mnist1d", "torch"),
)


def environment() -> dict[str, Any]:
    """Date, commit, versions and device, to be stored beside the numbers of a run."""
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind if device.platform != "cpu" else _processor(),
            "count": jax.device_count(),
            "cores": os.cpu_count(),
        },
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, a line for each innermost list, replacing the old one at once."""
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[[^][{}]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    temporary = path.with_suffix(".partial")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def in_new_process(module: str, *arguments: str) -> Any:
    """What this script prints as JSON in its last line, run where nothing ran before."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _versions() -> dict[str, str]:
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _commit() -> str | None:
    """The commit of the code that ran, with ``+`` where the working tree differs from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a checkout


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
