"""The plan of a run: what each published rule would choose, beside one's own value.

It reports and does not decide. The rules were fitted to different networks and disagree; the
table says by how much, and each row where its rule comes from.
"""

from __future__ import annotations

import dataclasses
import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from optax_decoupled import _checks, _convert
from optax_decoupled._dynamics import equilibrium_adamw, equilibrium_sgdw
from optax_decoupled._schedules import log_time_weight_decay, product_over_run
from optax_decoupled._types import Scalar, ScalarOrSchedule

WIDTH = 80
# τ/S = 1.084 · TPP^−0.527, as quoted by the literature on Power Lines.
_POWER_LINES = (1.084, -0.527)
# From here on rules are said to disagree, below it a decay to hardly act.
_DISAGREE, _HARDLY = 4.0, 0.1
# Of the squared length of the initial weight, what may be left in equilibrium.
_SETTLED = 0.05
_LOST_BELOW = float(jnp.finfo(jnp.bfloat16).eps) / 4

_VALIDITY = {
    "normalized": "Best on CIFAR-10 and ImageNet32x32, with residual networks.",
    "one epoch": "The best timescale lay between one epoch and the run, as models and data grew.",
    "the run": "The best timescale lay between one epoch and the run, as models and data grew.",
    "budget 4": "Language models of 45M to 2.6B parameters; λ = 4/S, counted in full steps.",
    "log-time": "As budget 4, but falling like 1/(S/10 + t): pass log_time_weight_decay(steps).",
    "tokens": (
        "Language models of 111M to 3.3B parameters, one pass over the data. τ/S = 1.084·TPP^-0.527 "
        "is quoted second-hand: the form is in the abstract, the exponent in a review."
    ),
}
_FLAGS = {
    "hardly acts": "the budget is below 0.1, so less than a tenth of an initial weight goes.",
    "the run ends before equilibrium": "rms and rotation will not have settled.",
    "lost in bfloat16": (
        f"below {_LOST_BELOW:.2g} of a weight a step rounds away. Keep the weights in float32, "
        "or use apply_updates_with_stochastic_rounding."
    ),
}


