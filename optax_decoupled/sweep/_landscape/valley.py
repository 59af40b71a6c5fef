"""The best weight decay at each learning rate, and the slope of the line through them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optax_decoupled.sweep._landscape.numbers import mean_of_finite, number, tied

_RESAMPLES = 1000
_FEWEST = 3  # learning rates that a slope needs


class ValleySlope(NamedTuple):
    """How log₂ of the best decay moves per doubling of the learning rate.

    Attributes:
      slope: 0 if rate and decay can be tuned one after the other; -1 if the best decay is
        inversely proportional to the rate.
      low: the 2.5 % quantile of the slopes of resampled seeds (bootstrap).
      high: the 97.5 % quantile. Below ten seeds the range from low to high is too narrow for a
        95 % interval; for one seed it is empty.
      learning_rates: the rates that the slope is fitted to.
      weight_decays: the best decay at each of them, interpolated.
    """

    slope: float
    low: float
    high: float
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]

    def __str__(self) -> str:
        interval = f" (resampled: {self.low:.2f} to {self.high:.2f})"
        rates = f"{number(min(self.learning_rates))} to {number(max(self.learning_rates))}"
        return (
            f"slope {self.slope:.2f}{interval if self.low < self.high else ''}: each doubling of "
            f"the rate multiplies\nthe best weight decay by {number(2.0**self.slope)}, "
            f"over {len(self.learning_rates)} learning rates, {rates}"
        )


class Valley(NamedTuple):
    """The best decay of each learning rate."""

    rows: np.ndarray  # the rates whose best decay is inside the grid
    log_decays: np.ndarray  # log₂ of the best decay of each of those
    smallest: np.ndarray  # the rates that train, but whose best decay is the grid's smallest
    largest: np.ndarray  # those whose best decay is the grid's largest
    untrained: np.ndarray  # the rates whose best cell is worse than the grid's median


def valley_slope(
    values: np.ndarray, learning_rates: np.ndarray, weight_decays: np.ndarray
) -> ValleySlope:
    """See :meth:`Landscape.valley_slope`. `values` are those of a metric, [L, W, S]."""
    rates, decays = np.log2(learning_rates), np.log2(weight_decays)
    valley = _find(mean_of_finite(values), decays)
    outside = _outside(valley, learning_rates, weight_decays)
    if len(valley.rows) < _FEWEST:
        raise ValueError(
            f"valley_slope found the best decay of {len(valley.rows)} of {len(rates)} learning "
            f"rates inside the grid; it needs {_FEWEST}. {outside}"
        )
    slopes = _bootstrap_slopes(values, rates, decays)
    if len(slopes) < _RESAMPLES / 2:
        raise ValueError(
            f"valley_slope found {_FEWEST} best decays inside the grid in only {len(slopes)} of "
            f"{_RESAMPLES} resamples of the seeds. Widen the grid or take more seeds. {outside}"
        )
    low, high = np.percentile(slopes, [2.5, 97.5])
    return ValleySlope(
        slope=_slope(rates[valley.rows], valley.log_decays),
        low=float(low),
        high=float(high),
        learning_rates=tuple(learning_rates[valley.rows].tolist()),
        weight_decays=tuple((2.0**valley.log_decays).tolist()),
    )


def _outside(valley: Valley, learning_rates: np.ndarray, weight_decays: np.ndarray) -> str:
    """Sentences that name the learning rates that are left out, the reason and the way out."""
    rates = lambda rows: f"learning rates {', '.join(map(number, learning_rates[rows]))}"
    smallest, largest = number(weight_decays[0]), number(weight_decays[-1])
    sentences = [
        (valley.smallest, "The best decay of {} is the grid's smallest, " + smallest + ", so it "
         "may lie below: add smaller ones."),
        (valley.largest, "The best decay of {} is the grid's largest, " + largest + ", so it may "
         "lie above: add larger ones."),
        (valley.untrained, "At {} even the best cell is worse than the grid's median: nobody "
         "would train there. Take rates closer to the best one."),
    ]  # fmt: skip
    said = [sentence.format(rates(rows)) for rows, sentence in sentences if len(rows)]
    return " ".join(said or ["Add learning rates."])


def _find(mean: np.ndarray, log_decays: np.ndarray) -> Valley:
    """Finds the best decay of each row (learning rate).

    A row's values are replaced by their ranks, capped at half its length. So the minimum does
    not depend on the metric's scale, on cliffs or on diverged cells. The ranks are smoothed
    by (1, 2, 1)/4 to reduce noise. The minimum is that of a parabola through three cells.
    """
    mean = tied(np.where(np.isnan(mean), np.inf, mean))
    smooth = _smoothed(np.minimum(_ranks(mean), mean.shape[1] / 2))
    lowest = np.argmin(smooth, axis=1)
    both = np.stack([lowest, np.argmin(mean, axis=1)])
    smallest, largest = np.any(both == 0, axis=0), np.any(both == mean.shape[1] - 1, axis=0)
    trains = np.isfinite(mean.min(axis=1)) & (mean.min(axis=1) <= np.median(mean))
    rows = np.flatnonzero(trains & ~smallest & ~largest)
    at = lowest[rows]
    left, middle, right = smooth[rows, at - 1], smooth[rows, at], smooth[rows, at + 1]
    curvature = left - 2 * middle + right
    offset = (left - right) / np.where(curvature > 0, 2 * curvature, np.inf)
    best = np.interp(at + offset, np.arange(len(log_decays)), log_decays)
    where = np.flatnonzero
    return Valley(rows, best, where(trains & smallest), where(trains & largest), where(~trains))


def _ranks(rows: np.ndarray) -> np.ndarray:
    """For each cell the number of cells of its row that it exceeds; a tie counts as half."""
    exceeds = rows[:, :, None] > rows[:, None, :]
    ties = rows[:, :, None] == rows[:, None, :]
    return exceeds.sum(-1) + 0.5 * (ties.sum(-1) - 1)


def _smoothed(rows: np.ndarray) -> np.ndarray:
    padded = np.pad(rows, ((0, 0), (1, 1)), "edge")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _bootstrap_slopes(values: np.ndarray, rates: np.ndarray, decays: np.ndarray) -> Sequence[float]:
    """The slopes of resampled seeds; resamples with too few rates are left out."""
    rng = np.random.default_rng(0)
    seeds = values.shape[-1]
    slopes = []
    for _ in range(_RESAMPLES):
        valley = _find(mean_of_finite(values[..., rng.integers(0, seeds, seeds)]), decays)
        if len(valley.rows) >= _FEWEST:
            slopes.append(_slope(rates[valley.rows], valley.log_decays))
    return slopes


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean()
    return float(x @ y / (x @ x))
