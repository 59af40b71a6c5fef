"""How do the figures look? Landscapes as in the paper's Figures 1 and 2; colours; files."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.lib.landscapes import CONTESTANTS, Landscapes
from benchmarks.lib.readings import slope
from benchmarks.lib.rules import signed
from optax_decoupled.sweep import Landscape

matplotlib.use("agg")
COLORS = {
    "SGD+L2": "tab:gray",
    "SGDW": "tab:green",
    "SGDWR": "tab:olive",
    "Adam+L2": "tab:orange",
    "AdamW": "tab:blue",
    "AdamWR": "tab:purple",
}


def draw_landscapes(landscapes: Landscapes, titles: dict[str, str], path: Path) -> None:
    """A row of heatmaps for each group, under one colour scale; none for a single decay."""
    landscapes = {
        group: {name: x for name, x in row.items() if len(x.weight_decays) > 1}
        for group, row in landscapes.items()
    }
    widest = max(map(len, landscapes.values()))
    figure = plt.figure(figsize=(3.75 * widest, 4 * len(landscapes)), layout="constrained")
    parts = np.ravel(figure.subfigures(len(landscapes), 1, squeeze=False))
    for part, (group, row) in zip(parts, landscapes.items(), strict=True):
        best = min(x.best().mean for x in row.values())
        axes = part.subplots(1, len(row))
        for ax, (name, x) in zip(axes, row.items(), strict=True):
            x.plot(ax=ax, vmin=best, vmax=1.5 * best, title=_heading(name, x), colorbar=False)
            ax.set_xlabel(CONTESTANTS[name].decay_name)
            if ax is not axes[0]:
                ax.set_ylabel("")
        part.suptitle(titles[group], fontweight="bold")
        bar = part.colorbar(axes[0].images[0], ax=axes, extend="max", pad=0.01)
        bar.set_label("test error, mean over seeds (%)")
    note = "★ best cell, • the next best, × a seed diverged, red line: best decay at each rate"
    parts[-1].supxlabel(note, fontsize="small")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _heading(name: str, x: Landscape) -> str:
    found, best = slope(x), x.best()
    slope_part = "no valley found" if found is None else f"valley slope {signed(found.slope, 1)}"
    return f"{name}: {best.mean:.1f} ± {best.spread:.1f} %\n{slope_part}"
