"""Whether L2 regularization is decoupled decay on other axes, from the landscapes of both."""

from typing import NamedTuple

import numpy as np

from optax_decoupled.sweep._landscape.crossfit import (
    Estimate,
    check_same_seeds,
    combined,
    cross_fitted,
    values_of,
)
from optax_decoupled.sweep._landscape.landscape import Landscape

_EQUAL = 1e-6  # of log₂: learning rates and decays that differ by rounding are the same


class Shear(NamedTuple):
    """How well a landscape over L2 coefficients is one over decays, sheared.

    Attributes:
      correlation: of the two metrics over the cells of the decoupled landscape that the sheared
        one covers.
      difference: the coupled metric minus the decoupled one, the mean over those of these cells
        where the decoupled metric is near its best.
      distance: the mean absolute difference over the same cells.
      covered: the number of cells that are covered.
    """

    correlation: Estimate
    difference: Estimate
    distance: Estimate
    covered: int


def shear(
    coupled: Landscape,
    decoupled: Landscape,
    metric: str = "error",
    *,
    momentum: float = 0.0,
    near: float = 2.0,
) -> Shear:
    r"""Whether L2 with :math:`\lambda' = \lambda (1 - m) / \alpha` is decay with :math:`\lambda`.

    Without momentum it is, step by step (proposition 1). With momentum m the L2 gradient goes
    through the buffer, which adds up to 1/(1 - m) times as much. The coupled landscape is read
    at the decoupled one's cells, linearly interpolated in log₂ λ′.

    Args:
      coupled: over learning rates α and L2 coefficients λ′, of at least four seeds.
      decoupled: over learning rates and decays λ, of the same seeds. Rates that only one of the
        two has are left out.
      metric: which metric.
      momentum: m of both, in [0, 1).
      near: difference and distance are taken over the cells whose decoupled metric is at most
        so many times its best.

    Raises:
      ValueError: if the seeds differ, if there are fewer than four, if no cell is covered by
        both, or if momentum or near are out of range.

    Examples:
      >>> import numpy as np
      >>> from optax_decoupled import sweep
      >>> x, y = np.arange(-3.0, 4), np.arange(-12.0, 3)
      >>> bowl = lambda decay: 5 + x[:, None] ** 2 + (decay + 5) ** 2
      >>> coupled, decoupled = (
      ...     sweep.Landscape(2**x, 2**y, np.arange(4), {"error": error[..., None] + np.zeros(4)})
      ...     for error in (bowl(y + x[:, None] + 1), bowl(y))
      ... )
      >>> assert sweep.shear(coupled, decoupled, momentum=0.5).distance.value < 1e-9
      >>> assert sweep.shear(coupled, decoupled).distance.value > 1
    """
    check_same_seeds(coupled, decoupled)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r} must be at least 0 and less than 1, e.g. 0.9.")
    if not near >= 1:
        raise ValueError(f"near={near!r} must be at least 1, e.g. 2 for twice the best.")
    pair = _sheared(coupled, decoupled, metric, momentum)
    covered = np.isfinite(pair).all(axis=(0, 3))
    if covered.sum() < 3:
        raise ValueError(
            f"{covered.sum()} cells of the decoupled landscape lie on the coupled one after the "
            "shear; 3 are needed. Sweep both over the same learning rates, and L2 coefficients "
            "λ(1 - momentum)/α."
        )

    def compare(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
        gap, sign = measure[:, 0] - measure[:, 1], np.sign(choose[:, 0] - choose[:, 1])
        close = choose[:, 1] <= near * choose[:, 1].min(1, keepdims=True)
        averages = [np.where(close, x, 0).sum(1) / close.sum(1) for x in (gap, sign * gap)]
        return np.stack([*averages, *_covariances(choose, measure)], 1)

    found = cross_fitted(pair[:, covered], coupled.seeds, compare)
    difference, distance, *covariances = found
    correlation = combined(lambda both, x, y: both / np.sqrt(x * y), *covariances)
    return Shear(correlation, difference, distance, int(covered.sum()))


def _sheared(coupled: Landscape, decoupled: Landscape, metric: str, m: float) -> np.ndarray:
    """Both metrics at the decoupled landscape's cells, [2, L, W, S]; NaN where one has none."""
    ours, theirs = values_of(decoupled, metric), values_of(coupled, metric)
    read = np.full_like(ours, np.nan)
    log_decays = np.log2(coupled.weight_decays)
    for i, rate in enumerate(decoupled.learning_rates):
        at = np.log2(decoupled.weight_decays * (1 - m) / rate)
        inside = (at > log_decays[0] - _EQUAL) & (at < log_decays[-1] + _EQUAL)
        for row in theirs[np.abs(np.log2(coupled.learning_rates / rate)) < _EQUAL]:
            columns = [np.interp(at, log_decays, seed) for seed in row.T]
            read[i] = np.where(inside[:, None], np.stack(columns, 1), np.nan)
    return np.stack([read, ours])


def _covariances(choose: np.ndarray, measure: np.ndarray) -> tuple[np.ndarray, ...]:
    """Over the cells of means [R, 2, cells]: [R] of the two metrics, and of each with itself.

    Means over disjoint seeds share no noise, so these are covariances of what lies below the
    noise, and so is the correlation from them (Spearman 1904).
    """
    x, y = (a - a.mean(-1, keepdims=True) for a in (choose, measure))
    covariance = np.einsum("rac,rbc->rab", x, y) / x.shape[-1]
    both = (covariance[:, 0, 1] + covariance[:, 1, 0]) / 2
    return both, covariance[:, 0, 0], covariance[:, 1, 1]