@dataclasses.dataclass(frozen=True)
class PlanRow:
    r"""One way to choose the decay of a run, and what it does over the run.

    Attributes:
      rule: ``"yours"``, or a short name of the rule.
      weight_decay: :math:`λ`, the fraction of a weight removed per full step; the largest
        of the run for a decay that moves.
      budget: :math:`Ω = \sum c_t` over the run.
      timescale: full steps over which the weights average, :math:`1/λ`; NaN if λ moves.
      half_life: full steps in which decay alone halves a weight; NaN if λ moves.
      left: :math:`\prod (1 - c_t)`, what the run leaves of an initial weight.
      pytorch: the value for PyTorch and Optax, :math:`λ/α`, for SGD with momentum
        :math:`λ(1 - m)/α`; NaN without a learning rate.
      rms: the predicted root mean square of a normalized layer's weight, at equilibrium of the
        full step; NaN without a learning rate, for SGD (it depends on the gradients) and if λ
        moves.
      rotation: the predicted angle per full step there, in radians.
      source: where the rule was published.
      note: where it holds, and what is remarkable about this run.
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
    source: str
    note: str

    def __str__(self) -> str:
        pairs = [f"{name} {cell}" for name, cell in zip(_HEADER[1:], _cells(self)[1:], strict=True)]
        return f"{self.rule}: " + ", ".join(pair for pair in pairs if not pair.endswith(" -"))

    def _repr_html_(self) -> str:
        return _preformatted(str(self))


@dataclasses.dataclass(frozen=True)
class DecayPlan:
    """What published rules would choose for a run; ``print`` it, or use it as data.

    Attributes:
      rows: one :class:`PlanRow` for each rule, the caller's value first.
      steps: the length of the run.
      notes: where the rules disagree, and what is remarkable about their rows.
    """

    rows: tuple[PlanRow, ...]
    steps: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        title = f"Weight decay over {self.steps:,} steps, as a fraction removed per full step."
        cells = [_cells(row, self.steps) for row in self.rows]
        tables = [
            _aligned([tuple(line[i] for i in columns) for line in (_HEADER, *cells)])
            for columns in (_FIRST, _SECOND)
        ]
        sections = (tables[0], tables[1], map(_wrapped, self.notes))
        return "\n\n".join(["\n".join(section) for section in ([title], *sections)]).rstrip()

    def _repr_html_(self) -> str:
        return _preformatted(str(self))


def plan_weight_decay(
    steps: int,
    *,
    weight_decay: ScalarOrSchedule | None = None,
    schedule: ScalarOrSchedule | None = None,
    learning_rate: Scalar | None = None,
    b1: Scalar = 0.9,
    steps_per_epoch: Scalar | None = None,
    tokens_per_parameter: Scalar | None = None,
    momentum: Scalar | None = None,
) -> DecayPlan:
    r"""What a decay does over a whole run, beside what published rules would choose for it.

    .. math:: Ω = \sum_t λ_t η_t, \qquad \text{left} = \prod_t (1 - λ_t η_t)

    A report and no oracle: the rules were fitted to different networks. Take their range for
    the range of a sweep.

    Args:
      steps: the updates of the run.
      weight_decay: your :math:`λ`, a fraction per full step or a schedule of it
        (:func:`weight_decay_from_pytorch` converts others).
      schedule: :math:`η_t`, the multiplier of step and decay, 1 for a full step; None for 1.
      learning_rate: :math:`α`, the peak rate, for PyTorch's values and predictions.
      b1: of AdamW, for the predicted rms and rotation.
      steps_per_epoch: adds the rule for a timescale of one epoch.
      tokens_per_parameter: tokens of the run over parameters; adds the rule of Power Lines.
      momentum: of SGD, if that is the optimizer. Then ``b1`` is not used.

    Returns:
      A :class:`DecayPlan`. Rules that would remove a whole weight in a step, in runs of a
      handful of steps, are left out.

    Raises:
      TypeError, ValueError: for arguments out of range, and for a schedule that never comes
        near 1, which is probably a learning rate.

    Warns:
      UserWarning: if ``weight_decay`` looks like PyTorch's, as the optimizers do.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.weight_decay_from_pytorch(0.1, 3e-4)
      >>> yours = od.plan_weight_decay(100_000, weight_decay=decay, learning_rate=3e-4).rows[0]
      >>> assert round(yours.budget, 9) == 3.0 and round(yours.timescale) == 33_333

    References:
      Loshchilov & Hutter, arXiv:1711.05101; Wang & Aitchison, arXiv:2405.13698; Bergsma et
      al., Power Lines, arXiv:2505.13738; Ferbach et al., arXiv:2602.05298.
    """
    _check_plan(steps, weight_decay, schedule, learning_rate, b1, momentum)
    shape = _checked_shape(steps, schedule)
    rules = _rules(steps, steps_per_epoch, tokens_per_parameter)
    yours = [] if weight_decay is None else [("yours", weight_decay, "", "")]
    settings = (steps, shape, learning_rate, b1, momentum)
    rows = tuple(_row(*rule, *settings) for rule in (*yours, *rules))
    notes = (*_comparison(rows), *_flag_notes(rows), *_validity_notes(rules))
    return DecayPlan(rows, int(steps), notes)


_Rule = tuple[str, ScalarOrSchedule, str, str]


def _rules(steps: int, steps_per_epoch: Any, tokens_per_parameter: Any) -> list[_Rule]:
    """Name, decay, source and validity of the published rules that apply."""
    rules: list[tuple[str, float, str, str]] = [
        (f"normalized {norm}", norm / steps**0.5, "arXiv:1711.05101", "normalized")
        for norm in (0.025, 0.05)
    ]
    if steps_per_epoch is not None:
        _checks.check_positive("steps_per_epoch", steps_per_epoch, "It is a timescale.")
        rules.append(("one epoch", 1 / float(steps_per_epoch), "arXiv:2405.13698", "one epoch"))
    rules.append(("the run", 1 / steps, "arXiv:2405.13698", "the run"))
    if tokens_per_parameter is not None:
        _checks.check_positive("tokens_per_parameter", tokens_per_parameter, "20 is usual.")
        factor, power = _POWER_LINES
        share = factor * float(tokens_per_parameter) ** power
        name = f"{float(tokens_per_parameter):g} tokens/param"
        rules.append((name, 1 / (share * steps), "arXiv:2505.13738", "tokens"))
    rules.append(("budget 4", 4 / steps, "arXiv:2602.05298", "budget 4"))
    kept = [(*rule[:3], _VALIDITY.get(rule[3], rule[3])) for rule in rules if rule[1] < 1]
    falling = [
        ("log-time", log_time_weight_decay(steps), "arXiv:2602.05298", _VALIDITY["log-time"])
    ]
    return [*kept, *(falling if steps > 40 else [])]


def _row(
    rule: str,
    decay: ScalarOrSchedule,
    source: str,
    validity: str,
    steps: int,
    shape: np.ndarray | None,
    learning_rate: Any,
    b1: Any,
    momentum: Any,
) -> PlanRow:
    moves = callable(decay)
    decays = product_over_run(steps, decay)
    removed = decays if shape is None else decays * shape
    peak = float(decays.max())
    if not 0 <= removed.min() <= removed.max() <= 1:
        raise ValueError(
            f"weight_decay times schedule removes {removed.min():.3g} to {removed.max():.3g} of a "
            f"weight in a step ({rule}); it must lie in [0, 1]. Check the units of both."
        )
    with np.errstate(divide="ignore"):  # a decay of 1 leaves nothing
        budget, left = float(removed.sum()), float(np.exp(np.log1p(-removed).sum()))
    flags = _flags(budget, left, float(removed.max()))
    rms, rotation = _predicted(learning_rate, math.nan if moves else peak, b1, momentum)
    per_rate = math.nan if learning_rate is None else float(learning_rate)
    return PlanRow(
        rule=rule,
        weight_decay=peak,
        budget=budget,
        timescale=math.nan if moves else _convert.weight_decay_to_timescale(peak),
        half_life=math.nan if moves else _convert.weight_decay_to_half_life(peak),
        left=left,
        pytorch=peak * (1 - float(momentum or 0)) / per_rate,
        rms=rms,
        rotation=rotation,
        source=source,
        note=" ".join(filter(None, (validity, *(f"{flag.capitalize()}." for flag in flags)))),
    )


def _predicted(learning_rate: Any, decay: float, b1: Any, momentum: Any) -> tuple[float, float]:
    """rms and rotation at equilibrium; only the first needs a rate, and SGD's a gradient too."""
    if not 0 < decay < 1:
        return math.nan, math.nan
    if momentum is not None:
        return math.nan, float(equilibrium_sgdw(1.0, decay, momentum).rotation)
    there = equilibrium_adamw(1.0, decay, b1)
    rate = math.nan if learning_rate is None else float(learning_rate)
    return float(there.rms) * rate, float(there.rotation)


