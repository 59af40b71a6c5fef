"""The plan of a run: the value of each published rule, beside one's own.

The plan reports and does not decide. The rules were fitted to different networks and disagree.
The table shows by how much, and the source of each rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_decoupled import convert, equilibrium
from optax_decoupled._common import checks
from optax_decoupled._common.products import product_over_run
from optax_decoupled._common.types import Scalar, ScalarOrSchedule
from optax_decoupled._plan.report import DecayPlan, PlanRow
from optax_decoupled.schedules import log_time_weight_decay

# Rules disagree if their budgets differ by this factor.
_DISAGREE = 4.0
# A decay with a smaller budget hardly acts.
_HARDLY = 0.1
# Full steps that differ from the run's steps by a smaller share need no note.
_AS_FULL = 0.05
# The share of the initial weight's squared length that may be left in equilibrium.
_SETTLED = 0.05
# The passes over the data in the tuned settings of arXiv:2509.14786.
_FEWEST_EPOCHS, _MOST_EPOCHS = 8, 64
_LOST_BELOW = float(jnp.finfo(jnp.bfloat16).eps) / 4

_IMAGES = "Best on CIFAR-10 and ImageNet32x32, with residual networks."
_TIMESCALES = "The best timescale lay between one epoch and the run, as models and data grew."
_REPEATED = (
    "Language models of 150M to 1.4B parameters, 200M to 1.6B tokens seen 8 to 64 times. In 16 "
    "tuned settings, from the paper's table and its authors' code, the best timescale was 0.2 to "
    "0.52 epochs."
)
_POWER_LAW = (
    "Language models of 111M to 3.3B parameters, one pass over the data. τ/S = 1.084·TPP^-0.527 "
    "is quoted second-hand: the form is in the abstract, the exponent in a review of the paper."
)
_CONSTANT = "Language models of 45M to 2.6B parameters; λ = 4/S over S steps."
_FALLING = "As budget 4, falling like 1/(S/10 + t): schedules.log_time_weight_decay(steps)."
_FLAGS = {
    "Hardly acts": "the budget is below 0.1, so less than a tenth of an initial weight goes.",
    "The run ends before equilibrium": "rms and rotation will not have settled.",
    "Lost in bfloat16": (
        f"below {_LOST_BELOW:.2g} of a weight a step rounds away. Keep the weights in float32, "
        "or use apply_updates_with_stochastic_rounding."
    ),
}


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
    r"""The effect of a decay over a whole run, beside the values of published rules.

    .. math:: Ω = \sum_t λ_t η_t, \qquad \text{left} = \prod_t (1 - λ_t η_t)

    The rules were fitted to different networks and disagree. Use their range as the range of a
    sweep.

    Args:
      steps: the updates of the run.
      weight_decay: your :math:`λ`, a fraction per full step or a schedule of it
        (:func:`weight_decay_from_pytorch` converts others).
      schedule: :math:`η_t`, the multiplier of step and decay, 1 for a full step; None for 1.
      learning_rate: :math:`α`, the peak rate, for PyTorch's values and predictions.
      b1: of AdamW, for the predicted rms and rotation.
      steps_per_epoch: adds the rule for a timescale of one epoch, and in runs of 8 to 64 epochs
        the two ends of the range for repeated data.
      tokens_per_parameter: tokens of the run over parameters; adds the rule of Power Lines.
      momentum: of SGD, if that is the optimizer. Then ``b1`` is not used.

    Returns:
      A :class:`types.DecayPlan`. Rules that would remove a whole weight in a step, in runs of a
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
      Loshchilov & Hutter, arXiv:1711.05101; Wang & Aitchison, arXiv:2405.13698; Kim et al.,
      arXiv:2509.14786; Bergsma et al., Power Lines, arXiv:2505.13738; Ferbach et al.,
      arXiv:2602.05298.
    """
    _check_plan(steps, weight_decay, schedule, learning_rate, b1, momentum)
    steps = int(steps)
    rate = math.nan if learning_rate is None else np.asarray(learning_rate, float).item()
    run = _Run(steps, _checked_shape(steps, schedule), rate, b1, momentum)
    rules = _rules(steps, steps_per_epoch, tokens_per_parameter)
    yours = [] if weight_decay is None else [_Rule("yours", weight_decay, "", "")]
    rows = tuple(_row(rule, run) for rule in (*yours, *rules))
    notes = (*_full_steps(run), *_comparison(rows), *_flag_notes(rows), *_validity_notes(rules))
    return DecayPlan(rows, steps, notes)


class _Run(NamedTuple):
    steps: int
    shape: np.ndarray  # η_t at every step
    learning_rate: float  # NaN if it is not known
    b1: Any
    momentum: Any


class _Rule(NamedTuple):
    name: str
    decay: Any  # a number or a schedule
    source: str
    validity: str


def _rules(steps: int, steps_per_epoch: Any, tokens_per_parameter: Any) -> list[_Rule]:
    """The published rules that apply and leave something of a weight after a step."""
    epoch, tokens = steps_per_epoch, tokens_per_parameter
    if epoch is not None:
        checks.check_positive("steps_per_epoch", epoch, "It is a timescale.")
    if tokens is not None:
        checks.check_positive("tokens_per_parameter", tokens, "20 is usual.")
    repeated = epoch if epoch and _FEWEST_EPOCHS <= steps / epoch <= _MOST_EPOCHS else None
    share = tokens and 1.084 * float(tokens) ** -0.527
    falling = log_time_weight_decay(steps) if steps > 40 else None
    table = (
        _Rule("normalized 0.025", 0.025 / steps**0.5, "arXiv:1711.05101", _IMAGES),
        _Rule("normalized 0.05", 0.05 / steps**0.5, "arXiv:1711.05101", _IMAGES),
        _Rule("one epoch", epoch and 1 / float(epoch), "arXiv:2405.13698", _TIMESCALES),
        _Rule("0.5 epochs", repeated and 2 / float(repeated), "arXiv:2509.14786", _REPEATED),
        _Rule("0.2 epochs", repeated and 5 / float(repeated), "arXiv:2509.14786", _REPEATED),
        _Rule("the run", 1 / steps, "arXiv:2405.13698", _TIMESCALES),
        _Rule(
            f"{float(tokens or 0):g} tokens/param",
            share and 1 / share / steps,
            "arXiv:2505.13738",
            _POWER_LAW,
        ),
        _Rule("budget 4", 4 / steps, "arXiv:2602.05298", _CONSTANT),
        _Rule("log-time", falling, "arXiv:2602.05298", _FALLING),
    )
    return [rule for rule in table if rule.decay and (callable(rule.decay) or rule.decay < 1)]


def _row(rule: _Rule, run: _Run) -> PlanRow:
    decays = product_over_run(run.steps, rule.decay)
    removed = decays * run.shape
    if not 0 <= removed.min() <= removed.max() <= 1:
        raise ValueError(
            f"weight_decay times schedule removes {removed.min():.3g} to {removed.max():.3g} of a "
            f"weight in a step ({rule.name}); it must lie in [0, 1]. Check the units of both."
        )
    with np.errstate(divide="ignore"):  # a decay of 1 leaves nothing
        logs = np.concatenate([[0.0], np.cumsum(np.log1p(-removed))])
    budget, left = float(removed.sum()), float(np.exp(logs[-1]))
    remaining, averaged = _curves(logs, run.shape)
    applies = (budget < _HARDLY, left**2 > _SETTLED, 0 < removed.max() < _LOST_BELOW)
    flags = [f"{flag}." for flag, holds in zip(_FLAGS, applies, strict=True) if holds]
    peak = float(decays.max())
    steady = math.nan if callable(rule.decay) else peak
    rms, rotation = _predicted(steady, run)
    return PlanRow(
        rule=rule.name,
        weight_decay=peak,
        budget=budget,
        timescale=convert.to_timescale(peak) + 0 * steady,
        half_life=convert.to_half_life(peak) + 0 * steady,
        left=left,
        pytorch=peak * (1 - float(run.momentum or 0)) / run.learning_rate,
        rms=rms,
        rotation=rotation,
        at_most=run.learning_rate / (steady or math.nan) if run.momentum is None else math.nan,
        source=rule.source,
        note=" ".join(filter(None, (rule.validity, *flags))),
        remaining=remaining,
        averaged=averaged,
    )


def _curves(logs: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is left before each of at most 257 updates, and the share of each in the end.

    `logs` are the sums of log(1 - c) before each update and after the last, float64[steps + 1].
    """
    last = len(shape)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where a decay of 1 leaves nothing
        share = np.nan_to_num(shape * np.exp(logs[-1] - logs[1:]))
    share /= share.mean() or 1.0
    places = np.linspace(0, last, min(last, 256) + 1).round().astype(int)
    return np.exp(logs[places]), share[places.clip(max=last - 1)]


