"""The cells of a sweep: their grid, which of them are done, and in what groups the rest trains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

# Of a cell: its place in [L, W, S].
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

    def axes(self) -> dict[str, list[float]]:
        """As JSON."""
        return {
            "learning_rates": self.learning_rates.tolist(),
            "weight_decays": self.weight_decays.tolist(),
            "seeds": list(self.seeds),
        }

    def cell(self, index: Index) -> dict[str, float]:
        """What distinguishes a cell from the others, as JSON."""
        i, j, s = index
        return {
            "learning_rate": float(self.learning_rates[i]),
            "weight_decay": float(self.weight_decays[j]),
            "seed": self.seeds[s],
        }


class Finished(NamedTuple):
    """A finished cell: its metrics (NaN if diverged), and the step of divergence or -1."""

    cell: Index
    metrics: dict[str, float]
    diverged: int


class Results:
    """The cells that are done. `keep`, where it is given, puts each of them away at once."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.finished = np.zeros(grid.shape, bool)
        self.diverged = np.full(grid.shape, -1)
        self.metrics: dict[str, np.ndarray] = {}
        self.keep: Callable[[Finished], None] = lambda done: None

    @property
    def done(self) -> int:
        return int(self.finished.sum())

    def add(self, done: Finished) -> None:
        for name, value in done.metrics.items():
            empty = np.full(self.finished.shape, np.nan)
            self.metrics.setdefault(name, empty)[done.cell] = value
        self.diverged[done.cell] = done.diverged
        self.finished[done.cell] = True

    def groups(self, width: int) -> list[list[Index]]:
        """The cells that are not done, in groups of one seed and at most so many cells."""
        groups = []
        for s in range(len(self.grid.seeds)):
            cells = [(i, j, s) for i, j in np.argwhere(~self.finished[:, :, s]).tolist()]
            groups += [cells[n : n + width] for n in range(0, len(cells), width)]
        return groups


def make_grid(
    learning_rates: Sequence[float], weight_decays: Sequence[float], seeds: Sequence[int]
) -> Grid:
    """Checks the arguments of a sweep.

    Raises:
      ValueError: for axes that are not positive and increasing, and for repeated seeds.
    """
    return Grid(
        _axis("learning_rates", learning_rates),
        _axis("weight_decays", weight_decays),
        _distinct(seeds),
    )


def _axis(name: str, values: Sequence[float]) -> np.ndarray:
    axis = np.asarray(values)
    numeric = np.issubdtype(axis.dtype, np.number) and not np.iscomplexobj(axis)
    if axis.ndim != 1 or not axis.size or not numeric:
        raise ValueError(f"{name}={values!r} must be a non-empty sequence of numbers, e.g. [1e-3].")
    axis = axis.astype(np.float64)
    if not (np.all(np.isfinite(axis)) and axis[0] > 0 and np.all(np.diff(axis) > 0)):
        raise ValueError(
            f"{name}={values!r} must be finite, positive and increasing: the landscape's axes are "
            "logarithmic. Sort them; instead of 0 take a value too small to matter."
        )
    return axis


def _distinct(seeds: Sequence[int]) -> list[int]:
    values = list(np.ravel(np.asarray(seeds)))
    whole = all(isinstance(seed, np.integer) for seed in values)
    if np.ndim(seeds) != 1 or not values or not whole:
        raise ValueError(f"seeds={seeds!r} must be distinct integers, e.g. range(5).")
    integers = [int(seed) for seed in values]
    keys = {np.asarray(jax.random.key_data(jax.random.key(x))).tobytes() for x in integers}
    if len(keys) < len(integers):
        raise ValueError(
            f"seeds={seeds!r} must be distinct integers, also as JAX's keys, which without x64 "
            "see 32 bits, e.g. range(5)."
        )
    return integers
