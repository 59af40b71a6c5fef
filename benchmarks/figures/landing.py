"""What does decoupling change? The picture of the first page, from the committed landscapes.

Usage: python -m benchmarks.figures.landing [--out DIR]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.readings import slope_text

PANELS = {
    "SGD+L2": ("With L2 the best decay moves with the rate", "L2 coefficient λ′ (SGD+L2)"),
    "SGDW": ("Decoupled it moves far less", "weight decay λ (SGDW)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    record = json.loads((RESULTS / "figure2_digits.json").read_text())
    draw(record, parser.parse_args().out / "landing.png")


def draw(record: dict[str, Any], path: Path) -> None:
    optimizers = record["networks"]["batch norm"]["optimizers"]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained", sharey=True)
    lowest = min(_mean(optimizers[name]).min() for name in PANELS)
    for ax, (name, (title, decay)) in zip(axes, PANELS.items(), strict=True):
        x = optimizers[name]
        rates, decays = x["learning_rates"], x["weight_decays"]
        ax.pcolormesh(
            *map(_edges, (decays, rates)), _mean(x), cmap="viridis_r", vmin=lowest, vmax=2 * lowest
        )
        valley = x["valley_slope"]
        if valley:
            line = valley["weight_decays"], valley["learning_rates"]
            ax.plot(*line, "o-", color="red", label=f"best of each rate, slope {slope_text(x)}")
            ax.legend(loc="lower left", fontsize="small")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set(title=title, xlabel=decay)
    axes[0].set_ylabel("learning rate")
    figure.colorbar(axes[0].collections[0], ax=axes, extend="max", label="test error (%)", pad=0.01)
    save(figure, path)


def _edges(axis: list[float]) -> np.ndarray:
    """Of cells a factor of two apart."""
    return np.array([*axis, 2 * axis[-1]]) / 2**0.5


def _mean(optimizer: dict[str, Any]) -> np.ndarray:
    """Over seeds, inf where one diverged."""
    mean = np.array(optimizer["error_percent"], float).mean(-1)
    return np.where(np.isfinite(mean), mean, 1e3)


if __name__ == "__main__":
    main()