def _flags(budget: float, left: float, largest: float) -> list[str]:
    applies = (
        budget < _HARDLY,
        left**2 > _SETTLED,
        0 < largest < _LOST_BELOW,
    )
    return [flag for flag, holds in zip(_FLAGS, applies, strict=True) if holds]


def _comparison(rows: Sequence[PlanRow]) -> list[str]:
    """Where the rules disagree, and where the caller's value lies among them."""
    rules = sorted((row for row in rows if row.rule != "yours"), key=lambda row: row.budget)
    if not rules:
        return []
    low, high = rules[0], rules[-1]
    notes = []
    if high.budget > _DISAGREE * low.budget:
        notes.append(
            f"The rules disagree by {high.budget / low.budget:.3g}x, from budget {low.budget:.3g} "
            f"({low.rule}) to {high.budget:.3g} ({high.rule}). Sweep this range."
        )
    for row in rows[:1]:
        if row.rule == "yours":
            side = "below" if row.budget < low.budget else "above"
            within = low.budget <= row.budget <= high.budget
            notes.append(f"Yours lies {'within' if within else side} the range of the rules.")
    return notes


def _flag_notes(rows: Sequence[PlanRow]) -> list[str]:
    flagged = [
        (flag, meaning, [row.rule for row in rows if f"{flag.capitalize()}." in row.note])
        for flag, meaning in _FLAGS.items()
    ]
    return [
        f"{flag.capitalize()} ({'all' if len(rules) == len(rows) else ', '.join(rules)}): {meaning}"
        for flag, meaning, rules in flagged
        if rules
    ]


