"""The directory of a sweep: a manifest that says which sweep it is, and a file per finished cell.

Every file is written beside its place and moved there, so a kill at any moment leaves whole
files only. One process writes to a directory at a time.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import optax

from optax_decoupled._version import __version__

Index = tuple[int, int, int]

_PARTIAL = ".partial"
_BYTES_PER_CELL = 4096  # a small file takes a block of the disk


def versions() -> dict[str, str]:
    """Of the packages that shape a sweep's numbers."""
    modules = {"jax": jax, "jaxlib": jaxlib, "optax": optax, "numpy": np}
    return {"optax_decoupled": __version__, **{k: m.__version__ for k, m in modules.items()}}


def from_first_process(compute: Callable[[], Any]) -> Any:
    """What `compute` returns (JSON) or raises on process 0, on every process of a cluster."""
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils  # needs a running cluster

    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": compute()}
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, length)
    text = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8)
    answer = json.loads(text.tobytes())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


class CellStore:
    """Finished cells on disk, by their index in [L, W, S]."""

    def __init__(self, directory: str | os.PathLike[str], manifest: dict[str, Any], cells: int):
        """Opens a new or an earlier directory of the same sweep, and checks that it can be used.

        Args:
          directory: created if it does not exist.
          manifest: what the sweep is; JSON.
          cells: how many files there may be in the end.

        Raises:
          ValueError: if the directory holds another sweep, or something else.
          OSError: if it cannot be written, or the disk is too full.
        """
        self.directory = Path(directory)
        try:
            self._open(manifest, cells)
        except OSError as error:
            raise type(error)(
                error.errno,
                f"directory={str(directory)!r} cannot keep the sweep: {error.strerror}. Nothing "
                "was trained. Choose a writable directory with free space",
            ) from error

    def _open(self, manifest: dict[str, Any], cells: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "manifest.json"
        names = [x.name for x in self.directory.iterdir() if not x.name.endswith(_PARTIAL)]
        if path.exists():
            _check_same(self.directory, json.loads(path.read_text()), manifest)
        elif names:
            raise ValueError(
                f"directory={str(self.directory)!r} is not empty and holds no sweep (it has no "
                "manifest.json). Choose an empty or a new directory."
            )
        missing = cells - sum(name.startswith("cell-") for name in names)
        if shutil.disk_usage(self.directory).free < (missing + 1) * _BYTES_PER_CELL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(path, manifest)  # even if it is there: this shows that we may write

    def kept(self) -> Iterator[tuple[Index, dict[str, float], int]]:
        """The finished cells: index, metrics (NaN if diverged), step of divergence or -1."""
        for path in sorted(self.directory.glob("cell-*.json")):
            try:
                record = json.loads(path.read_text())
                metrics = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
                _, i, j, s = path.stem.split("-")
                yield (int(i), int(j), int(s)), metrics, record["diverged"]
            except (ValueError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{path} is damaged: {error}. Delete it, and its cell will be trained again."
                ) from error

    def keep(
        self, index: Index, hyperparameters: dict[str, Any], metrics: Any, diverged: int
    ) -> None:
        """Writes a finished cell."""
        values = {k: None if math.isnan(v) else float(v) for k, v in metrics.items()}
        record = {**hyperparameters, "diverged": int(diverged), "metrics": values}
        i, j, s = index
        _write(self.directory / f"cell-{i:04d}-{j:04d}-{s:04d}.json", record)


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    with open(temporary, "w") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _check_same(directory: Path, found: Any, manifest: dict[str, Any]) -> None:
    keys = sorted(manifest.keys() | (found.keys() if isinstance(found, dict) else set()))
    other = [
        key for key in keys if not isinstance(found, dict) or found.get(key) != manifest.get(key)
    ]
    if other:
        raise ValueError(
            f"directory={str(directory)!r} holds another sweep: it differs in {', '.join(other)}. "
            "Nothing was trained or overwritten. Choose another directory, or delete this one."
        )
