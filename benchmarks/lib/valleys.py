"""Whose best decay stays put better? Slopes of two landscapes under the same resampled seeds.

`Landscape.valley_slope` has an interval for one landscape. Two landscapes of the same seeds
share their images and initial weights, so their difference has an interval of its own, shorter
than what the two together allow. This reads the valleys of all resamples at once, as
`valley_slope` describes them: in each row the smoothed, capped ranks of the mean errors.
"""

import functools
from typing import Any

import numpy as np

from benchmarks.lib.rules import LEVEL, Interval

RESAMPLES = 1000
ROUNDING = 1e-6  # relative; errors are counts, and equal counts are ties


def closer_to_zero(first: dict[str, Any], second: dict[str, Any]) -> Interval | None:
    """How much closer to 0 the second slope is than the first."""
    return _paired(first, second, lambda a, b: np.abs(a) - np.abs(b))


def slope_difference(first: dict[str, Any], second: dict[str, Any]) -> Interval | None:
    """The second slope minus the first."""
    return _paired(first, second, lambda a, b: b - a)


def slope_of_seeds(optimizer: dict[str, Any]) -> Interval | None:
    """The slope and its interval; None if less than half of the resamples locate the valley."""
    return _interval(slopes(optimizer))


def _paired(first: dict[str, Any], second: dict[str, Any], difference: Any) -> Interval | None:
    """None if the seeds are not the same, or too few resamples locate both valleys."""
    if first["seeds"] != second["seeds"]:
        return None
    return _interval(difference(slopes(first), slopes(second)))


def _interval(found: np.ndarray) -> Interval | None:
    """Of all seeds' number and those of the resamples."""
    located = found[1:][np.isfinite(found[1:])]
    if not np.isfinite(found[0]) or len(located) < RESAMPLES / 2:
        return None
    low, high = np.quantile(located, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(found[0]), float(low), float(high))


def slopes(optimizer: dict[str, Any]) -> np.ndarray:
    """[1 + RESAMPLES] of all seeds, then of resamples; NaN where three rates are not located.

    The resamples depend on the number of seeds alone: those of two landscapes are the same.
    """
    names = ("error_percent", "learning_rates", "weight_decays")
    arrays = (np.array(optimizer[name], float) for name in names)
    return _slopes(*((x.tobytes(), x.shape) for x in arrays))


@functools.cache  # a report compares each landscape with several others
def _slopes(*arrays: tuple[bytes, tuple[int, ...]]) -> np.ndarray:
    errors, rates, decays = (np.frombuffer(data).reshape(shape) for data, shape in arrays)
    count = errors.shape[-1]
    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    drawn = (picks[..., None] == np.arange(count)).sum(1)  # [RESAMPLES, S]: how often each seed
    weights = np.concatenate([np.ones((1, count)), drawn])
    with np.errstate(invalid="ignore"):  # 0 / 0 where every seed diverged
        total = np.nan_to_num(errors) @ weights.T / (np.isfinite(errors) @ weights.T)
    best = best_decays(np.moveaxis(total, -1, 0), np.log2(decays))
    found = _least_squares(np.log2(rates), best)
    found.flags.writeable = False
    return found


def best_decays(mean: np.ndarray, decays: np.ndarray) -> np.ndarray:
    """Of mean errors [R, L, W] the best decay [R, L], interpolated; NaN where it is not located.

    That is where it lies on the grid's edge, or where even the row's best cell is worse than
    the median cell.
    """
    if len(decays) < 3:  # all of them are edges
        return np.full(mean.shape[:2], np.nan)
    mean = _tied(np.where(np.isnan(mean), np.inf, mean))
    exceeds = (mean[..., :, None] > mean[..., None, :]).sum(-1)
    ties = (mean[..., :, None] == mean[..., None, :]).sum(-1) - 1
    ranks = np.minimum(exceeds + ties / 2, len(decays) / 2)
    padded = np.pad(ranks, ((0, 0), (0, 0), (1, 1)), "edge")
    smooth = (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4
    lowest, edges = smooth.argmin(-1), (0, len(decays) - 1)
    inside = ~np.isin(lowest, edges) & ~np.isin(mean.argmin(-1), edges)
    row_best = mean.min(-1)
    trains = np.isfinite(row_best) & (row_best <= np.median(mean, axis=(1, 2))[:, None])
    place = lowest + _vertex(smooth, np.clip(lowest, 1, len(decays) - 2))
    return np.where(inside & trains, np.interp(place, np.arange(len(decays)), decays), np.nan)


def _vertex(smooth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Of the parabola through a cell and its neighbours, relative to the cell."""
    left, middle, right = (
        np.take_along_axis(smooth, (at + k)[..., None], -1)[..., 0] for k in (-1, 0, 1)
    )
    curvature = left - 2 * middle + right
    return (left - right) / np.where(curvature > 0, 2 * curvature, np.inf)


def _tied(mean: np.ndarray) -> np.ndarray:
    """[R, L, W] with values of one resample that differ by rounding alone made equal."""
    flat = mean.reshape(len(mean), -1)
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, 1)
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.diff(ordered, axis=1) > ROUNDING * np.abs(ordered[:, :-1])
    new = np.concatenate([np.ones((len(flat), 1), bool), apart], axis=1)
    first = np.maximum.accumulate(np.where(new, np.arange(flat.shape[1]), 0), axis=1)
    tied = np.empty_like(flat)
    np.put_along_axis(tied, order, np.take_along_axis(ordered, first, 1), 1)
    return tied.reshape(mean.shape)


def _least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes of the rows of y over x where y is not NaN; NaN for fewer than three such places."""
    there = np.isfinite(y)
    count = there.sum(1)
    centre = (there * x).sum(1) / np.maximum(count, 1)
    x = np.where(there, x - centre[:, None], 0.0)
    square = (x**2).sum(1)
    slope = (x * np.where(there, y, 0.0)).sum(1) / np.where(square > 0, square, np.inf)
    return np.where(count >= 3, slope, np.nan)
