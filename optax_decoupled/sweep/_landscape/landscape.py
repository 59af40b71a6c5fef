"""The result of a sweep: metrics over (learning rate, weight decay, seed)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optax_decoupled.sweep._landscape.numbers import mean_of_finite, number, tied, with_spread
from optax_decoupled.sweep._landscape.plot import Axes, Picture, draw, table
from optax_decoupled.sweep._landscape.tuning import tuning_cost
from optax_decoupled.sweep._landscape.valley import ValleySlope, valley_slope
from optax_decoupled.sweep.files import replacement


class Best(NamedTuple):
    """The best cell of a landscape.

    Attributes:
      learning_rate: its learning rate.
      weight_decay: its weight decay.
      mean: the mean of the metric over seeds.
      spread: the metric's sample standard deviation over seeds; NaN for one seed.
    """

    learning_rate: float
    weight_decay: float
    mean: float
    spread: float

    def __str__(self) -> str:
        cell = f"learning rate {number(self.learning_rate)}, "
        cell += f"weight decay {number(self.weight_decay)}"
        return f"{with_spread(self.mean, self.spread)} at {cell}"


@dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """Metrics over a grid; lower is better.

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
      >>> distance = np.log2(rates[:, None] * decays) + 6  # the best decay is 2⁻⁶ / rate
      >>> error = 5 + distance[..., None] ** 2 + np.zeros(4)
      >>> landscape = Landscape(rates, decays, np.arange(4), {"error": error})
      >>> assert landscape.best().mean == 5
      >>> assert np.isclose(landscape.valley_slope().slope, -1)
      >>> print(landscape)
      best error 5 ± 0 at learning rate 0.125, weight decay 0.125
      6 learning rates × 12 weight decays × 4 seeds; 0 of 288 cells diverged
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

    def __str__(self) -> str:
        diverged = np.asarray(self.diverged) >= 0
        cells = f"{diverged.sum()} of {diverged.size} cells diverged"
        return "\n".join([*map(self._sentence, self.metrics), f"{self._axes()}; {cells}"])

    def __repr__(self) -> str:
        return f"<Landscape of {', '.join(self.metrics)}: {self._axes()}>"

    def _repr_html_(self) -> str:
        tables = [table(self._picture(name)) for name in self.metrics]
        return "".join([*tables, f"<p>{str(self).splitlines()[-1]}</p>"])

    def _sentence(self, metric: str) -> str:
        if not self._ranked(metric):
            return f"no best {metric}: in every cell a seed diverged"
        return f"best {metric} {self.best(metric)}"

    def _axes(self) -> str:
        names = ("learning rate", "weight decay", "seed")
        sizes = np.shape(self.diverged)
        parts = zip(sizes, names, strict=True)
        return " × ".join(f"{n} {name}{'s' if n > 1 else ''}" for n, name in parts)

    def mean(self, metric: str = "error") -> np.ndarray:
        """The mean over the seeds that did not diverge, [L, W]; NaN where all did."""
        return mean_of_finite(self._values(metric))

    def spread(self, metric: str = "error") -> np.ndarray:
        """The sample standard deviation over the same seeds, [L, W]; NaN for fewer than two."""
        values = self._values(metric)
        count = np.isfinite(values).sum(-1)
        variance = mean_of_finite((values - self.mean(metric)[..., None]) ** 2)
        return np.where(count > 1, np.sqrt(variance * count / np.maximum(count - 1, 1)), np.nan)

    def best(self, metric: str = "error") -> Best:
        """The cell of the lowest mean among those where no seed diverged.

        Its mean is slightly optimistic: the same seeds choose the cell and measure it.

        Raises:
          ValueError: if a seed diverged in every cell.
        """
        i, j = self.ranked(metric)[0]
        mean, spread = self.mean(metric)[i, j], self.spread(metric)[i, j]
        rate, decay = self.learning_rates[i], self.weight_decays[j]
        return Best(float(rate), float(decay), float(mean), float(spread))

    def ranked(self, metric: str = "error") -> list[tuple[int, int]]:
        """Indices of the cells where no seed diverged, the lowest mean first."""
        ranked = self._ranked(metric)
        if not ranked:
            raise ValueError(
                f"In every cell a seed diverged or has no {metric!r}. Sweep lower learning rates."
            )
        return ranked

    def valley_slope(self, metric: str = "error") -> ValleySlope:
        r"""How :math:`\log_2` of the best decay moves per doubling of the learning rate.

        The least-squares slope through the best decay of each learning rate. That is the
        minimum of the smoothed ranks of the rate's cells, interpolated between cells. A rate
        is left out if its best decay is on the edge of the grid, or if its best cell is worse
        than the median cell of the grid, so that nobody would train there.

        Raises:
          ValueError: if fewer than three rates are left, for all seeds together or in most
            of the bootstrap resamples. It names the rates that are left out, and why.
        """
        return valley_slope(self._values(metric), self.learning_rates, self.weight_decays)

    def plot(
        self,
        metric: str = "error",
        *,
        ax: Axes | None = None,
        vmin: float | None = None,
        vmax: float | None = None,
        mark: int | None = None,
        title: str | None = None,
        colorbar: bool = True,
    ) -> Axes:
        """Draws the mean over seeds as a heatmap, a row for each learning rate.

        Args:
          metric: the metric to draw.
          ax: Matplotlib axes; None makes a figure.
          vmin: the value of the brightest colour; None: the best cell's.
          vmax: the value of the darkest colour, which all higher values get too; None: the
            median cell's, or twice the best, whichever is higher.
          mark: number of the best cells to mark, the first by a star and the others by dots;
            None: a tenth of the cells, at most ten.
          title: None names the best cell's metric.
          colorbar: whether to draw a colour bar beside the axes.

        Returns:
          The axes; ``axes.images[0]`` is the image, for a common colour bar. A cell is grey
          and hatched if every seed diverged, and has a cross if some did. The red line joins
          the best decays of the rates, if :meth:`valley_slope` finds them. The label of the
          decay names the cost of tuning one after the other from the worst start, of four
          seeds or more (:func:`tuning_cost`).
        """
        best = self.best(metric)
        title = title or f"best {metric} {with_spread(best.mean, best.spread)}"
        lines = {"valley": self._valley(metric), "note": self._cost(metric)}
        picture = self._picture(metric)._replace(title=title, **lines)
        return draw(picture, ax, vmin, vmax, mark, colorbar)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the landscape to an ``.npz`` file. An existing file is replaced at the end."""
        arrays = {**vars(self), **{f"metric:{name}": x for name, x in self.metrics.items()}}
        del arrays["metrics"]
        with replacement(Path(path)) as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Landscape":
        """Reads a file that :meth:`save` wrote."""
        with np.load(path) as file:
            arrays = dict(file)
        names = [name for name in arrays if name.startswith("metric:")]
        metrics = {name.removeprefix("metric:"): arrays.pop(name) for name in names}
        return Landscape(metrics=metrics, **arrays)

    def _picture(self, metric: str) -> Picture:
        return Picture(
            self.learning_rates,
            self.weight_decays,
            self.mean(metric),
            np.logical_not(np.isfinite(self._values(metric)).all(-1)),
            self._ranked(metric),
            self._sentence(metric),
            metric,
        )

    def _valley(self, metric: str) -> list[tuple[float, float]]:
        """The best decay of each rate; empty where `valley_slope` raises."""
        try:
            found = self.valley_slope(metric)
        except ValueError:
            return []
        return list(zip(found.learning_rates, found.weight_decays, strict=True))

    def _cost(self, metric: str) -> str:
        """The cost of tuning one after the other; "" where `tuning_cost` raises."""
        try:
            found = tuning_cost(self, metric)
        except ValueError:
            return ""
        decay, rate = (number(x.worst.value) for x in (found.decay_first, found.rate_first))
        return f"cost of tuning one after the other: {decay} (decay first), {rate} (rate first)"

    def _ranked(self, metric: str) -> list[tuple[int, int]]:
        values = self._values(metric)
        mean = tied(np.where(np.isfinite(values).all(-1), self.mean(metric), np.inf))
        order = np.argsort(mean, axis=None, kind="stable")[: np.isfinite(mean).sum()]
        return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, mean.shape), strict=True)]

    def _values(self, metric: str) -> np.ndarray:
        if metric not in self.metrics:
            names = ", ".join(map(repr, self.metrics))
            raise ValueError(f"metric={metric!r} is not in this landscape; it has {names}.")
        return np.asarray(self.metrics[metric], np.float64)
