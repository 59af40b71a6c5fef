"""A weight history as text of at most 80 columns: advice, then a line for each group of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_decoupled._common import groups, table

if TYPE_CHECKING:
    from optax_decoupled._watch.history import WeightHistoryRow as Row

_HEADER = ("weight", "n", "rms", "rotation", "% per 1,000", "ratio", "verdict")
_SIDES = "<>>>>><"
_NAMES = 3


def text(steps: np.ndarray, interval: int, rows: Sequence[Row]) -> str:
    if not len(steps):
        return "Weight history: no interval yet; it begins with the second update."
    title = (
        f"Weight history: {len(rows)} weights, {steps[-1]:,} updates, "
        f"{len(steps)} intervals of {interval:,}."
    )
    remarks = [table.filled(line, "  ") for line in advice(steps, rows)]
    return "\n".join([title, *remarks, "", *_table(rows)])


def as_html(text: str) -> str:
    return table.preformatted(text)


def last_quarter(values: np.ndarray) -> float:
    """The mean over the last quarter of the intervals."""
    return float(np.mean(values[-max(len(values) // 4, 1) :]))


def ratio_of_half(row: Row) -> float:
    """Alignment over injection of the last half of the run, over that of noise."""
    half = slice(len(row.rms) // 2, None)
    weights = (row.rms**2 * row.injected)[half]
    return float(np.sum(row.ratio[half] * weights) / np.sum(weights))


def percent(row: Row) -> float:
    """The change of the rms in 1,000 updates at the recent rate, in percent."""
    return 100 * np.expm1(500 * np.log1p(last_quarter(row.growth)))


def advice(steps: np.ndarray, rows: Sequence[Row]) -> Iterator[str]:
    """At most five sentences, each with its number."""
    of = lambda kind: [row for row in rows if row.kind == kind]
    if lost := of("lost"):
        share = np.mean([last_quarter(row.unchanged) for row in lost])
        yield (
            f"Lost to rounding: {_these(lost)}: {share:.1%} of the elements stay the same at an "
            "update that is not 0. Keep these weights in float32, or apply the updates with "
            "apply_updates_with_stochastic_rounding."
        )
    if alone := of("only decays"):
        lowest = min(map(percent, alone))
        yield (
            f"Only decays, by up to {-lowest:.2g} % in 1,000 updates: {_these(alone)}. No gradient "
            "reaches these weights. Check that the loss uses them, or mask them."
        )
    if growing := of("growing"):
        yield f"Still growing: {_these(growing)}. {_outlook(steps, growing)}"
    for holder, meaning in (
        ("noise", "decay sets their rotation and the learning rate their length"),
        ("the loss", "decay changes their length"),
    ):
        if held := [row for row in rows if row.held_by == holder]:
            ratio = np.median([ratio_of_half(row) for row in held])
            yield f"Held by {holder} (median ratio {ratio:.2f}): {_these(held)}; {meaning}."
    if np.isnan([row.removed[-1] for row in rows]).all():
        yield "Pass weight_decay= (and schedule=) to see what holds each weight."


def _outlook(steps: np.ndarray, growing: Sequence[Row]) -> str:
    removed = max(last_quarter(row.removed) for row in growing)
    if not removed > 0:
        return "Without decay, or if it is not known, nothing says where that ends."
    relaxation = 1 / removed
    if relaxation > steps[-1] / 3:
        return (
            f"Their decay takes {relaxation:,.0f} updates to balance growth, and the run has "
            f"{steps[-1]:,}: use a larger decay or a longer run if they are to settle."
        )
    return f"Their decay balances growth within {relaxation:,.0f} updates, so the updates grow."


def _these(rows: Sequence[Row]) -> str:
    names = [name for _, name in groups.alike([row.path for row in rows], [0] * len(rows))]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _table(rows: Sequence[Row]) -> list[str]:
    verdicts = [_verdict(row) for row in rows]
    shapes = [(row.shape, row.dtype) for row in rows]
    contents = list(zip(verdicts, shapes, strict=True))
    lines = list(groups.alike([row.path for row in rows], contents))
    names = groups.distinct([name for _, name in lines], [part[0] for part, _ in lines])
    cells = [
        (name, str(len(part)), *_numbers([rows[i] for i in part]), verdicts[part[0]])
        for name, (part, _) in zip(names, lines, strict=True)
    ]
    return table.table(_HEADER, cells, _SIDES)


def _numbers(rows: Sequence[Row]) -> tuple[str, ...]:
    """The medians of a group's weights."""
    median = lambda of: float(np.median([of(row) for row in rows]))
    ratio = median(ratio_of_half)
    return (
        f"{median(lambda row: row.rms[-1]):.3g}",
        f"{median(lambda row: last_quarter(row.rotation)):.2g}",
        f"{median(percent):+.2g}",
        "" if np.isnan(ratio) else f"{ratio:.2f}",
    )


def _verdict(row: Row) -> str:
    if row.kind == "settled":
        return f"settled, {row.held_by}" if row.held_by else "settled"
    names = {"growing": "still growing", "lost": "lost to rounding"}
    return names.get(row.kind, row.kind)