def _validity_notes(rules: Sequence[_Rule]) -> list[str]:
    """Where the rules hold, those of one sentence together."""
    named: dict[str, list[str]] = {}
    for name, _, _, validity in rules:
        named.setdefault(validity, []).append(name)
    return [f"{', '.join(names)}: {validity}" for validity, names in named.items()]


def _checked_shape(steps: int, schedule: Any) -> np.ndarray | None:
    """η_t at every step; a shape that never comes near 1 is refused."""
    if schedule is None:
        return None
    shape = product_over_run(steps, schedule)
    if not (np.isfinite(shape).all() and shape.min() >= 0):
        raise ValueError(
            f"schedule={schedule!r} takes values from {shape.min():.3g} to {shape.max():.3g}; it "
            "must be finite and >= 0 at every step."
        )
    if shape.max() < 0.1:
        raise ValueError(
            f"schedule={schedule!r} is at most {shape.max():.3g} in {steps} steps; it must be a "
            "multiplier that is 1 for a full step. If it is a learning rate, "
            "peak, eta = split_schedule(schedule, peak) makes one of it."
        )
    return shape


def _check_plan(
    steps: Any, weight_decay: Any, schedule: Any, learning_rate: Any, b1: Any, momentum: Any
) -> None:
    _checks.check_whole("steps", steps, "It is the length of the run.")
    _checks.check_schedule("schedule", schedule)
    if weight_decay is not None:
        _checks.check_weight_decay(weight_decay, learning_rate)
    if callable(learning_rate):
        raise TypeError(
            f"learning_rate={learning_rate!r} must be the peak rate, a number. A schedule of it "
            "is split by peak, eta = split_schedule(learning_rate, peak); pass schedule=eta."
        )
    if learning_rate is not None:
        _checks.check_positive("learning_rate", learning_rate, "It is the rate of a full step.")
    _checks.check_fraction("b1", b1, "0.9 is the usual value.")
    if momentum is not None:
        _checks.check_fraction("momentum", momentum, "0.0 is SGD without momentum.")


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
    "source",
)
_FIRST, _SECOND = range(7), (0, 7, 8, 9, 10)


def _cells(row: PlanRow, steps: int | None = None) -> tuple[str, ...]:
    share = math.nan if steps is None else row.timescale / steps
    return (
        row.rule,
        f"{row.weight_decay:.2e}",
        _figure(row.pytorch),
        _figure(row.budget),
        f"{row.left:.1%}",
        _steps(row.timescale),
        _figure(share, 2),
        _steps(row.half_life),
        _figure(row.rms),
        _figure(row.rotation),
        row.source or "-",
    )


def _figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def _steps(value: float) -> str:
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "never"
    return f"{value:,.0f}" if value < 1e7 else f"{value:.1e}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ends = {0, *([len(widths) - 1] if lines[0][-1] == "source" else [])}
    return [
        "  ".join(
            cell.ljust(width) if i in ends else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


def _preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
