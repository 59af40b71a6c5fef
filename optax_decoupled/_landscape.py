"""What a sweep returns: metrics over (learning rate, weight decay, seed), and how to read them."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_RESAMPLES = 1000
# Relative; a mean of float32 metrics is exact to about a tenth of it.
_ROUNDING = 1e-6


class Best(NamedTuple):
    """The best cell: mean and sample standard deviation of the metric over seeds."""

    learning_rate: float
    weight_decay: float
    mean: float
    spread: float


class ValleySlope(NamedTuple):
    """How log₂ of the best decay moves per doubling of the learning rate.

    Attributes:
      slope: 0 where rate and decay can be tuned one after the other; -1 where their
        product is what counts.
      low: lower end of the 95 % seed bootstrap interval. It is too short for fewer than
        three seeds, and empty for one.
      high: its upper end.
      learning_rates: the rates that counted.
      weight_decays: the best decay at each of them, interpolated.
    """

    slope: float
    low: float
    high: float
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Landscape:
    """Metrics over a grid, of which less is better.

    Attributes:
      learning_rates: [L], increasing.
      weight_decays: [W], increasing.
      seeds: [S].
      metrics: name -> float array [L, W, S]; NaN where a cell diverged.
      diverged: int array [L, W, S], the step at which a cell diverged (the number of
        steps if only its metrics are not finite), or -1. A scalar stands for all cells.

    Examples:
      >>> import numpy as np
      >>> from optax_decoupled.sweep import Landscape
      >>> rates, decays = 2.0 ** np.arange(-3, 3), 2.0 ** np.arange(-12, 0)
      >>> distance = np.log2(rates[:, None] * decays) + 6  # the product counts
      >>> error = 5 + distance[..., None] ** 2 + np.zeros(4)
      >>> landscape = Landscape(rates, decays, np.arange(4), {"error": error})
      >>> assert landscape.best().mean == 5
      >>> assert np.isclose(landscape.valley_slope().slope, -1)
    """

    learning_rates: np.ndarray
    weight_decays: np.ndarray
    seeds: np.ndarray
    metrics: Mapping[str, np.ndarray]
    diverged: np.ndarray = field(default_factory=lambda: np.array(-1))

    def __post_init__(self) -> None:
        shape = (len(self.learning_rates), len(self.weight_decays), len(self.seeds))
        if np.ndim(self.diverged) == 0:
            object.__setattr__(self, "diverged", np.full(shape, self.diverged))
        for name, values in {**self.metrics, "diverged": self.diverged}.items():
            if np.shape(values) != shape:
                raise ValueError(
                    f"{name} has shape {np.shape(values)}; it must be {shape}, one value for each "
                    "learning rate, weight decay and seed."
                )

    def mean(self, metric: str = "error") -> np.ndarray:
        """[L, W], over the seeds that did not diverge; NaN where all did."""
        return _mean_of_finite(self._values(metric))

    def spread(self, metric: str = "error") -> np.ndarray:
        """[L, W], the sample standard deviation over seeds; NaN for fewer than two."""
        values = self._values(metric)
        count = np.isfinite(values).sum(-1)
        variance = _mean_of_finite((values - self.mean(metric)[..., None]) ** 2)
        return np.where(count > 1, np.sqrt(variance * count / np.maximum(count - 1, 1)), np.nan)

    def best(self, metric: str = "error") -> Best:
        """The cell of the lowest mean among those where no seed diverged.

        It is chosen and measured on the same seeds, hence slightly optimistic.

        Raises:
          ValueError: if a seed diverged in every cell.
        """
        i, j = self.ranked(metric)[0]
        mean, spread = self.mean(metric)[i, j], self.spread(metric)[i, j]
        rate, decay = self.learning_rates[i], self.weight_decays[j]
        return Best(float(rate), float(decay), float(mean), float(spread))

    def ranked(self, metric: str = "error") -> list[tuple[int, int]]:
        """Indices of the cells where no seed diverged, the lowest mean first."""
        values = self._values(metric)
        mean = _tied(np.where(np.isfinite(values).all(-1), self.mean(metric), np.inf))
        order = np.argsort(mean, axis=None, kind="stable")[: np.isfinite(mean).sum()]
        if not order.size:
            raise ValueError(
                f"In every cell a seed diverged or has no {metric!r}. Sweep lower learning rates."
            )
        return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, mean.shape), strict=True)]

    def valley_slope(self, metric: str = "error") -> ValleySlope:
        r"""How :math:`\log_2` of the best decay moves per doubling of the learning rate.

        The least-squares slope through the best decay of each rate, which is found in the
        smoothed ranks of its row and interpolated between cells.
        A rate does not count if its best decay lies on the grid's edge, or if even its best
        cell is worse than the grid's median cell: nobody would train there.

        Raises:
          ValueError: if fewer than three rates count, for all seeds together or in most
            of the resamples behind the interval.
        """
        values = self._values(metric)
        rates, decays = np.log2(self.learning_rates), np.log2(self.weight_decays)
        used, best = _valley(self.mean(metric), decays)
        if len(used) < 3:
            raise ValueError(
                f"valley_slope found the best decay of {len(used)} of {len(rates)} learning rates "
                "inside the grid; it needs 3. Widen weight_decays, or take learning rates that "
                "train."
            )
        slopes = _bootstrap_slopes(values, rates, decays)
        if len(slopes) < _RESAMPLES / 2:
            raise ValueError(
                f"valley_slope found 3 best decays inside the grid in only {len(slopes)} of "
                f"{_RESAMPLES} resamples of the seeds. Widen the grid or take more seeds."
            )
        low, high = np.percentile(slopes, [2.5, 97.5])
        return ValleySlope(
            slope=_slope(rates[used], best),
            low=float(low),
            high=float(high),
            learning_rates=tuple(self.learning_rates[used].tolist()),
            weight_decays=tuple((2.0**best).tolist()),
        )

    def plot(
        self,
        metric: str = "error",
        *,
        ax: Any = None,
        vmin: float | None = None,
        vmax: float | None = None,
        mark: int | None = None,
        title: str | None = None,
        colorbar: bool = True,
    ) -> Any:
        """Draws the mean over seeds as a heatmap, a row for each learning rate.

        Args:
          metric: which metric.
          ax: Matplotlib axes; None makes a figure.
          vmin: the metric of the brightest colour; None: the best cell's.
          vmax: the metric of the darkest colour; None: the median cell's, or twice the
            best, whichever is more. Everything worse looks the same.
          mark: how many of the best cells are marked, the first by a star and the others by
            dots; None: a tenth of the cells, at most ten.
          title: None: the best cell.
          colorbar: whether to draw one beside the axes.

        Returns:
          The axes. Their image (``axes.images[0]``) can feed a common colour bar. Cells in
          which every seed diverged are grey and hatched; those in which some did have a cross.
        """
        plt = import_extra("matplotlib.pyplot")
        mean, ranked, best = self.mean(metric), self.ranked(metric), self.best(metric)
        vmin = best.mean if vmin is None else vmin
        vmax = max(float(np.nanmedian(mean)), 2 * best.mean) if vmax is None else vmax
        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        ax.patch.set(facecolor="0.85", hatch="////", edgecolor="0.6")
        image = ax.imshow(
            mean, origin="lower", aspect="auto", cmap="viridis_r", vmin=vmin, vmax=vmax
        )
        mark = max(1, min(10, mean.size // 10)) if mark is None else mark
        partly = np.isfinite(mean) & ~np.isfinite(self._values(metric)).all(-1)
        _mark(ax, np.argwhere(partly), "x", color="white", ms=5)
        _mark(ax, np.array(ranked[1:mark]), "o", color="black", ms=3.5)
        _mark(ax, np.array(ranked[:1]), "*", color="black", ms=11)
        _label_axis(ax.xaxis, self.weight_decays, 7)
        _label_axis(ax.yaxis, self.learning_rates, 9)
        ax.set(xlabel="weight decay", ylabel="learning rate")
        spread = f" ± {best.spread:.2g}" if np.isfinite(best.spread) else ""
        ax.set_title(title or f"best {metric} {best.mean:.3g}{spread}")
        if colorbar:
            extend = "max" if np.nanmax(mean) > vmax else "neither"
            ax.figure.colorbar(image, ax=ax, label=metric, extend=extend)
        return ax

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to one ``.npz`` file, replacing it at once if it exists."""
        temporary = f"{os.fspath(path)}.partial"
        with open(temporary, "wb") as file:
            metrics = {f"metric:{name}": values for name, values in self.metrics.items()}
            np.savez(
                file,
                learning_rates=self.learning_rates,
                weight_decays=self.weight_decays,
                seeds=self.seeds,
                diverged=self.diverged,
                **metrics,  # type: ignore[arg-type]
            )
        os.replace(temporary, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Landscape":
        """Reads what :meth:`save` wrote."""
        with np.load(path) as file:
            arrays = dict(file)
        metrics = {
            name.removeprefix("metric:"): arrays.pop(name)
            for name in list(arrays)
            if name.startswith("metric:")
        }
        return Landscape(metrics=metrics, **arrays)

    def _values(self, metric: str) -> np.ndarray:
        if metric not in self.metrics:
            names = ", ".join(map(repr, self.metrics))
            raise ValueError(f"metric={metric!r} is not in this landscape; it has {names}.")
        return np.asarray(self.metrics[metric], np.float64)


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN, without a warning, where nothing is finite."""
    finite = np.isfinite(values)
    count = finite.sum(-1)
    total = np.where(finite, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _valley(mean: np.ndarray, log_decays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose valley is located, and log₂ of the best decay in each.

    Only the order within a row counts: ranks, capped at half the row, so that neither the
    metric's scale nor cliffs nor diverged cells pull on the minimum. They are smoothed by
    (1, 2, 1)/4 against the noise, and a parabola interpolates between the cells.
    """
    mean = _tied(np.where(np.isnan(mean), np.inf, mean))
    smooth = _smoothed(np.minimum(_ranks(mean), mean.shape[1] / 2))
    lowest = np.argmin(smooth, axis=1)
    both = np.stack([lowest, np.argmin(mean, axis=1)])
    inside = np.all((both > 0) & (both < mean.shape[1] - 1), axis=0)
    trains = np.isfinite(mean.min(axis=1)) & (mean.min(axis=1) <= np.median(mean))
    rows = np.flatnonzero(inside & trains)
    at = lowest[rows]
    left, middle, right = smooth[rows, at - 1], smooth[rows, at], smooth[rows, at + 1]
    curvature = left - 2 * middle + right
    offset = (left - right) / np.where(curvature > 0, 2 * curvature, np.inf)
    return rows, np.interp(at + offset, np.arange(len(log_decays)), log_decays)


def _tied(values: np.ndarray) -> np.ndarray:
    """With values that differ by float32's rounding alone made equal, as equal counts are."""
    ordered = np.sort(values, axis=None)
    with np.errstate(invalid="ignore"):  # inf - inf
        new = np.append(True, np.diff(ordered) > _ROUNDING * abs(ordered[:-1]))
    first = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))
    return ordered[first][np.searchsorted(ordered, values)]


