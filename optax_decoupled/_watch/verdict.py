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
# Noise holds the length of a weight if its ratio over the last half of the run is between 1/1.4
# and 1.4; without momentum, where that of noise is 0, if it is between -0.4 and 0.4.
_NOISE, _NO_MOMENTUM = 1.4, 0.4
# The ratio of the last half is the median of so many parts: one call that replaces the weights, or
# one spike of the loss, moves one of them.
_PARTS = 16
# Decay must have removed this part of the squared length over the last half. Otherwise the length
# is still that of the start, whatever holds it in the long run.
_ACTED = 1.0
# A weight only decays if other updates have less than this share in the change of its length, and
# turn it by less than the second number times what decay removes: noise turns it far more.
_SILENT, _STRAIGHT = 0.01, 0.1


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


class Forces(NamedTuple):
    """The forces on a weight in each interval, times its mean square: float64[intervals].

    All are NaN if the decay is not known.
    """

    aligned: np.ndarray
    injected: np.ndarray
    removed: np.ndarray
    of_noise: float  # aligned over injected of noise; 0 without momentum
    interval: int


def last_ratio(f: Forces) -> float:
    """Alignment over injection of the last half, over that of noise if noise has any."""
    half = slice(len(f.aligned) // 2, None)
    parts = min(_PARTS, max(len(f.aligned[half]), 1))
    sums = lambda x: np.array([part.sum() for part in np.array_split(x[half], parts)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(sums(f.aligned) / sums(f.injected))) / (f.of_noise or 1.0)


def judged(a: Averages, f: Forces, steps: np.ndarray, elements: int) -> Verdict:
    """The verdict of a weight with so many elements in its sample's array."""
    n = len(steps)
    if n == 0:
        return Verdict("too short")
    last = slice(n - max(n // _QUARTERS, 1), n)
    if not np.isfinite(a.square[last]).all():
        return Verdict("not finite")
    moves = a.change[last].any()
    if np.mean(a.unchanged[last]) >= _LOST or (not moves and a.unchanged[last].any()):
        return Verdict("lost")
    if not moves:
        return Verdict("frozen")
    if _only_decays(a, f, last, elements):
        return Verdict("only decays")
    if n < _FEWEST:
        return Verdict("too short")
    return _judged_trend(a, f, steps, last)


def _only_decays(a: Averages, f: Forces, last: slice, elements: int) -> bool:
    """Whether no update but decay moves it; if decay is not known, whether none turns it."""
    removed, angle = f.removed[last].sum(), np.sqrt(a.across[last].sum() * a.square[last].sum())
    if not np.isnan(removed):
        others = abs(f.aligned[last].sum()) + f.injected[last].sum()
        return bool(others < _SILENT * removed and angle < _STRAIGHT * removed / 2)
    shrunk = -a.along[last].sum()
    return bool(elements > 1 and angle < _STRAIGHT * shrunk)


def trend(rms: np.ndarray) -> float:
    """The logarithm of the rms of the last quarter over that of the quarter before.

    It is NaN for fewer intervals than a verdict needs.
    """
    n = len(rms)
    if n < _FEWEST:
        return math.nan
    width = n // _QUARTERS
    final, earlier = np.mean(rms[n - width :]), np.mean(rms[n - 2 * width : n - width])
    return math.log(final / earlier) if min(final, earlier) > 0 else math.nan


def _judged_trend(a: Averages, f: Forces, steps: np.ndarray, last: slice) -> Verdict:
    rms = np.sqrt(a.square)
    half = slice(len(rms) // 2, None)
    acted = f.interval * np.sum(f.removed[half] / a.square[half]) >= _ACTED
    held_by = _held_by(last_ratio(f), f.of_noise) if acted else None
    change = trend(rms)
    if not abs(change) < _TREND:  # NaN: it was 0
        return Verdict("shrinking" if change < 0 else "growing", None, held_by)
    if not acted and not np.isnan(f.removed).any():
        return Verdict("steady")
    far = np.flatnonzero(abs(rms / np.mean(rms[last]) - 1) > _NEAR)
    first = int(far[-1]) + 1 if len(far) else 0
    return Verdict("settled", int(steps[min(first, len(rms) - 1)]), held_by)


def _held_by(ratio: float, of_noise: float) -> str | None:
    if math.isnan(ratio):
        return None
    is_noise = 1 / _NOISE < ratio < _NOISE if of_noise else abs(ratio) < _NO_MOMENTUM
    return "noise" if is_noise else "the loss"
