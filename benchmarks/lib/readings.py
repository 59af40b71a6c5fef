"""What do results say? Slopes, comparisons and sentences, from the recorded numbers alone."""

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.lib.landscapes import Landscapes
from benchmarks.lib.rules import (
    CONTRADICTED,
    LEVEL,
    MORE,
    PERCENT,
    SUPPORTED,
    UNDECIDED,
    Interval,
    about,
    signed,
    verdict,
)
from benchmarks.lib.valleys import closer_to_zero, slope_difference, slope_of_seeds
from optax_decoupled.sweep import Estimate, Landscape, ValleySlope
from optax_decoupled.sweep._landscape.crossfit import cross_fitted
from optax_decoupled.sweep._landscape.tuning import at_best

PAPER_IMPROVEMENT = 15  # percent of test error, AdamW over Adam+L2
FEWEST_SEEDS = 4  # with fewer there is no interval
HOW_TO_READ = (
    f"± is the standard deviation over seeds; brackets are {PERCENT} intervals, of a slope by "
    "bootstrap over seeds, of a difference of errors cross-fitted and by jackknife over seeds: "
    "half of the seeds choose the cells and the other half compare them, averaged over many "
    "splits. A slope is supported if its interval lies within 0.5 of the claimed one, contradicted "
    "if it lies outside of that, else undecided. The tables show the cell of the lowest mean test "
    "error, which is a little optimistic, and how many cells come within 10 % of it."
)
Row = dict[str, dict[str, Any]]  # of a record: a `summary` for each optimizer


@functools.cache
def slope(landscape: Landscape, metric: str = "error") -> ValleySlope | None:
    try:
        return landscape.valley_slope(metric)
    except ValueError:
        return None  # too few rates have their best decay inside the grid


def results(landscapes: Landscapes) -> dict[str, Any]:
    """For the record: the landscapes of each row."""
    return {
        group: {"optimizers": {name: summary(x) for name, x in row.items()}}
        for group, row in landscapes.items()
    }


def summary(x: Landscape) -> dict[str, Any]:
    found = slope(x)
    return {
        "best": rounded(x.best()._asdict()),
        "cells_within_10_percent": int(np.sum(x.mean() <= 1.1 * x.best().mean)),
        "valley_slope": None if found is None else rounded(found._asdict()),
        "diverged": int(np.sum(x.diverged >= 0)),
        "learning_rates": x.learning_rates.tolist(),
        "weight_decays": x.weight_decays.tolist(),
        "seeds": x.seeds.tolist(),
        "error_percent": rounded(x.metrics["error"].tolist()),
    }


def landscape(optimizer: dict[str, Any]) -> Landscape:
    """The landscape of which `summary` made this record."""
    axes = (np.array(optimizer[x]) for x in ("learning_rates", "weight_decays", "seeds"))
    return Landscape(*axes, {"error": np.array(optimizer["error_percent"], float)})


def lowest(optimizer: dict[str, Any]) -> float:
    """The lowest mean error of a cell in which no seed diverged; inf if there is none."""
    return float(_of_cells(optimizer).mean(1).min(initial=np.inf))


def chosen_by_half(optimizer: dict[str, Any]) -> np.ndarray:
    """Errors of the second half of the seeds, in the cell that is best for the first half.

    Seeds that choose cannot also compare: not even each for the others, because what they
    choose depends on all of them. Where cells tie, their mean.
    """
    errors = _of_cells(optimizer)
    half = errors.shape[1] // 2
    if not len(errors):
        return np.full(errors.shape[1] - half, np.nan)
    mean = errors[:, :half].mean(1)
    return errors[mean <= (1 + 1e-6) * mean.min(), half:].mean(0)


def _of_cells(optimizer: dict[str, Any]) -> np.ndarray:
    """[cells, seeds], of the cells in which no seed diverged."""
    errors = np.array(optimizer["error_percent"], float)
    errors = errors.reshape(-1, errors.shape[-1])
    return errors[np.isfinite(errors).all(1)]


class Comparison(NamedTuple):
    """One error minus another, paired by seed: the same images and initial weights."""

    points: Interval  # percentage points
    percent: Interval  # of the first one's mean error


