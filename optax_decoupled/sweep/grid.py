"""The cells of a sweep: their grid, the results of those that finished, and groups of the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

# The position of a cell in [L, W, S].
Index = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """The axes of a sweep: learning rates [L], weight decays [W] and seeds [S]."""

    learning_rates: np.ndarray
    weight_decays: np.ndarray
    seeds: list[int]

    @property
    def shape(self) -> Index:
        return len(self.learning_rates), len(self.weight_decays), len(self.seeds)


class Finished(NamedTuple):
    """A finished cell: its metrics (NaN if diverged), and the step of divergence or -1."""

    cell: Index
    metrics: dict[str, float]
    diverged: int


class Results:
    """The results of finished cells. `keep` writes one to the directory, if there is one."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.finished = np.zeros(grid.shape, bool)
        self.diverged = np.full(grid.shape, -1)
        self.metrics: dict[str, np.ndarray] = {}
        self.keep: Callable[[Finished], None] = lambda done: None
        self.loaded = False  # whether the cells that the directory keeps are among them

    @property
    def done(self) -> int:
        return int(self.finished.sum())

    def count(self) -> str:
        """For messages, such as "3 of 12 cells"."""
        return f"{self.done} of {self.finished.size} cells"

    def finish(self, group: Sequence[Finished]) -> None:
        for done in group:
            self.keep(done)
            self.add(done)

    def add(self, done: Finished) -> None:
        for name, value in done.metrics.items():
            empty = np.full(self.finished.shape, np.nan)
            self.metrics.setdefault(name, empty)[done.cell] = value
        self.diverged[done.cell] = done.diverged
        self.finished[done.cell] = True

    def groups(self, width: int) -> list[list[Index]]:
        """The unfinished cells, in groups of one seed and of at most `width` cells."""
        groups = []
        for s in range(len(self.grid.seeds)):
            cells = [(i, j, s) for i, j in np.argwhere(~self.finished[:, :, s]).tolist()]
            groups += [cells[n : n + width] for n in range(0, len(cells), width)]
        return groups


def checked_axis(name: str, values: Sequence[float]) -> np.ndarray:
    """Refuses values that are not positive and increasing."""
    axis = np.asarray(values)
    if axis.ndim != 1 or not axis.size or axis.dtype.kind not in "iuf":
        raise ValueError(f"{name}={values!r} must be a non-empty sequence of numbers, e.g. [1e-3].")
    axis = axis.astype(np.float64)
    if not (np.all(np.isfinite(axis)) and axis[0] > 0 and np.all(np.diff(axis) > 0)):
        raise ValueError(
            f"{name}={values!r} must be finite, positive and increasing: the landscape's axes are "
            "logarithmic. Sort them; instead of 0 take a value too small to matter."
        )
    return axis


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Refuses anything but a sequence of distinct integers."""
    values = np.asarray(seeds)
    whole = values.ndim == 1 and np.issubdtype(values.dtype, np.integer)
    integers = values.tolist() if whole else []
    keys = {np.asarray(jax.random.key_data(jax.random.key(x))).tobytes() for x in integers}
    if not integers or len(keys) < len(integers):
        raise ValueError(
            f"seeds={seeds!r} must be distinct integers, also as JAX's keys, which "
            "without x64 use 32 bits of a seed. Pass a sequence, e.g. range(5)."
        )
    return integers
