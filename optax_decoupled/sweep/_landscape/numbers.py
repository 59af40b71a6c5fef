"""Statistics of metrics that may be NaN, and numbers as text."""

import numpy as np

# Relative; about ten times the rounding error of a mean of float32 metrics.
_ROUNDING = 1e-6


def mean_of_finite(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis; NaN, without a warning, if no value is finite."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.where(finite, values, 0.0).sum(-1) / finite.sum(-1)


def tied(values: np.ndarray) -> np.ndarray:
    """The values, where those that differ only by the rounding of float32 are made equal."""
    ordered = np.sort(values, axis=None)
    with np.errstate(invalid="ignore"):  # inf - inf
        new = np.append(True, np.diff(ordered) > _ROUNDING * abs(ordered[:-1]))
    first = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
    return ordered[first][np.searchsorted(ordered, values)]


def number(x: float) -> str:
    """A number as text, to three digits: 0.05, 12, 1e-3, 2.44e-4."""
    if not np.isfinite(x) or 0.01 <= abs(x) < 1e5 or x == 0:
        return f"{x:.3g}"
    mantissa, exponent = f"{x:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def with_spread(mean: float, spread: float) -> str:
    """Text such as "6.12 ± 0.43"; the mean alone if the spread is NaN."""
    return number(mean) + (f" ± {spread:.2g}" if np.isfinite(spread) else "")
