"""A report as bars: the half-life of each group of parameters, in the colour of its kind."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

from optax_decoupled._common import groups, table
from optax_decoupled._common.extras import COLOURS, import_extra

_COLOURS: dict[str, str] = dict(
    zip(
        ("decoupled", "coupled", "toward", "growing", "cautious", "nonlinear", "constrained"),
        COLOURS,
        strict=True,
    )
)
# Bars that can be read; of more the longest half-lives are left out.
_MOST = 40


class Row(Protocol):
    """The part of a report's row that is drawn."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def half_life(self) -> float: ...


def draw(rows: Sequence[Row], ax: Any) -> Any:
    """See :meth:`DecayReport.plot`."""
    contents = [(row.kind, f"{row.half_life:.2g}") for row in rows]
    lines = [(name, rows[part[0]]) for part, name in groups.alike([r.path for r in rows], contents)]
    skipped = len(lines) - _MOST
    if skipped > 0:
        lines = sorted(lines, key=lambda line: line[1].half_life)[:_MOST]
    if ax is None:
        plt = import_extra("matplotlib.pyplot")
        size = (7, 1.2 + 0.24 * len(lines))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    for i, (_, row) in enumerate(lines):
        _bar(ax, i, row)
    ax.set_yticks(range(len(lines)), [table.shortened(name, 44) for name, _ in lines], fontsize=8)
    ax.set(ylim=(len(lines) - 0.4, -0.6), xscale="log", xlabel="half-life (updates)")
    ax.set_xlim(left=1)
    if skipped > 0:
        ax.set_title(f"not shown, with longer half-lives: {skipped}", fontsize=9)
    _legend(ax, {row.kind for _, row in lines})
    return ax


def _bar(ax: Any, place: int, row: Row) -> None:
    if math.isfinite(row.half_life) and row.half_life > 0:
        ax.barh(place, row.half_life, color=_COLOURS.get(row.kind, "0.6"), height=0.7)
        return
    text = "varies" if math.isnan(row.half_life) else row.kind
    colour = _COLOURS.get(row.kind, "0.4")
    ax.annotate(
        "no decay" if row.kind == "none" else text,
        (0.01, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=colour,
    )


def _legend(ax: Any, kinds: set[str]) -> None:
    drawn = [kind for kind in _COLOURS if kind in kinds]
    handles = [ax.barh(0, 0, color=_COLOURS[kind], label=kind) for kind in drawn]
    if handles:
        ax.legend(handles=handles, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=4)