def _ranks(rows: np.ndarray) -> np.ndarray:
    """How many cells of its row a cell exceeds; a tie counts as half."""
    exceeds = rows[:, :, None] > rows[:, None, :]
    ties = rows[:, :, None] == rows[:, None, :]
    return exceeds.sum(-1) + 0.5 * (ties.sum(-1) - 1)


def _smoothed(rows: np.ndarray) -> np.ndarray:
    padded = np.pad(rows, ((0, 0), (1, 1)), "edge")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _bootstrap_slopes(values: np.ndarray, rates: np.ndarray, decays: np.ndarray) -> list[float]:
    """Slopes of the valley for resampled seeds, where three rates or more locate it."""
    rng = np.random.default_rng(0)
    seeds = values.shape[-1]
    slopes = []
    for _ in range(_RESAMPLES):
        mean = _mean_of_finite(values[..., rng.integers(0, seeds, seeds)])
        used, best = _valley(mean, decays)
        if len(used) >= 3:
            slopes.append(_slope(rates[used], best))
    return slopes


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _mark(ax: Any, cells: np.ndarray, marker: str, **style: Any) -> None:
    rows, columns = cells.reshape(-1, 2).T
    ax.plot(columns, rows, marker, linestyle="none", **style)


def _label_axis(axis: Any, values: np.ndarray, most: int) -> None:
    """At most so many ticks, at the centres of cells; all are powers of 2 or none is."""
    mantissas, exponents = np.frexp(values)
    powers = np.all(mantissas == 0.5)
    labels = [f"$2^{{{k - 1}}}$" for k in exponents] if powers else [f"{x:.2g}" for x in values]
    stride = -(-len(values) // most)
    axis.set_ticks(range(0, len(values), stride), labels[::stride])


def import_extra(name: str) -> Any:
    """Imports a module of the `sweep` extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed. Progress bars and plots need the extra: "
            'pip install "optax-decoupled[sweep]".'
        ) from error