def _predicted(decay: float, run: _Run) -> tuple[float, float]:
    """Its rms and rotation at equilibrium. The first needs a rate, and SGD's a gradient too."""
    if not 0 < decay < 1:
        return math.nan, math.nan
    if run.momentum is not None:
        return math.nan, float(equilibrium.sgdw(1.0, decay, run.momentum).rotation)
    there = equilibrium.adamw(1.0, decay, run.b1)
    return float(there.rms) * run.learning_rate, float(there.rotation)


def _full_steps(run: _Run) -> list[str]:
    """A note on how many full steps the schedule makes, if this changes the budgets."""
    full = float(run.shape.sum())
    if abs(full / run.steps - 1) < _AS_FULL:
        return []
    than = "smaller" if full < run.steps else "larger"
    number = f"{full:,.0f}" if full > 10 else f"{full:.2g}"
    return [
        f"With your schedule the {run.steps:,} steps add up to {number} full steps. The "
        f"rules count each step as a full one, so their budgets are {than} here than without a "
        'schedule. Timescale and half-life count full steps; "of run" is the timescale over '
        f"all {run.steps:,}."
    ]


def _comparison(rows: Sequence[PlanRow]) -> list[str]:
    """Notes on how far the rules disagree, and on the caller's value among them."""
    rules = sorted((row for row in rows if row.rule != "yours"), key=lambda row: row.budget)
    if not rules:
        return []
    low, high = rules[0], rules[-1]
    full = next(row.budget / row.weight_decay for row in rules if row.timescale > 0)
    notes = []
    if high.budget > _DISAGREE * low.budget:
        notes.append(
            f"The rules disagree by {high.budget / low.budget:.3g}x, from budget {low.budget:.3g} "
            f"({low.rule}) to {high.budget:.3g} ({high.rule}). Sweep decays per step from "
            f"{low.budget / full:.2e} to {high.budget / full:.2e}."
        )
    yours = rows[0]
    if yours.rule == "yours":
        side = "below" if yours.budget < low.budget else "above"
        within = low.budget <= yours.budget <= high.budget
        notes.append(f"Yours is {'within' if within else side} the range of the rules.")
    return notes


