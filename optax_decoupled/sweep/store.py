"""The directory of a sweep: a manifest that identifies the sweep, and a file per finished cell.

Each file is written under a temporary name and renamed, so a process that is killed leaves
whole files only. A cell's file identifies its cell and sweep, and ends with a checksum.
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib
import numpy as np
import optax

from optax_decoupled._version import __version__
from optax_decoupled.sweep.files import is_partial, locked, replacement
from optax_decoupled.sweep.grid import Finished, Index, Results

# Anything that JSON can express.
Json = Any
Directory = str | os.PathLike[str]

_MANIFEST = "manifest.json"
_LOCK = ".lock"
_CELL = "cell-{:04d}-{:04d}-{:04d}.json"
_BYTES_PER_CELL = 4096  # a small file takes a block of the disk

_Parsed = TypeVar("_Parsed")


def resume(
    results: Results, directory: Directory, task: str, steps: int, stack: contextlib.ExitStack
) -> None:
    """Adds the cells that a directory keeps to `results`, which will write all others there.

    In a cluster only process 0 uses the directory. It is locked until `stack` is closed.
    `task` is the fingerprint of the task and the optimizer.
    """

    def load() -> list[Finished]:
        store = _Store(directory, results, task, steps)
        results.keep = store.keep
        return store.load(stack)

    for cell, metrics, diverged in _from_first_process(load):
        results.add(Finished(tuple(cell), metrics, diverged))
    results.loaded = True


def _from_first_process(compute: Callable[[], Json]) -> Json:
    """The value or error of `compute` on process 0, on every process of a cluster."""
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils  # needs a running cluster

    answer: dict[str, Json] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": compute()}
        except Exception as error:  # whichever it is, the other processes wait for it
            answer = {"error": str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.asarray(multihost_utils.broadcast_one_to_all(np.resize(text, length)))
    answer = json.loads(text.astype(np.uint8).tobytes())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["value"]


class _Store:
    """Finished cells on disk."""

    def __init__(self, directory: Directory, results: Results, task: str, steps: int):
        self.directory, self.results, self.task = Path(directory), results, task
        grid, modules = results.grid, (jax, jaxlib, optax, np)
        versions = {module.__name__: module.__version__ for module in modules}
        self.manifest: dict[str, Json] = {  # everything that the numbers depend on
            "learning_rates": grid.learning_rates.tolist(),
            "weight_decays": grid.weight_decays.tolist(),
            "seeds": grid.seeds,
            "versions": {"optax_decoupled": __version__, **versions},
            "task": task,
            "steps": steps,
        }

    def load(self, stack: contextlib.ExitStack) -> list[Finished]:
        """Makes or locks the directory, and returns the cells that it keeps."""
        with self._explained("Nothing was trained. Choose a writable directory with free space."):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._check()  # before the lock file, so that other people's directories stay as is
            try:
                stack.enter_context(locked(self.directory / _LOCK))
            except BlockingIOError:
                raise ValueError(
                    f"directory={str(self.directory)!r} is in use by another sweep. Nothing was "
                    "trained. Wait until that one has ended, or choose another directory."
                ) from None
            paths, partial = self._check()  # again: another process may have come first
            for path in partial:
                path.unlink()
            # Even if it exists, because this shows whether we may write.
            _write(self.directory / _MANIFEST, self.manifest)
            cells = {_CELL.format(*cell): cell for cell in np.ndindex(*self.results.grid.shape)}
            way_out = "Delete it, and its cell will be trained again."
            return [
                _read(path, functools.partial(self._parse, cells.get(path.name)), way_out)
                for path in paths
            ]

    def keep(self, done: Finished) -> None:
        """Writes a finished cell."""
        metrics = {k: None if math.isnan(v) else v for k, v in done.metrics.items()}
        record = {**self._identity(done.cell), "diverged": done.diverged, "metrics": metrics}
        record["sha256"] = _checksum(record)
        way_out = "Once the cause is removed, run the same sweep again to go on."
        with self._explained(f"{self.results.count()} are kept. {way_out}"):
            _write(self.directory / _CELL.format(*done.cell), record)

    @contextlib.contextmanager
    def _explained(self, way_out: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = ": ".join(filter(None, [error.filename, error.strerror]))
            said = f"directory={str(self.directory)!r} cannot keep the sweep: {reason}. {way_out}"
            raise OSError(error.errno, said) from error

    def _check(self) -> tuple[list[Path], list[Path]]:
        """Refuses other directories; returns the cells, and partial files of killed processes."""
        with os.scandir(self.directory) as found:
            entries = {entry.name: entry for entry in found}
        cells = sorted(name for name in entries if name.startswith("cell-"))
        for name in {*cells, _MANIFEST, _LOCK} & entries.keys():
            if not entries[name].is_file(follow_symlinks=False):
                raise ValueError(
                    f"{self.directory / name} is a link, a directory or a pipe; a sweep keeps "
                    "regular files only. Delete it, or choose another directory."
                )
        partial = [name for name in entries if is_partial(entries[name])]
        if _MANIFEST in entries:
            self._check_manifest()
        elif entries.keys() - {*partial, _LOCK}:
            raise ValueError(
                f"directory={str(self.directory)!r} is not empty and holds no sweep (it has no "
                f"{_MANIFEST}). Choose an empty or a new directory."
            )
        missing = self.results.finished.size - len(cells)
        if shutil.disk_usage(self.directory).free < (missing + 1) * _BYTES_PER_CELL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return [self.directory / name for name in cells], [self.directory / n for n in partial]

    def _check_manifest(self) -> None:
        way_out = "Choose another directory, or delete this one."
        other = _differences(_read(self.directory / _MANIFEST, dict, way_out), self.manifest)
        if other:
            raise ValueError(
                f"directory={str(self.directory)!r} holds another sweep: it differs in {other}. "
                f"Nothing was trained or overwritten. {way_out}"
            )

    def _parse(self, cell: Index | None, record: dict[str, Json]) -> Finished:
        if cell is None:
            raise ValueError(f"a grid of {self.results.grid.shape} has no such cell")
        if record.pop("sha256", None) != _checksum(record):
            raise ValueError("its content does not fit its checksum")
        other = _differences(record, self._identity(cell))
        if other:
            raise ValueError(f"its content differs in {other}, so it was renamed or copied")
        metrics = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
        return Finished(cell, metrics, record["diverged"])

    def _identity(self, cell: Index) -> dict[str, Json]:
        i, j, s = cell
        return {
            "learning_rate": self.manifest["learning_rates"][i],
            "weight_decay": self.manifest["weight_decays"][j],
            "seed": self.manifest["seeds"][s],
            "task": self.task,
        }


def _differences(found: dict[str, Json], expected: dict[str, Json]) -> str:
    """The names of the expected entries that are not found."""
    return ", ".join(sorted(name for name in expected if found.get(name) != expected[name]))


def _checksum(record: dict[str, Json]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _write(path: Path, record: dict[str, Json]) -> None:
    with replacement(path) as file:
        file.write(f"{json.dumps(record)}\n".encode())


def _read(path: Path, parse: Callable[[dict[str, Json]], _Parsed], way_out: str) -> _Parsed:
    """Parses a file that anybody may have written."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        return parse(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or was not written by this sweep: {error}. {way_out}"
        ) from error
