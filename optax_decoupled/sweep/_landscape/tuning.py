"""Tuning on a landscape: the cost of a shortcut, the width of the good region.

All numbers are cross-fitted over seeds (half of them choose, the others measure, averaged over
many splits) and come with an interval over seeds, see `Estimate`.
"""

from typing import NamedTuple

import numpy as np

from optax_decoupled.sweep._landscape.crossfit import (
    AnyLandscape,
    Estimate,
    check_same_seeds,
    cross_fitted,
    values_of,
)
from optax_decoupled.sweep._landscape.numbers import number

_EQUAL = 1e-6  # relative: what differs by float32's rounding is the same


class SequentialCost(NamedTuple):
    """The metric after tuning one hyperparameter after the other, minus that of the best cell.

    Attributes:
      starts: where the hyperparameter that is tuned last stood at first.
      at_start: the cost from each of them, in units of the metric.
      mean: over the starts.
      worst: from the start that is worst for the seeds that choose.
    """

    starts: tuple[float, ...]
    at_start: tuple[Estimate, ...]
    mean: Estimate
    worst: Estimate

    def __str__(self) -> str:
        return f"mean {self.mean}, worst {self.worst} over {len(self.starts)} starts"


class TuningCost(NamedTuple):
    """The cost of tuning one hyperparameter after the other, in both orders.

    Attributes:
      decay_first: the decay is tuned at a learning rate, then the rate at that decay; the starts
        are the learning rates.
      rate_first: the rate is tuned at a decay, then the decay at that rate; the starts are the
        weight decays, or the ratios that are kept.
    """

    decay_first: SequentialCost
    rate_first: SequentialCost

    def __str__(self) -> str:
        return f"decay, then rate: {self.decay_first}\nrate, then decay: {self.rate_first}"


class Basin(NamedTuple):
    """The size of the region that is nearly as good as the best cell.

    Attributes:
      cells: how many cells come within the tolerance of the best.
      rates: how many learning rates do, each with its best decay.
    """

    cells: Estimate
    rates: Estimate


class Advantage(NamedTuple):
    """The metric of one landscape minus that of another, each with its decay tuned.

    Attributes:
      learning_rates: of both.
      at_rate: the difference at each of them.
      best: that of the two best cells.
    """

    learning_rates: tuple[float, ...]
    at_rate: tuple[Estimate, ...]
    best: Estimate