def paired(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compares two errors of each seed."""
    difference = first - second
    mean, error = difference.mean(), stats.sem(difference)
    half = stats.t.ppf((1 + LEVEL) / 2, len(difference) - 1) * error
    ends = (mean, mean - half, mean + half)
    percent = 100 / first.mean()
    return Comparison(Interval(*map(float, ends)), Interval(*(float(percent * x) for x in ends)))


def comparison(first: dict[str, Any], second: dict[str, Any]) -> Comparison | None:
    """Of two optimizers' lowest errors, cross-fitted over the same seeds; None for few seeds."""
    if min(np.shape(x["error_percent"])[-1] for x in (first, second)) < FEWEST_SEEDS:
        return None
    before, after = map(lowest_error, (first, second))
    points = before - after
    parts = points, scaled(points / before, 100)
    return Comparison(*map(interval_of, parts))


def lowest_error(optimizer: dict[str, Any]) -> Estimate:
    """Of the cell that half of the seeds choose, measured by the other half."""
    errors = np.array(optimizer["error_percent"], float)
    cells = errors.reshape(-1, errors.shape[-1])
    best = lambda choose, measure: at_best(choose, measure)[:, None]
    (found,) = cross_fitted(cells, np.arange(errors.shape[-1]), best)
    return found


def scaled(x: Estimate, factor: float) -> Estimate:
    return Estimate(factor * x.value, factor * x.without, x.seeds)


def interval_of(x: Estimate) -> Interval:
    return Interval(x.value, *x.interval(LEVEL))


def least_decay(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The optimizer with no other decay than the least of the grid."""
    return optimizer | {"error_percent": [row[:1] for row in optimizer["error_percent"]]}


def slope_interval(optimizer: dict[str, Any]) -> Interval | None:
    """None for few seeds, or if less than half of the resamples locate the valley."""
    return None if len(optimizer["seeds"]) < FEWEST_SEEDS else slope_of_seeds(optimizer)


def improvement(where: str, row: Row) -> str:
    """Of AdamW over Adam+L2, relative as in the paper, and whether it may be chance."""
    first, second = lowest(row["Adam+L2"]), lowest(row["AdamW"])
    return (
        f"AdamW's improvement over Adam+L2's lowest test error {where}: "
        f"{signed(100 * (first - second) / first, 1)} %, in the paper {PAPER_IMPROVEMENT} %. "
        f"Adam+L2's error minus AdamW's: {difference(row['Adam+L2'], row['AdamW'])}."
    )


def no_gain_from_l2(where: str, row: Row) -> str:
    """Whether Adam gains from L2 regularization, beside its least coefficient."""
    with_l2 = row["Adam+L2"]
    return (
        f"Adam+L2's error {where} with the least λ′ minus that with the best: "
        f"{difference(least_decay(with_l2), with_l2)}; in the paper Adam gains nothing from L2."
    )


def difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Of two optimizers' errors, in words."""
    found = comparison(first, second)
    if found is None:
        return "too few seeds to tell"
    if not np.isfinite(found.points).all():
        return "all cells diverged"
    return points(found) + (", which may be chance" if found.points.may_be_chance else "")


def slopes_as_claimed(claim: str, row: Row, expected: dict[str, int]) -> str:
    """Compares slopes with the claimed -1, 0 or +1."""
    parts = []
    for name, value in expected.items():
        found = slope_interval(row[name])
        away = "" if found is None else f" ({abs(found.value - value):.2f} away)"
        word = verdict(about(value), found)
        parts.append(f"{name} {slope_text(row[name])}, claimed {value}{away}: {word}")
    return f"{claim}, as slopes of the best decay over the rate: {'; '.join(parts)}."


def more_separable(where: str, row: Row) -> str:
    """Whether AdamW's slope is closer to 0 than that of Adam+L2."""
    names = ("Adam+L2", "AdamW")
    slopes = " and ".join(f"{slope_text(row[name])} for {name}" for name in names)
    pair = [row[name] for name in names]
    closer, apart = closer_to_zero(*pair), slope_difference(*pair)
    beginning = {
        SUPPORTED: f"AdamW makes rate and decay more separable {where}",
        CONTRADICTED: f"AdamW makes rate and decay less separable {where}, unlike in the paper",
        UNDECIDED: f"Whether AdamW makes rate and decay more separable {where} is undecided",
    }[verdict(MORE, closer)]
    if closer is None or apart is None:
        return f"{beginning}: slopes {slopes}."
    return (
        f"{beginning}: slopes {slopes}. With the same seeds resampled for both, AdamW's is closer "
        f"to 0 by {closer.text()}; the slopes differ by {apart.text()}."
    )


def slope_text(optimizer: dict[str, Any]) -> str:
    found, valley = slope_interval(optimizer), optimizer["valley_slope"]
    if found is not None:
        return found.text()
    if valley is None or len(optimizer["seeds"]) >= FEWEST_SEEDS:
        return "not located"
    return f"{signed(valley['slope'], 2)}, {len(optimizer['seeds'])} seeds"


def points(x: Comparison) -> str:
    return f"{x.points.text()} points"


def rounded(value: Any) -> Any:
    """Floats to 7 significant digits, as float32 has them, NaN to None, through dicts and lists."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value
