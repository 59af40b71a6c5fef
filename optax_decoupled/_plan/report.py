"""The result of `plan_weight_decay`: rows, notes and their printed table."""

import dataclasses
import html
import math
from typing import Any

import numpy as np

from optax_decoupled._common import table
from optax_decoupled._plan import picture

_HEADER = (
    "rule",
    "per step",
    "PyTorch",
    "budget",
    "left",
    "timescale",
    "of run",
    "half-life",
    "rms",
    "rotation",
    "at most",
    "source",
)
# The columns of the two tables, and the sides to which they are aligned.
_PARTS = ((range(7), "<>>>>>>"), ((0, 7, 8, 9, 10, 11), "<>>>><"))


@dataclasses.dataclass(frozen=True)
class PlanRow:
    r"""One way to choose the decay of a run, and its effect over the run.

    Attributes:
      rule: ``"yours"``, or a short name of the rule.
      weight_decay: :math:`λ`, the fraction of a weight removed per full step; the largest
        of the run for a decay that moves.
      budget: :math:`Ω = \sum c_t` over the run.
      timescale: full steps over which the weights average, :math:`1/λ`; NaN if λ moves.
      half_life: full steps in which decay alone halves a weight; NaN if λ moves.
      left: :math:`\prod (1 - c_t)`, the share of an initial weight that the run leaves.
      pytorch: the value for PyTorch and Optax, :math:`λ/α`, for SGD with momentum
        :math:`λ(1 - m)/α`; NaN without a learning rate.
      rms: the predicted root mean square of a normalized layer's weight, at equilibrium of the
        full step; NaN without a learning rate, for SGD (it depends on the gradients) and if λ
        moves.
      rotation: the predicted angle per full step there, in radians.
      at_most: the bound of every element where AdamW converges, :math:`α/λ`, proved for full
        batches (arXiv:2404.04454); NaN without a learning rate, for SGD and if λ moves.
      source: where the rule was published.
      note: where the rule holds, and remarks on this run.
    """

    rule: str
    weight_decay: float
    budget: float
    timescale: float
    half_life: float
    left: float
    pytorch: float
    rms: float
    rotation: float
    at_most: float
    source: str
    note: str
    # At even distances over the run: the share of an initial weight that is left before an
    # update, and the update's share in the final weights over the mean of these shares.
    remaining: np.ndarray = dataclasses.field(repr=False, compare=False)
    averaged: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __str__(self) -> str:
        pairs = [f"{name} {cell}" for name, cell in zip(_HEADER[1:], _cells(self)[1:], strict=True)]
        return f"{self.rule}: " + ", ".join(pair for pair in pairs if not pair.endswith(" -"))

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


@dataclasses.dataclass(frozen=True)
class DecayPlan:
    """The values of published rules for a run; ``print`` it, or use it as data.

    Attributes:
      rows: one :class:`~optax_decoupled.types.PlanRow` for each rule, the caller's value first.
      steps: the length of the run.
      notes: the full steps of a schedule, where the rules disagree, and remarks on their rows.
    """

    rows: tuple[PlanRow, ...]
    steps: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        tables = [table.table(*part) for part in self._parts()]
        notes = list(map(table.filled, self.notes))
        return "\n\n".join(map("\n".join, ([self._title()], *tables, notes))).rstrip()

    def _repr_html_(self) -> str:
        return table.as_html(self._title(), self.notes, self._parts())

    def _title(self) -> str:
        return f"Weight decay over {self.steps:,} steps, as a fraction removed per full step."

    def _parts(self) -> list[tuple[list[str], list[list[str]], str]]:
        lines = [_HEADER, *(_cells(row, self.steps) for row in self.rows)]
        parts = []
        for columns, sides in _PARTS:
            header, *cells = ([line[i] for i in columns] for line in lines)
            parts.append((header, cells, sides))
        return parts

    def plot(self, axes: Any = None) -> Any:
        r"""Draws what each value leaves of an initial weight, and what it averages.

        The first panel is :math:`\prod_{s<t} (1 - c_s)`. The second is the share of each update
        in the final weights, :math:`η_t \prod_{s>t} (1 - c_s)`, over its mean: a decay makes of
        the weights an average of the last updates.

        Args:
          axes: two Matplotlib axes, or None for a new figure.

        Returns:
          The two axes.

        Raises:
          ImportError: without Matplotlib.
        """
        return picture.draw(self.rows, self.steps, axes)


def _cells(row: PlanRow, steps: int | None = None) -> tuple[str, ...]:
    share = math.nan if steps is None else row.timescale / steps
    return (
        row.rule,
        f"{row.weight_decay:.2e}",
        _figure(row.pytorch),
        _figure(row.budget),
        f"{row.left:.1%}",
        table.number_of_steps(row.timescale, "-"),
        _figure(share, 2),
        table.number_of_steps(row.half_life, "-"),
        _figure(row.rms),
        _figure(row.rotation),
        _figure(row.at_most),
        row.source or "-",
    )


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}"
