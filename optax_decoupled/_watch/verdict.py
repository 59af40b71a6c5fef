"""The verdict of a weight's history: does it settle, and is its length held by noise or the loss?

The thresholds are fixed; the documentation's page "Watch the weights" has the study that tested
them on networks that were not used to choose them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Verdicts are about the last quarter of the intervals, compared with the quarter before.
_QUARTERS, _FEWEST = 4, 8
# A weight has settled if its rms changes by less than this from one quarter to the next, and
# has been settled since it is within the second number of its final rms.
_TREND, _NEAR = 0.05, 0.1
# From this share of elements on that do not change although their update is not 0, a weight is
# lost to rounding. Stochastic rounding leaves a smaller share unchanged, and decays on average.
_LOST = 0.99
# Noise holds the length of a weight that decays if its ratio over the last half of the run
# is between 1/1.4 and 1.4.
_NOISE = 1.4


class Verdict(NamedTuple):
    """What happens to one weight."""

    kind: str  # see WeightHistoryRow
    since: int | None = None  # of a settled one: the number of updates
    held_by: str | None = None  # "noise" or "the loss", if its ratio is known


class Averages(NamedTuple):
    """A weight's averages of each interval, float64[intervals]."""

    square: np.ndarray
    along: np.ndarray
    change: np.ndarray
    across: np.ndarray
    unchanged: np.ndarray


def judged(a: Averages, steps: np.ndarray, ratio: float, elements: int) -> Verdict:
    """The verdict; `ratio` is that of the last half, NaN if it is not known."""
    n = len(steps)
    if n == 0:
        return Verdict("too short")
    last = slice(n - max(n // _QUARTERS, 1), n)
    if np.mean(a.unchanged[last]) >= _LOST:
        return Verdict("lost")
    if not a.change[last].any():
        return Verdict("frozen")
    removed = -np.sum(a.along[last])
    if elements > 1 and removed > 0 and _angle(a, last) < removed / np.sum(a.square[last]):
        return Verdict("only decays")
    if n < _FEWEST:
        return Verdict("too short")
    return _judged_trend(a, steps, last)._replace(held_by=_held_by(ratio))


def _angle(a: Averages, last: slice) -> float:
    return float(np.sqrt(np.sum(a.across[last]) / np.sum(a.square[last])))


def trend(rms: np.ndarray) -> float:
    """The logarithm of the rms of the last quarter over that of the quarter before."""
    n = len(rms)
    width = max(n // _QUARTERS, 1)
    final, earlier = np.mean(rms[n - width :]), np.mean(rms[max(n - 2 * width, 0) : n - width])
    return math.log(final / earlier) if n > 1 and min(final, earlier) > 0 else math.nan


def _judged_trend(a: Averages, steps: np.ndarray, last: slice) -> Verdict:
    rms = np.sqrt(a.square)
    change = trend(rms)
    if not abs(change) < _TREND:
        return Verdict("shrinking" if change < 0 else "growing")  # NaN: it was 0
    far = np.flatnonzero(abs(rms / np.mean(rms[last]) - 1) > _NEAR)
    first = int(far[-1]) + 1 if len(far) else 0
    return Verdict("settled", int(steps[min(first, len(rms) - 1)]))


def _held_by(ratio: float) -> str | None:
    if math.isnan(ratio):
        return None
    return "noise" if 1 / _NOISE < ratio < _NOISE else "the loss"
