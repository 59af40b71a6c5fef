"""A weight history as text of at most 80 columns: advice, then a line for each group of weights."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from optax_decoupled._common import groups, table
from optax_decoupled._watch.row import WeightHistoryRow as Row
from optax_decoupled._watch.verdict import trend

_HEADER = ("weight", "n", "rms", "/pred.", "rotation", "%/quarter", "ratio", "verdict")
_SIDES = "<>>>>>><"
_PREDICTED, _RATIO = _HEADER.index("/pred."), _HEADER.index("ratio")
_REMARKS = 5
_NAMES = 3
_NOTHING = "Weight history: no interval yet; it begins with the second update."
_MEANINGS = {
    "noise": "Decay sets how far an update turns these weights.",
    "the loss": "Decay changes the length of these weights.",
}


def text(steps: np.ndarray, interval: int, rows: Sequence[Row]) -> str:
    if not len(steps):
        return _NOTHING
    remarks = [table.filled(line, "  ") for line in _first(advice(steps, interval, rows))]
    lines = table.table(*_table(rows))
    return "\n".join([_title(steps, interval, rows), *remarks, "", *lines])


def as_html(steps: np.ndarray, interval: int, rows: Sequence[Row]) -> str:
    if not len(steps):
        return f"<p>{_NOTHING}</p>"
    remarks = list(_first(advice(steps, interval, rows)))
    return table.as_html(_title(steps, interval, rows), remarks, [_table(rows)])


def _first(remarks: Iterator[str]) -> Iterator[str]:
    return itertools.islice(remarks, _REMARKS)


def _title(steps: np.ndarray, interval: int, rows: Sequence[Row]) -> str:
    return (
        f"Weight history: {len(rows)} weights, {steps[-1]:,} updates, "
        f"{len(steps)} intervals of {interval:,}."
    )


def last_quarter(values: np.ndarray) -> float:
    """The mean over the last quarter of the intervals."""
    return float(np.mean(values[-max(len(values) // 4, 1) :]))


def percent(row: Row) -> float:
    """The change of the rms from the quarter of the run before the last to the last."""
    return 100 * float(np.expm1(trend(row.rms)))


def advice(steps: np.ndarray, interval: int, rows: Sequence[Row]) -> Iterator[str]:
    """A few remarks, each with its number."""
    of = lambda kind: [row for row in rows if row.kind == kind]
    if lost := of("lost"):
        share = np.mean([last_quarter(row.unchanged) for row in lost])
        yield (
            f"Lost to rounding: {_these(lost)}: {share:.1%} of the elements stay the same at an "
            "update that is not 0. Keep these weights in float32, or apply the updates with "
            "apply_updates_with_stochastic_rounding."
        )
    if wrong := of("not finite"):
        yield f"Not finite: {_these(wrong)}. These weights hold NaN or infinity."
    if alone := of("only decays"):
        known = last_quarter(alone[0].removed) > 0
        yield (
            f"Only decays: {_these(alone)}. "
            + (
                "No other update moves these weights. Check that the loss uses them, or mask them."
                if known
                else "These weights shrink and do not turn: by decay alone, or by a loss that "
                "pulls them to 0. Pass weight_decay= to tell."
            )
        )
    if growing := [row for row in of("growing") if last_quarter(row.removed) > 0]:
        yield f"Still growing: {_these(growing)}. {_outlook(steps, growing)}"
    for holder, meaning in _MEANINGS.items():
        if held := [row for row in rows if row.held_by == holder]:
            ratio = np.median([row.last_ratio for row in held])
            yield f"Held by {holder} (median ratio {ratio:.2f}): {_these(held)}. {meaning}"
    if np.isnan([row.removed[-1] for row in rows]).all():
        yield "Pass weight_decay= (and schedule=) to see what holds each weight."


def _outlook(steps: np.ndarray, growing: Sequence[Row]) -> str:
    relaxation = 1 / max(last_quarter(row.removed) for row in growing)
    if relaxation > steps[-1] / 3:
        return (
            f"Decay needs {relaxation:,.0f} updates to balance their growth, and the run has "
            f"{steps[-1]:,}. If they are to settle, use a larger decay or a longer run."
        )
    return (
        f"With updates of one size they would stop growing within {relaxation:,.0f} updates. So "
        "their updates increase, or point away from 0 more often."
    )


def _these(rows: Sequence[Row]) -> str:
    names = [name for _, name in groups.alike([row.path for row in rows], [0] * len(rows))]
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _table(rows: Sequence[Row]) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
    contents = [(row.kind, row.held_by, row.shape, row.dtype) for row in rows]
    lines = list(groups.alike([row.path for row in rows], contents))
    names = groups.distinct([name for _, name in lines], [part[0] for part, _ in lines])
    cells = [
        (name, str(len(part)), *_numbers([rows[i] for i in part]))
        for name, (part, _) in zip(names, lines, strict=True)
    ]
    empty = {i for i in (_PREDICTED, _RATIO) if not any(line[i] for line in cells)}
    kept = [i for i in range(len(_HEADER)) if i not in empty]
    pick = lambda line: [line[i] for i in kept]
    return pick(_HEADER), [pick(line) for line in cells], "".join(pick(_SIDES))


def _numbers(rows: Sequence[Row]) -> tuple[str, ...]:
    """The medians of a group's weights, and their verdict."""
    median = lambda of: float(np.median([of(row) for row in rows]))
    change = median(percent)
    with np.errstate(divide="ignore"):  # noise of a rate that is 0 so far
        predicted = median(lambda row: row.rms[-1] / row.predicted_rms[-1])
    ratio = median(lambda row: row.last_ratio) if np.any(rows[0].removed > 0) else np.nan
    return (
        f"{median(lambda row: row.rms[-1]):.3g}",
        "" if np.isnan(predicted) else f"{predicted:.2f}",
        f"{median(lambda row: last_quarter(row.rotation)):.2g}",
        "" if np.isnan(change) else f"{change:+.2g}" if abs(change) < 99.5 else f"{change:+,.0f}",
        "" if np.isnan(ratio) else f"{ratio:.2f}",
        _verdict(rows),
    )


def _verdict(rows: Sequence[Row]) -> str:
    """That of weights of one kind; they have settled when the last of them has."""
    kind, held_by = rows[0].kind, rows[0].held_by
    text = {"lost": "lost to rounding"}.get(kind, kind)
    if kind == "settled":
        text += f" at {_short(max(row.since or 0 for row in rows))}"
    return f"{text}, {held_by.removeprefix('the ')}" if held_by else text


def _short(updates: int) -> str:
    return f"{updates:,}" if updates < 10_000 else f"{updates / 1000:,.0f}k"
