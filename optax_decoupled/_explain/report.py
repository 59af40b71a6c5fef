"""What `explain_weight_decay` returns: rows, warnings and their printed table."""

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

Kind = Literal["none", "decoupled", "coupled", "growing"]

WIDTH = 100
_MAX_LINES = 40
_TAIL = 8
_INTEGER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class DecayRow:
    r"""The weight decay of one parameter.

    Attributes:
      path: the parameter's keys, joined by ``/``.
      shape: its shape.
      dtype: its dtype.
      kind: ``"none"``; ``"decoupled"``: one fraction of every element, whatever the
        gradients; ``"coupled"``: passes through momentum, preconditioner or a trust
        ratio, so that the fraction depends on the gradients; ``"growing"``: the wrong
        sign.
      decay_per_step: the fraction of the parameter removed by one update
        (dimensionless): 0.0 for ``"none"``, negative for ``"growing"``, the mean over
        elements for ``"coupled"`` and for cautious decay.
      half_life: updates until decay alone has halved the parameter,
        :math:`\ln 2 / -\ln(1 - c)`; infinite where nothing is removed. Where momentum
        repeats a decay, :math:`c` is what each of many updates removes; NaN if that
        depends on their gradients, as with Adam's moments, or on the step, or if the
        momentum outlasts the decay.
      lost_to_rounding: whether decay alone changes nothing, because :math:`(1 - c) θ`
        rounds back to :math:`θ` in the parameter's dtype, or in a wider one if the update
        is made of a copy that the optimizer's state keeps.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    kind: Kind
    decay_per_step: float
    half_life: float
    lost_to_rounding: bool


@dataclasses.dataclass(frozen=True)
class DecayReport:
    """The weight decay of every parameter; ``print`` it, or use it as data.

    Attributes:
      rows: one :class:`DecayRow` for each parameter, in the order of the tree.
      warnings: what is probably wrong, each a sentence or two with the way out.
      notes: how the numbers were measured, where that is not obvious.
    """

    rows: tuple[DecayRow, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises if there is any warning, for use in tests and launch scripts.

        Raises:
          ValueError: listing ``warnings``.
        """
        if self.warnings:
            raise ValueError("\n".join(("The weight decay looks wrong:", *self.warnings)))

    def __str__(self) -> str:
        decaying = [row for row in self.rows if row.kind in ("decoupled", "coupled")]
        counts = f"{len(decaying)} of {len(self.rows)} parameters decay"
        sizes = f"{_weights(decaying):,} of {_weights(self.rows):,} weights"
        title = f"Weight decay: {counts} ({sizes})."
        remarks = [("! ", text) for text in self.warnings] + [("  ", text) for text in self.notes]
        wrapped = [
            textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent="  ")
            for mark, text in remarks
        ]
        return "\n".join([title, *wrapped, "", *_table(self.rows)])


def make_row(
    path: str, leaf: Any, kept_as: Any, kind: Any, decay: float, steady: float
) -> DecayRow:
    """A row from what one update removes and what each of many does (NaN if that varies).

    `kept_as` is the dtype in which the optimizer keeps the parameter.
    """
    dtype, lost = jnp.result_type(leaf), _lost(steady, kept_as)
    return DecayRow(path, jnp.shape(leaf), dtype, kind, decay, half_life(steady), lost)


def smallest_change(dtype: Any) -> float:
    """Below this c, (1 − c)·p rounds back to p for every p: a quarter of eps.

    Just above a power of two the floats lie eps·p apart, just below it eps·p/2, and half
    of the smaller gap is where rounding to nearest turns.
    """
    return float(jnp.finfo(dtype).eps) / 4


def _lost(decay: float, dtype: Any) -> bool:
    return decay != 0.0 and abs(decay) < smallest_change(dtype)


def half_life(decay: float) -> float:
    if math.isnan(decay):
        return math.nan
    if decay <= 0.0:
        return math.inf
    return math.log(2) / -math.log1p(-decay) if decay < 1.0 else 0.0


def _weights(rows: Sequence[DecayRow]) -> int:
    return sum(math.prod(row.shape) for row in rows)


def _table(rows: Sequence[DecayRow]) -> list[str]:
    groups: dict[tuple[Any, ...], list[DecayRow]] = {}
    for row in rows:
        template = _INTEGER.sub("#", row.path)
        rate = f"{row.decay_per_step:.2e}"
        life = _steps(row.half_life)
        key = (template, row.shape, row.dtype, row.kind, rate, life, row.lost_to_rounding)
        groups.setdefault(key, []).append(row)
    header = ("parameter", "count", "shape", "dtype", "kind", "per update", "half-life", "")
    cells = [_cells(group) for group in groups.values()]
    if len(cells) > _MAX_LINES:
        skipped = len(cells) - _MAX_LINES
        gap = (f"... {skipped} more lines ...", *[""] * (len(header) - 1))
        cells = [*cells[: _MAX_LINES - _TAIL], gap, *cells[-_TAIL:]]
    lines = [header, *cells]
    return _aligned(lines if any(row.lost_to_rounding for row in rows) else [x[:-1] for x in lines])


def _cells(group: Sequence[DecayRow]) -> tuple[str, ...]:
    row = group[0]
    decays = row.kind != "none"
    return (
        _merged([row.path for row in group]) or "(the array)",
        str(len(group)),
        _shortened("x".join(map(str, row.shape)) or "scalar", 16),
        _shortened(str(row.dtype), 9),
        row.kind,
        f"{row.decay_per_step:.2e}" if decays else "",
        _steps(row.half_life) if decays else "",
        "lost" if row.lost_to_rounding else "",
    )


def _merged(paths: Sequence[str]) -> str:
    """Paths that differ only in their integers as one: ``layers/{0..11}/kernel``."""
    columns = zip(*(_INTEGER.findall(path) for path in paths), strict=True)
    slots = [sorted(set(column), key=lambda digits: (int(digits), digits)) for column in columns]
    texts = iter(slot[0] if len(slot) == 1 else _span(slot) for slot in slots)
    return _INTEGER.sub(lambda _: next(texts), paths[0])


def _span(digits: Sequence[str]) -> str:
    contiguous = int(digits[-1]) - int(digits[0]) == len(digits) - 1
    if len(digits) > 3 or (contiguous and len(digits) > 2):
        return f"{{{digits[0]}{'..' if contiguous else ',..,'}{digits[-1]}}}"
    return f"{{{','.join(digits)}}}"


def _steps(half_life: float) -> str:
    if math.isnan(half_life):
        return "varies"
    if math.isinf(half_life):
        return "never"
    return f"{half_life:,.0f}" if half_life < 1e7 else f"{half_life:.1e}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    gap = "  "
    rest = sum(widths[1:]) + len(gap) * (len(widths) - 1)
    widths[0] = max(16, min(widths[0], WIDTH - rest))
    right = {1, 5, 6}
    return [
        gap.join(
            _shortened(cell, width).rjust(width)
            if i in right
            else _shortened(cell, width).ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return text[:head] + ".." + text[len(text) - (width - 2 - head) :]
