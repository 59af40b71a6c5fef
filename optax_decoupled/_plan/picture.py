"""A plan as two panels over the run: what is left of an initial weight, and what is averaged."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from optax_decoupled._common.extras import COLOURS, import_extra


class Row(Protocol):
    """The part of a plan's row that is drawn."""

    @property
    def rule(self) -> str: ...
    @property
    def remaining(self) -> np.ndarray: ...
    @property
    def averaged(self) -> np.ndarray: ...


def draw(rows: Sequence[Row], steps: int, axes: Any) -> Any:
    """See :meth:`DecayPlan.plot`."""
    if axes is None:
        plt = import_extra("matplotlib.pyplot")
        _, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    colours = iter(COLOURS)
    for row in rows:
        yours = row.rule == "yours"
        style = {"color": "black" if yours else next(colours), "lw": 2.5 if yours else 1.3}
        x = np.linspace(0, steps, len(row.remaining)).round()
        for ax, values in zip(axes, (row.remaining, row.averaged), strict=True):
            ax.plot(x, values, label=row.rule, **style)
    axes[0].set(title="left of an initial weight", xlabel="update", ylim=(0, 1.02))
    axes[1].set(title="share of an update in the final weights", xlabel="update")
    axes[1].set_ylabel("relative to the mean")
    axes[0].legend(fontsize="small")
    for ax in axes:
        ax.grid(alpha=0.25)
    return axes