def _flag_notes(rows: Sequence[PlanRow]) -> list[str]:
    notes = []
    for flag, meaning in _FLAGS.items():
        rules = [row.rule for row in rows if f"{flag}." in row.note]
        if rules:
            named = "all" if len(rules) == len(rows) else ", ".join(rules)
            notes.append(f"{flag} ({named}): {meaning}")
    return notes


def _validity_notes(rules: Sequence[_Rule]) -> list[str]:
    """A note on where each rule holds; rules with the same sentence share one."""
    named: dict[str, list[str]] = {}
    for rule in rules:
        named.setdefault(rule.validity, []).append(rule.name)
    return [f"{', '.join(names)}: {validity}" for validity, names in named.items()]


def _checked_shape(steps: int, schedule: Any) -> np.ndarray:
    """η_t at every step; a shape that never comes near 1 is refused."""
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
    checks.check_whole("steps", steps, "It is the length of the run.")
    checks.check_schedule("schedule", schedule)
    if weight_decay is not None:
        checks.check_weight_decay(weight_decay, learning_rate)
    if callable(learning_rate):
        raise TypeError(
            f"learning_rate={learning_rate!r} must be the peak rate, a number. A schedule of it "
            "is split by peak, eta = split_schedule(learning_rate, peak); pass schedule=eta."
        )
    if learning_rate is not None:
        checks.check_positive("learning_rate", learning_rate, "It is the rate of a full step.")
    checks.check_fraction("b1", b1, "0.9 is the usual value.")
    if momentum is not None:
        checks.check_fraction("momentum", momentum, "0.0 is SGD without momentum.")
