"""The directory of a sweep: a manifest that says which sweep it is, and a file per finished cell.

Every file is written beside its place and moved there, so a kill at any moment leaves whole
files only. One process writes to a directory at a time.
"""

import errno
import json
import math
import operator
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

    def __init__(self, directory: str | os.PathLike[str], manifest: dict[str, Any], shape: Index):
        """Opens a new or an earlier directory of the same sweep, and checks that it can be used.

        Args:
          directory: created if it does not exist.
          manifest: what the sweep is; JSON.
          shape: of the grid [L, W, S].

        Raises:
          ValueError: if the directory holds another sweep, or something else.
          OSError: if it cannot be written, or the disk is too full.
        """
        self.directory, self.shape = Path(directory), shape
        try:
            self._open(manifest)
        except OSError as error:
            raise type(error)(
                error.errno,
                f"directory={str(directory)!r} cannot keep the sweep: {error.strerror}. Nothing "
                "was trained. Choose a writable directory with free space",
            ) from error

    def _open(self, manifest: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "manifest.json"
        names = [x.name for x in self.directory.iterdir() if not x.name.endswith(_PARTIAL)]
        if path.exists():
            found = _read(path, "Delete the directory, and the sweep will begin anew.")
            _check_same(self.directory, found, manifest)
        elif names:
            raise ValueError(
                f"directory={str(self.directory)!r} is not empty and holds no sweep (it has no "
                "manifest.json). Choose an empty or a new directory."
            )
        missing = math.prod(self.shape) - sum(name.startswith("cell-") for name in names)
        if shutil.disk_usage(self.directory).free < (missing + 1) * _BYTES_PER_CELL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(path, manifest)  # even if it is there: this shows that we may write

    def kept(self) -> Iterator[tuple[Index, dict[str, float], int]]:
        """The finished cells: index, metrics (NaN if diverged), step of divergence or -1."""
        for path in sorted(self.directory.glob("cell-*.json")):
            yield _read(path, "Delete it, and its cell will be trained again.", self._parse)

    def _parse(self, path: Path, record: Any) -> tuple[Index, dict[str, float], int]:
        _, i, j, s = map(int, path.stem.replace("cell", "0").split("-"))
        if not all(0 <= n < size for n, size in zip((i, j, s), self.shape, strict=True)):
            raise ValueError(f"there is no such cell in a grid of {self.shape}")
        metrics = record["metrics"].items()
        if not metrics:
            raise ValueError("it has no metrics")
        values = {name: math.nan if x is None else 1.0 * x for name, x in metrics}
        return (i, j, s), values, operator.index(record["diverged"])

    def keep(
        self, index: Index, hyperparameters: dict[str, Any], metrics: Any, diverged: int
    ) -> None:
        """Writes a finished cell."""
        values = {k: None if math.isnan(v) else float(v) for k, v in metrics.items()}
        record = {**hyperparameters, "diverged": int(diverged), "metrics": values}
        i, j, s = index
        _write(self.directory / f"cell-{i:04d}-{j:04d}-{s:04d}.json", record)


def _read(path: Path, way_out: str, parse: Callable[[Path, Any], Any] | None = None) -> Any:
    try:
        record = json.loads(path.read_text())
        return parse(path, record) if parse else record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}. {way_out}") from error


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
