"""Drawings of a landscape: a Matplotlib heatmap, and an HTML table for notebooks."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_decoupled._common.extras import import_extra
from optax_decoupled.sweep._landscape.numbers import number

# Matplotlib's classes; Matplotlib is an extra.
Axes = Any
Axis = Any


class Picture(NamedTuple):
    """One metric of a landscape, prepared for drawing."""

    learning_rates: np.ndarray  # [L], the rows
    weight_decays: np.ndarray  # [W], the columns
    mean: np.ndarray  # [L, W], NaN where every seed diverged
    diverged: np.ndarray  # [L, W], whether any seed diverged
    ranked: Sequence[tuple[int, int]]  # the cells where no seed diverged, the best first
    title: str  # the best cell in words
    label: str  # the metric's name
    valley: Sequence[tuple[float, float]] = ()  # rates and the best decay of each, where found
    note: str = ""  # below the name of the horizontal axis


def draw(
    picture: Picture,
    ax: Axes,
    vmin: float | None,
    vmax: float | None,
    mark: int | None,
    colorbar: bool,
) -> Axes:
    """See :meth:`Landscape.plot`."""
    plt = import_extra("matplotlib.pyplot")
    mean, ranked = picture.mean, picture.ranked
    best = mean[ranked[0]]
    vmin = best if vmin is None else vmin
    vmax = max(float(np.nanmedian(mean)), 2 * best) if vmax is None else vmax
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    ax.patch.set(facecolor="0.85", hatch="////", edgecolor="0.6")
    image = ax.imshow(mean, origin="lower", aspect="auto", cmap="viridis_r", vmin=vmin, vmax=vmax)
    mark = max(1, min(10, mean.size // 10)) if mark is None else mark
    _mark(ax, np.argwhere(np.isfinite(mean) & picture.diverged), "x", color="white", ms=5)
    _mark(ax, np.array(ranked[1:mark]), "o", color="black", ms=3.5)
    _mark(ax, np.array(ranked[:1]), "*", color="black", ms=11)
    _label_axis(ax.xaxis, picture.weight_decays, 7)
    _label_axis(ax.yaxis, picture.learning_rates, 9)
    _draw_valley(ax, picture)
    ax.set(ylabel="learning rate", title=picture.title)
    ax.set_xlabel("\n".join(filter(None, ("weight decay", picture.note))))
    if colorbar:
        extend = "max" if np.nanmax(mean) > vmax else "neither"
        ax.figure.colorbar(image, ax=ax, label=picture.label, extend=extend)
    return ax


def _draw_valley(ax: Axes, picture: Picture) -> None:
    """A line through the best decay of each rate, with a gap where it is not located."""
    decays, places = picture.weight_decays, np.arange(len(picture.weight_decays))
    columns = np.full(len(picture.learning_rates), np.nan)
    for rate, decay in picture.valley:
        row = np.searchsorted(picture.learning_rates, rate)
        columns[row] = np.interp(np.log2(decay), np.log2(decays), places)
    if picture.valley:
        rows = np.arange(len(columns))
        ax.plot(columns, rows, "-o", color="tab:red", lw=2, ms=3, alpha=0.8, zorder=1)


def table(picture: Picture) -> str:
    """An HTML table of the means. The highest learning rate is on top, and the best is bold."""
    cell = lambda tag, text: f"<{tag}>{text}</{tag}>"
    head = ["rate \\ decay", *map(number, picture.weight_decays)]
    rows = ["".join(cell("th", text) for text in head)]
    for i in reversed(range(len(picture.learning_rates))):
        texts = ["diverged" if np.isnan(x) else number(x) for x in picture.mean[i]]
        tags = ["b" if (i, j) in picture.ranked[:1] else "span" for j in range(len(texts))]
        cells = "".join(cell("td", cell(*pair)) for pair in zip(tags, texts, strict=True))
        rows.append(cell("th", number(picture.learning_rates[i])) + cells)
    caption = cell("caption", html.escape(f"{picture.label}: {picture.title}"))
    return cell("table", caption + "".join(cell("tr", row) for row in rows))


def _mark(ax: Axes, cells: np.ndarray, marker: str, **style: str | float) -> None:
    rows, columns = cells.reshape(-1, 2).T
    ax.plot(columns, rows, marker, linestyle="none", **style)


def _label_axis(axis: Axis, values: np.ndarray, most: int) -> None:
    """Sets at most `most` ticks, at the centres of cells, as powers of 2 if all values are."""
    mantissas, exponents = np.frexp(values)
    powers = np.all(mantissas == 0.5)
    labels = [f"$2^{{{k - 1}}}$" for k in exponents] if powers else [f"{x:.2g}" for x in values]
    stride = -(-len(values) // most)
    axis.set_ticks(range(0, len(values), stride), labels[::stride])
