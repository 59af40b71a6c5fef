"""A weight history as three panels over the run: rms, rotation and ratio."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from optax_decoupled._common import groups
from optax_decoupled._common.extras import COLOURS, import_extra
from optax_decoupled._watch.row import WeightHistoryRow as Row

_STYLES = ("-", "--", ":", "-.")
_LEGEND = 14


def draw(steps: np.ndarray, rows: Sequence[Row], axes: Any) -> Any:
    """See :meth:`WeightHistory.plot`."""
    plt = import_extra("matplotlib.pyplot")
    if axes is None:
        _, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharex=True)
    parts = list(groups.alike([row.path for row in rows], [(row.shape, row.dtype) for row in rows]))
    for i, (part, name) in enumerate(parts):
        members = [rows[j] for j in part]
        style = {"color": COLOURS[i % 7], "ls": _STYLES[i // 7 % 4], "lw": 1.6}
        label = name if len(part) == 1 else f"{name} (median of {len(part)})"
        axes[0].plot(steps, _median(members, "rms"), label=label, **style)
        axes[1].plot(steps, _median(members, "rotation"), label=label, **style)
        if np.any(members[0].removed > 0):  # a ratio says nothing about a weight without decay
            axes[2].plot(steps, np.median([_ratio(row) for row in members], axis=0), **style)
        axes[0].plot(steps, _median(members, "predicted_rms"), **{**style, "lw": 0.7, "alpha": 0.6})
    _decorate(axes, len(parts), steps)
    return axes


def _median(rows: Sequence[Row], field: str) -> np.ndarray:
    return np.median([getattr(row, field) for row in rows], axis=0)


def _ratio(row: Row) -> np.ndarray:
    """The ratio of the sums over a sixteenth of the run around each interval."""
    weights = row.rms**2 * row.injected
    kernel = np.ones(max(len(weights) // 16, 1))
    sums = (np.convolve(x, kernel, mode="same") for x in (row.ratio * weights, weights))
    return np.divide(*sums)


def _decorate(axes: Any, lines: int, steps: np.ndarray) -> None:
    titles = ("rms (thin: predicted for noise)", "rotation per update (radians)", "ratio")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="updates")
        ax.grid(alpha=0.25)
    for ax in axes[:2]:
        if any(np.max(line.get_ydata(), initial=0) > 0 for line in ax.lines):
            ax.set_yscale("log")
    if not axes[2].lines:
        axes[2].set_visible(False)
    else:
        axes[2].axhspan(1 / 1.4, 1.4, color="0.5", alpha=0.2, lw=0)
        axes[2].axhline(1, color="0.5", lw=0.8)
        axes[2].set_yscale("symlog", linthresh=1)
        axes[2].set_title("ratio (grey: held by noise)")
    if lines <= _LEGEND:
        axes[0].legend(fontsize="x-small", framealpha=0.6)
    else:
        axes[0].figure.suptitle(f"{lines} groups of weights", fontsize="small")
