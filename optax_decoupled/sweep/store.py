"""The directory of a sweep: a manifest that says which sweep it is, and a file per finished cell.

Every file is written beside its place and moved there, so a kill at any moment leaves whole
files only. A cell's file says which cell of which sweep it is, and is believed nowhere else.
One process writes to a directory at a time.
"""

import errno
import functools
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
from optax_decoupled.sweep.grid import Finished, Grid, Index, Results

# What json reads and writes; a file that was tampered with may hold anything.
Json = Any
Directory = str | os.PathLike[str]

_FILE = "cell-{:04d}-{:04d}-{:04d}.json"
_PARTIAL = ".partial"
_BYTES_PER_CELL = 4096  # a small file takes a block of the disk


def resume(results: Results, directory: Directory, task: str, steps: int) -> None:
    """Opens or makes the directory of a sweep, takes over what it keeps, and keeps the others.

    Args:
      results: without any cell that is done.
      directory: refused if it holds anything else, or cannot be written.
      task: the fingerprint of what is trained.
      steps: of each cell.
    """

    def kept() -> list[Finished]:
        store = _Store(directory, results.grid, task, steps)
        results.keep = store.keep
        return list(store.kept())

    for cell, metrics, diverged in _from_first_process(kept):
        results.add(Finished(tuple(cell), metrics, diverged))


def _from_first_process(compute: Callable[[], Json]) -> Json:
    """What `compute` returns or raises on process 0, on every process of a cluster."""
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils  # needs a running cluster

    answer: dict[str, Json] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": compute()}
        except Exception as error:  # whatever it is, the others wait for an answer
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.asarray(multihost_utils.broadcast_one_to_all(np.resize(text, length)))
    answer = json.loads(text.astype(np.uint8).tobytes())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


class _Store:
    """Finished cells on disk, by their index in [L, W, S]."""

    def __init__(self, directory: Directory, grid: Grid, task: str, steps: int):
        self.directory, self.grid, self.task = Path(directory), grid, task
        try:
            self._open(_manifest(grid, task, steps))
        except OSError as error:
            raise type(error)(
                error.errno,
                f"directory={str(directory)!r} cannot keep the sweep: {error.strerror}. Nothing "
                "was trained. Choose a writable directory with free space",
            ) from error

    def _open(self, manifest: dict[str, Json]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "manifest.json"
        names = [x.name for x in self.directory.iterdir() if not x.name.endswith(_PARTIAL)]
        if path.exists():
            found = _read(path, dict, "Delete the directory, and the sweep will begin anew.")
            _check_same(self.directory, found, manifest)
        elif names:
            raise ValueError(
                f"directory={str(self.directory)!r} is not empty and holds no sweep (it has no "
                "manifest.json). Choose an empty or a new directory."
            )
        missing = math.prod(self.grid.shape) - sum(name.startswith("cell-") for name in names)
        if shutil.disk_usage(self.directory).free < (missing + 1) * _BYTES_PER_CELL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(path, manifest)  # even if it is there: this shows that we may write

    def kept(self) -> Iterator[Finished]:
        cells = {_FILE.format(*cell): cell for cell in np.ndindex(*self.grid.shape)}
        for path in sorted(self.directory.glob("cell-*.json")):
            parse = functools.partial(self._parse, cells.get(path.name))
            yield _read(path, parse, "Delete it, and its cell will be trained again.")

    def keep(self, done: Finished) -> None:
        """Writes a finished cell."""
        values = {k: None if math.isnan(v) else v for k, v in done.metrics.items()}
        record = {**self._identity(done.cell), "diverged": done.diverged, "metrics": values}
        _write(self.directory / _FILE.format(*done.cell), record)

    def _parse(self, cell: Index | None, record: Json) -> Finished:
        if cell is None:
            raise ValueError(f"there is no such cell in a grid of {self.grid.shape}")
        identity = self._identity(cell).items()
        other = [f"{k} {record[k]}, not {v}" for k, v in identity if record[k] != v]
        if other:
            raise ValueError(
                f"by its name it is another cell than by its content ({'; '.join(other)}): it was "
                "renamed, or copied from another place"
            )
        if not record["metrics"]:
            raise ValueError("it has no metrics")
        values = {k: math.nan if v is None else 1.0 * v for k, v in record["metrics"].items()}
        return Finished(cell, values, operator.index(record["diverged"]))

    def _identity(self, cell: Index) -> dict[str, Json]:
        i, j, s = cell
        return {
            "learning_rate": float(self.grid.learning_rates[i]),
            "weight_decay": float(self.grid.weight_decays[j]),
            "seed": self.grid.seeds[s],
            "task": self.task,
        }


def _manifest(grid: Grid, task: str, steps: int) -> dict[str, Json]:
    """What tells a sweep from others; the versions are those of what shapes its numbers."""
    modules = {module.__name__: module.__version__ for module in (jax, jaxlib, optax, np)}
    return {
        "learning_rates": grid.learning_rates.tolist(),
        "weight_decays": grid.weight_decays.tolist(),
        "seeds": grid.seeds,
        "versions": {"optax_decoupled": __version__, **modules},
        "task": task,
        "steps": steps,
    }


def _read(path: Path, parse: Callable[[Json], Any], way_out: str) -> Any:
    try:
        return parse(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged: {what}. {way_out}") from error


def _write(path: Path, record: dict[str, Json]) -> None:
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    with open(temporary, "w") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _check_same(directory: Path, found: dict[str, Json], manifest: dict[str, Json]) -> None:
    keys = sorted(manifest.keys() | found.keys())
    other = [key for key in keys if found.get(key) != manifest.get(key)]
    if other:
        raise ValueError(
            f"directory={str(directory)!r} holds another sweep: it differs in {', '.join(other)}. "
            "Nothing was trained or overwritten. Choose another directory, or delete this one."
        )
