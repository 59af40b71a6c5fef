"""What do landscapes say? Slopes, comparisons and sentences, from the numbers alone."""

import functools
from typing import Any, NamedTuple

import numpy as np
from landscapes import Landscapes

from optax_decoupled.sweep import Landscape, ValleySlope

PAPER_IMPROVEMENT = 15  # percent of test error, AdamW over Adam+L2
OPTIMISM = (
    "The best cell is chosen by the same held-out error that is reported, over the whole grid, "
    "so every best error is a little optimistic, for all optimizers alike."
)


@functools.cache
def slope(landscape: Landscape, metric: str = "error") -> ValleySlope | None:
    try:
        return landscape.valley_slope(metric)
    except ValueError:
        return None  # too few rates have their best decay inside the grid


def at_best(landscape: Landscape) -> np.ndarray:
    """The error of each seed in the best cell."""
    return landscape.metrics["error"][landscape.ranked()[0]]


class Comparison(NamedTuple):
    """One error minus another, paired by seed: the same images and initial weights."""

    improvement: float  # percent of the first one's error
    difference: float  # percentage points
    spread: float  # sample standard deviation over seeds, percentage points

    @property
    def within_spread(self) -> bool:
        return abs(self.difference) <= self.spread


def paired(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compares two errors of each seed."""
    difference = first - second
    return Comparison(
        float(100 * difference.mean() / first.mean()),
        float(difference.mean()),
        float(difference.std(ddof=1)),
    )


def compare(row: dict[str, Landscape]) -> Comparison:
    """Adam+L2 minus AdamW, each at its best cell."""
    return paired(at_best(row["Adam+L2"]), at_best(row["AdamW"]))


def near_best(landscape: Landscape) -> int:
    """In how many cells the mean error is at most 10 % above the best."""
    return int(np.sum(landscape.mean() <= 1.1 * landscape.best().mean))


def signed(value: float, digits: int) -> str:
    """With its sign, and zero as +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def points(x: Comparison) -> str:
    return f"{signed(x.difference, 2)} ± {x.spread:.2f} points"


def slope_text(found: ValleySlope | None) -> str:
    if found is None:
        return "not located"
    return f"{signed(found.slope, 2)} [{signed(found.low, 1)}, {signed(found.high, 1)}]"


MOVES = {-1: "halves", 0: "stays put", 1: "doubles"}


def separability(claim: str, row: dict[str, Landscape], expected: dict[str, int]) -> str:
    """Compares slopes with -1, 0 and +1: the nearest is what the best decay does."""
    moves, missed = [], []
    for name, value in expected.items():
        found = slope(row[name])
        move = "cannot be located" if found is None else MOVES[round(np.clip(found.slope, -1, 1))]
        moves.append(f"{name}'s {move} (slope {slope_text(found)}, expected {value})")
        if move != MOVES[value]:
            missed.append(name)
    extent = "" if not missed else "not " if len(missed) == len(expected) else "only partly "
    return (
        f"{claim} is {extent}reproduced. As the learning rate doubles, the best decay moves so: "
        f"{', '.join(moves)}."
    )


def improvement(where: str, x: Comparison) -> str:
    size = f"{signed(x.improvement, 1)} % ({points(x)})"
    if x.within_spread:
        return (
            f"AdamW's {PAPER_IMPROVEMENT} % improvement over Adam+L2 is not reproduced {where}: "
            f"{size}, a difference within the spread over seeds."
        )
    verdict = "better" if x.difference > 0 else "worse"
    return (
        f"AdamW is {verdict} than Adam+L2 {where} by more than the spread over seeds: {size}, "
        f"where the paper has {PAPER_IMPROVEMENT} %."
    )


def results(landscapes: Landscapes) -> dict[str, Any]:
    """For the JSON: each row's comparison of Adam+L2 and AdamW, and its landscapes."""
    return {
        group: {
            "comparison": rounded(compare(row)._asdict()),
            "optimizers": {name: summary(x) for name, x in row.items()},
        }
        for group, row in landscapes.items()
    }


def summary(x: Landscape) -> dict[str, Any]:
    found = slope(x)
    return {
        "best": rounded(x.best()._asdict()),
        "cells_within_10_percent": near_best(x),
        "valley_slope": None if found is None else rounded(found._asdict()),
        "diverged": int(np.sum(x.diverged >= 0)),
        "learning_rates": x.learning_rates.tolist(),
        "weight_decays": x.weight_decays.tolist(),
        "seeds": x.seeds.tolist(),
        "error_percent": rounded(x.metrics["error"].tolist()),
    }


def rounded(value: Any) -> Any:
    """Floats to 5 significant digits, NaN to None, through dicts and lists."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value