def tuning_cost(
    landscape: AnyLandscape, metric: str = "error", *, keep_ratio: bool = False
) -> TuningCost:
    r"""The cost of tuning learning rate and decay one after the other, instead of together.

    From a learning rate :math:`\alpha_0` the decay is tuned,
    :math:`\lambda_1 = \arg\min_\lambda m(\alpha_0, \lambda)`, then the rate,
    :math:`\alpha_1 = \arg\min_\alpha m(\alpha, \lambda_1)`. The cost is
    :math:`m(\alpha_1, \lambda_1) - \min m`: 0 if the best decay is the same at every rate.
    Likewise in the other order. Every rate and decay of the grid is a start, also those that
    nobody would take: ``at_start`` has each of them.

    Args:
      landscape: of at least four seeds.
      metric: which metric.
      keep_ratio: what is kept while the rate is tuned. False: the decay λ, the paper's
        convention (or the L2 coefficient, if those are the landscape's decays). True: the ratio
        λ/α, the ``weight_decay`` of Optax and PyTorch, so that the decay moves with the rate.
        Then only cells of the grid are tried, and rate-first starts at the ratios that most
        rates have: all of them, if both axes have the same steps and the decays reach far.

    Raises:
      ValueError: if there are fewer than four seeds, or if a seed diverged in every cell.

    Examples:
      A bowl in log₂ of rate and decay whose axes are the grid's, and one that is sheared:

      >>> import numpy as np
      >>> from optax_decoupled import sweep
      >>> x, y = np.arange(-3.0, 4), np.arange(-12.0, 3)
      >>> bowls = [
      ...     5 + x[:, None] ** 2 + (y + 5 + slope * x[:, None]) ** 2 for slope in (0, 1)
      ... ]
      >>> separable, diagonal = (
      ...     sweep.Landscape(2**x, 2**y, np.arange(4), {"error": bowl[..., None] + np.zeros(4)})
      ...     for bowl in bowls
      ... )
      >>> assert sweep.tuning_cost(separable).decay_first.worst.value == 0
      >>> assert sweep.tuning_cost(diagonal).decay_first.worst.value > 4
    """
    values = values_of(landscape, metric)
    rates, decays = landscape.learning_rates, landscape.weight_decays
    whole = np.full(len(decays), True)  # which of the second axis may be starts
    if keep_ratio:
        decays, whole, values = _over_ratios(rates, decays, values)
    all_rates = np.full(len(rates), True)

    def costs(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
        by_rate = costs_of_starts(choose, measure, all_rates)
        turned = costs_of_starts(choose.swapaxes(1, 2), measure.swapaxes(1, 2), whole)
        return np.concatenate([by_rate, turned], 1)

    found = cross_fitted(values, landscape.seeds, costs)
    split = len(rates) + 2
    return TuningCost(_sequential(rates, found[:split]), _sequential(decays[whole], found[split:]))


def basin(landscape: AnyLandscape, metric: str = "error", *, tolerance: float = 0.1) -> Basin:
    """How much of the grid is nearly as good as its best cell.

    Args:
      landscape: of at least four seeds.
      metric: which metric, positive.
      tolerance: a cell counts up to (1 + tolerance) times the best cell's metric.

    Returns:
      Numbers of cells and of learning rates; an average over splits is seldom whole.

    Raises:
      ValueError: if the tolerance is negative, if there are fewer than four seeds, or if a seed
        diverged in every cell.

    Examples:
      >>> import numpy as np
      >>> from optax_decoupled import sweep
      >>> error = np.array([[5.0, 9.0, 9.0], [9.0, 5.4, 5.2]])[..., None] + np.zeros(4)
      >>> landscape = sweep.Landscape(np.ones(2), np.ones(3), np.arange(4), {"error": error})
      >>> assert sweep.basin(landscape).cells.value == 3
      >>> assert sweep.basin(landscape, tolerance=0.05).rates.value == 2
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance!r} must be 0 or more, e.g. 0.1 for 10 %.")

    def counts(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
        limit = (1 + tolerance + _EQUAL) * at_best(choose, measure)[:, None, None]
        tuned = at_best_decay(choose, measure)
        return np.stack([(x <= limit).sum((1, 2)) for x in (measure, tuned[..., None])], 1)

    found = cross_fitted(values_of(landscape, metric), landscape.seeds, counts)
    return Basin(*found)


def advantage(
    first: AnyLandscape, second: AnyLandscape, metric: str = "error", *, relative: bool = False
) -> Advantage:
    """How much lower the second landscape's metric is, at each learning rate and at its best.

    Both have their decay tuned, at each rate for itself. Seeds are paired: both landscapes
    should have the same data and initial weights for a seed.

    Args:
      first: of at least four seeds.
      second: of the same seeds and learning rates.
      metric: which metric.
      relative: whether to divide the differences by the first landscape's metric.

    Raises:
      ValueError: if seeds or learning rates differ, if there are fewer than four seeds, or if a
        seed diverged in every cell.
    """
    check_same_seeds(first, second)
    if not _same_rates(first.learning_rates, second.learning_rates):
        rates = (", ".join(map(number, x.learning_rates)) for x in (first, second))
        raise ValueError(
            f"The landscapes have the learning rates {' and '.join(rates)}; they must have the "
            "same, because they are compared at each. Sweep both over the same rates."
        )
    pairs = zip(*(_tuned(landscape, metric) for landscape in (first, second)), strict=True)
    gains = [(a - b) / a if relative else a - b for a, b in pairs]
    rates = tuple(np.asarray(first.learning_rates).tolist())
    return Advantage(rates, tuple(gains[:-1]), gains[-1])


def _over_ratios(
    rates: np.ndarray, decays: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios λ/α [K], which of them most rates have, and values [L, K, S], NaN off the grid."""
    logs = np.log2(decays)[None] - np.log2(rates)[:, None]
    units = np.round(logs / _EQUAL).astype(np.int64)
    ratios, place, count = np.unique(units, return_inverse=True, return_counts=True)
    spread = np.full((len(rates), len(ratios), values.shape[-1]), np.nan)
    spread[np.arange(len(rates))[:, None], place.reshape(logs.shape)] = values
    return 2.0 ** (ratios * _EQUAL), count == count.max(), spread


def costs_of_starts(choose: np.ndarray, measure: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of means [R, A, B] the cost from starts (bool [A]) on the first axis, then mean and worst."""
    split = np.arange(len(choose))[:, None]
    second = choose.argmin(2)[:, starts]
    first = choose[split, :, second].argmin(2)
    cost = measure[split, first, second] - at_best(choose, measure)[:, None]
    worst = choose[split, first, second].argmax(1)[:, None]
    summary = [cost.mean(1, keepdims=True), np.take_along_axis(cost, worst, 1)]
    return np.concatenate([cost, *summary], 1)


def _sequential(starts: np.ndarray, found: list[Estimate]) -> SequentialCost:
    *at_start, mean, worst = found
    return SequentialCost(tuple(np.asarray(starts).tolist()), tuple(at_start), mean, worst)


def _tuned(landscape: AnyLandscape, metric: str) -> list[Estimate]:
    """The metric at each rate with the best decay, and that of the best cell."""

    def tuned(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
        best = at_best(choose, measure)[:, None]
        return np.concatenate([at_best_decay(choose, measure), best], 1)

    return cross_fitted(values_of(landscape, metric), landscape.seeds, tuned)


def at_best(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """[R], the measured mean of the cell that is chosen of all."""
    best = choose.reshape(len(choose), -1).argmin(1)
    return measure.reshape(len(measure), -1)[np.arange(len(best)), best]


def at_best_decay(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """[R, L], the measured mean of the cell that is chosen at each rate."""
    return np.take_along_axis(measure, choose.argmin(2)[..., None], 2)[..., 0]


def _same_rates(first: np.ndarray, second: np.ndarray) -> bool:
    return len(first) == len(second) and bool(np.allclose(first, second, rtol=_EQUAL, atol=0))
