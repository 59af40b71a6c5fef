"""The result of `explain_weight_decay`: rows, warnings and their printed table."""

import dataclasses
import functools
import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import groups, table
from optax_decoupled._explain import picture
from optax_decoupled._explain.run import Run
from optax_decoupled._explain.verdict import Findings
from optax_decoupled._select.names import named_leaves

Kind = Literal[
    "none", "decoupled", "cautious", "toward", "nonlinear", "coupled", "growing", "constrained"
]
# Kinds that shrink a parameter, or its distance from the reference of `toward`.
DECAYING = ("decoupled", "cautious", "toward", "nonlinear", "coupled")

_HEADER = ("parameter", "n", "shape", "kind", "decay", "half-life (updates)")
_HEADER_OF_RUN = (*_HEADER[:-1], "half-life", "budget", "left")
_SIDES = "<><<>>>>"


@dataclasses.dataclass(frozen=True, eq=False)
class DecayRow:
    r"""The weight decay of one parameter.

    Attributes:
      path: the parameter's keys, joined by ``/``.
      shape: its shape.
      dtype: its dtype.
      kind: ``"none"``; ``"decoupled"``: one fraction of every element, or of each element one
        of its own, whatever the gradients; ``"cautious"``: the same, of the elements that the
        gradients let decay;
        ``"toward"``: one fraction of the difference from something other than 0, which
        the state keeps; ``"nonlinear"``: depends on no gradient, but is not one fraction
        (L1, a clipped or target-norm decay); ``"coupled"``:
        passes through momentum, preconditioner or a trust ratio, so that the fraction
        depends on the gradients; ``"growing"``: the wrong sign; ``"constrained"``: the
        update holds the norm fixed.
      decay_per_step: the fraction of the parameter removed by one update that moves it
        (dimensionless): 0.0 for ``"none"`` and ``"constrained"``, negative for
        ``"growing"``, the mean over elements for ``"coupled"`` and ``"nonlinear"``, of the
        elements that decay for ``"cautious"``, the mean where ``decay_range`` is given.
      half_life: calls of ``tx.update`` until decay alone has halved the parameter,
        :math:`n \ln 2 / -\ln(1 - c)` where every n-th call moves it; infinite where
        nothing is removed. Where momentum repeats a decay, :math:`c` is what each of many
        updates removes; NaN if that depends on their gradients, as with Adam's moments,
        or on the step, or on the size of the parameter, or if the momentum outlasts the
        decay.
      lost_to_rounding: whether decay alone changes nothing, because :math:`(1 - c) θ`
        rounds back to :math:`θ` in the parameter's dtype, or in a wider one if the update
        is made of a copy that the optimizer's state keeps; for every element, where
        ``decay_range`` is given.
      budget: the sum of the fractions over the run, if ``steps`` is given; of the elements
        that decay for ``"cautious"``. NaN where they depend on the gradients or the size of
        the parameter, and where nothing moves.
      left: the part of an initial parameter that decay alone leaves, or of the difference
        for ``"toward"``.
      decay_range: the lowest and the highest fraction, where elements have fractions of their
        own, as under an array of multipliers; else None. ``half_life``, ``budget`` and ``left``
        are then of the mean fraction. Of a large parameter it is that of a sample, with the
        first and the last places of each axis.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    kind: Kind
    decay_per_step: float
    half_life: float
    lost_to_rounding: bool
    budget: float = math.nan
    left: float = math.nan
    decay_range: tuple[float, float] | None = None

    @property
    def highest(self) -> float:
        """The highest fraction of an element: the end of ``decay_range``, if there is one."""
        return self.decay_per_step if self.decay_range is None else self.decay_range[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecayRow) and repr(self) == repr(other)  # NaN equals NaN

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclasses.dataclass(frozen=True, repr=False)
class DecayReport:
    """The weight decay of every parameter; ``print`` it, or use it as data.

    In the printed table names that would read the same end in their index in ``rows``.

    Attributes:
      rows: one :class:`~optax_decoupled.types.DecayRow` for each parameter, in the tree's order.
      warnings: what is probably wrong, each a sentence or two with the way out.
      notes: how the numbers were measured, where that is not obvious.
      steps: the length of the run, if ``budget`` and ``left`` were asked for.
    """

    rows: tuple[DecayRow, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: int | None = None

    def check(self) -> None:
        """Raises if there is any warning, for use in tests and launch scripts.

        Raises:
          ValueError: listing ``warnings``.
        """
        if self.warnings:
            raise ValueError("\n".join(("The weight decay looks wrong:", *self.warnings)))

    def __str__(self) -> str:
        title = textwrap.fill(self._title(), table.WIDTH)
        remarks = [("! ", text) for text in self.warnings] + [("  ", text) for text in self.notes]
        wrapped = [table.filled(text, mark) for mark, text in remarks]
        lines = table.table(*self._table(), elastic=2)
        return "\n".join([title, *wrapped, "", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        warnings = [f"Warning: {text}" for text in self.warnings]
        return table.as_html(self._title(), [*warnings, *self.notes], [self._table()])

    def plot(self, ax: Any = None) -> Any:
        """Draws a bar for each line of the table: its half-life, in the colour of its kind.

        Args:
          ax: Matplotlib axes, or None for a new figure.

        Returns:
          The axes. Parameters that do not decay have a label and no bar.

        Raises:
          ImportError: without Matplotlib.
        """
        return picture.draw(self.rows, ax)

    def _title(self) -> str:
        decaying = [row for row in self.rows if row.kind in DECAYING]
        counts = f"{len(decaying)} of {len(self.rows)} parameters decay"
        sizes = f"{_weights(decaying):,} of {_weights(self.rows):,} weights"
        return f"Weight decay: {counts} ({sizes})."

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
        return _table(self.rows, self.steps)


def make_rows(
    params: optax.Params, kept_as: Sequence[Any], found: Findings, run: Run | None
) -> tuple[DecayRow, ...]:
    """A row for each parameter; `kept_as` are the dtypes in which the optimizer keeps them."""
    leaves = named_leaves(params)[0]
    unknown = np.full(len(leaves), math.nan)
    of_run = (unknown, unknown) if run is None else (run.budget, run.left)
    columns = (
        x.tolist() for x in (found.kind, found.fraction, found.steady, *of_run, found.spread.T)
    )
    return tuple(
        DecayRow(
            path="/".join(path),
            shape=jnp.shape(leaf),
            dtype=jnp.result_type(leaf),
            kind=kind,
            decay_per_step=decay,
            half_life=found.period * _half_life(steady),
            lost_to_rounding=_is_lost(steady if math.isnan(ends[1]) else ends[1], dtype),
            budget=budget,
            left=left,
            decay_range=None if math.isnan(ends[0]) else (ends[0], ends[1]),
        )
        for (path, leaf), dtype, kind, decay, steady, budget, left, ends in zip(
            leaves, kept_as, *columns, strict=True
        )
    )


def smallest_change(dtype: Any) -> float:
    """Below this c, (1 − c)·p rounds back to p for every p: a quarter of eps.

    Just above a power of two the floats lie eps·p apart, just below it eps·p/2, and half
    of the smaller gap is where rounding to nearest turns.
    """
    return float(jnp.finfo(dtype).eps) / 4


def _is_lost(decay: float, dtype: Any) -> bool:
    return decay != 0.0 and abs(decay) < smallest_change(dtype)


def _half_life(decay: float) -> float:
    if decay <= 0.0:
        return math.inf
    return 0.0 if decay >= 1.0 else math.log(2) / -math.log1p(-decay)


def _weights(rows: Sequence[DecayRow]) -> int:
    return sum(math.prod(row.shape) for row in rows)


def _table(
    rows: Sequence[DecayRow], steps: int | None
) -> tuple[Sequence[str], Sequence[Sequence[str]], str]:
    cells_of = [_cells(row, steps) for row in rows]
    lines = list(groups.alike([row.path for row in rows], cells_of))
    names = groups.distinct([name for _, name in lines], [part[0] for part, _ in lines])
    header = _HEADER if steps is None else _HEADER_OF_RUN
    cells = [
        (name, str(len(part)), *cells_of[part[0]])
        for name, (part, _) in zip(names, lines, strict=True)
    ]
    return header, cells, _SIDES[: len(header)]


def _cells(row: DecayRow, steps: int | None) -> tuple[str, ...]:
    """All but the name and the number of parameters."""
    decays, dtype = row.kind not in ("none", "constrained"), _short_name(row.dtype)
    of_run = decays or row.budget != 0.0
    life = "lost" if row.lost_to_rounding else table.number_of_steps(row.half_life, "varies")
    return (
        table.shortened("x".join(map(str, row.shape)) or "scalar", 16 - len(dtype)) + dtype,
        row.kind,
        _decay(row) if decays else "",
        life if decays else "",
        *(() if steps is None else map(_amount, (row.budget, row.left)) if of_run else ("", "")),
    )


def _decay(row: DecayRow) -> str:
    if row.decay_range is None:
        return f"{row.decay_per_step:.2e}"
    return "..".join(f"{c:.1e}" if c else "0" for c in row.decay_range)


@functools.cache
def _short_name(dtype: Any) -> str:
    """Of a dtype, after a space; nothing for float32."""
    name = jnp.dtype(dtype).name.replace("float", "f").replace("uint", "u").replace("int", "i")
    return "" if name == "f32" else f" {name}"


def _amount(x: float) -> str:
    """In seven characters, eight with a sign and an exponent."""
    if math.isnan(x):
        return "varies"
    return text if len(text := f"{x:.3g}") <= 7 else f"{x:.2g}"
