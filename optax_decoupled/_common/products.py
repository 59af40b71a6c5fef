"""Products of schedules and numbers, and whether a schedule is a multiplier at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled._common import checks
from optax_decoupled._common.dtypes import widen
from optax_decoupled._common.types import Scalar, ScalarOrSchedule, Schedule

# Where a schedule is looked at when an optimizer is built: dense at first, then to 2**28.
_SAMPLED = np.unique([*range(16), *np.round(2.0 ** np.arange(4, 28.5, 0.5))]).astype(np.int32)
_LAST = 2**28
_DENSE = np.unique(np.round(2.0 ** np.arange(0, 28, 0.05))).astype(np.int32)
# A decay of which one update removes less than this does nothing in most runs.
_FAINT = 5e-7
# A multiplier reaches 1; no decay is meant to reach half of it in one of the first updates.
_LARGE, _EARLY = 0.5, 100_000


def product_schedule(*factors: ScalarOrSchedule | None) -> Schedule:
    """The product of schedules and constants as a schedule; None stands for 1."""
    return functools.partial(_product_at, factors)


def is_product(schedule: object) -> bool:
    return isinstance(schedule, functools.partial) and schedule.func is _product_at


def _product_at(factors: Sequence[ScalarOrSchedule | None], count: Scalar) -> Scalar:
    return product(*(factor(count) if callable(factor) else factor for factor in factors))


def product(*factors: Scalar | None) -> Scalar:
    """The product of scalars; None stands for 1.

    A constant stays a Python number until it meets an array, which keeps its precision;
    arrays of fewer than 32 bits, in which the product might vanish, are widened. A constant
    0 makes the product a constant 0, by which callers know that there is nothing to do.
    """
    if any(map(checks.is_static_zero, factors)):
        return 0.0
    return math.prod(widen(factor) for factor in factors if factor is not None)


def product_over_run(steps: int, *factors: ScalarOrSchedule | None) -> np.ndarray:
    """The product of schedules and numbers at each of the steps 0, 1, ..., as float64[steps].

    One compiled call for each schedule; the factors are multiplied in float64.
    """
    product = np.ones(steps)
    for factor in factors:
        if callable(factor):
            values = jax.jit(jax.vmap(factor))(jnp.arange(steps, dtype=jnp.int32))
            if values.shape != (steps,):
                raise ValueError(
                    f"schedule={factor!r} has shape {values.shape[1:]} at a step; it must be a "
                    "scalar."
                )
            product *= np.asarray(values, float)
        elif factor is not None:
            product *= np.asarray(factor, float)
    return product


def peak_of(multiplier: ScalarOrSchedule | None, until: int = _LAST) -> float:
    """The greatest value at a few dozen counts up to one; NaN if it cannot be known now."""
    if multiplier is None:
        return 1.0
    if not callable(multiplier):
        return float(np.asarray(multiplier)) if checks.is_known(multiplier) else math.nan
    values = _sampled(multiplier, _SAMPLED[until >= _SAMPLED])
    return float(np.max(values, initial=0.0)) if len(values) else math.nan


def _sampled(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """Its finite values at these counts; none if they cannot be known now."""
    try:
        values = np.asarray(jax.vmap(schedule)(jnp.asarray(counts)), float)
    except Exception:  # it is traced, or any function, also one that takes no batch of counts
        return np.zeros(0)
    return values[np.isfinite(values)]


def _move_alike(a: Schedule, b: Schedule) -> bool:
    """Whether one is a constant times the other, and no constant."""
    if a is b:
        return True
    both = [_sampled(x, _DENSE) for x in (a, b)]
    x, y = (v / (np.max(v, initial=0) or 1) for v in both)
    moves = len(x) == len(y) > 0 and np.ptp(x) > 0.01
    return bool(moves and np.allclose(x, y, atol=1e-4))


def check_step(learning_rate: ScalarOrSchedule, schedule: ScalarOrSchedule | None) -> None:
    """Checks both, and warns where a learning rate stands for a multiplier of step and decay."""
    checks.check_learning_rate(learning_rate)
    checks.check_schedule("schedule", schedule)
    if callable(schedule) or checks.is_static(schedule):
        problem = _problem_of_step(learning_rate, schedule)
        if problem:
            checks.warn(f"{problem}. {_MULTIPLIER}")


def _problem_of_step(learning_rate: ScalarOrSchedule, schedule: ScalarOrSchedule) -> str | None:
    if callable(schedule) and callable(learning_rate) and _move_alike(schedule, learning_rate):
        return "learning_rate and schedule move alike, so the step is scaled twice"
    reached = peak_of(schedule)
    if 0 < reached < checks.FULL:
        return f"schedule reaches {reached:.3g} at most, so no step is a full one"
    if reached != 1 and _is_constant(schedule) and _looks_like_multiplier(learning_rate):
        return (
            "learning_rate moves and reaches 1, as a multiplier does, and schedule is the constant "
            f"{reached:.3g}, as a learning rate may be: they look swapped"
        )
    return None


def _is_constant(schedule: ScalarOrSchedule) -> bool:
    if not callable(schedule):
        return not checks.is_static_zero(schedule)
    values = _sampled(schedule, _SAMPLED)
    return len(values) > 0 and values[0] > 0 and bool(np.ptp(values) == 0)


def _looks_like_multiplier(learning_rate: ScalarOrSchedule) -> bool:
    """Whether it moves, and its peak is 1; samples may miss the peak by a little."""
    values = _sampled(learning_rate, _SAMPLED) if callable(learning_rate) else np.zeros(0)
    return len(values) > 0 and bool(np.ptp(values) > 0.01 and abs(np.max(values) - 1) < 0.01)


def check_decay(
    weight_decay: ScalarOrSchedule,
    multiplier: ScalarOrSchedule | None,
    toward: object,
    learning_rate: ScalarOrSchedule | None = None,
    name: str | None = "schedule",
) -> None:
    """Checks a decay, and warns where what has another unit stands for it or its multiplier.

    `name` is the multiplier's; None if it is that of the step, which `check_step` looks at.
    """
    if callable(weight_decay):
        checks.check_weight_decay(weight_decay)
        most = peak_of(product_schedule(weight_decay, multiplier), _EARLY)
        if toward is None and most >= _LARGE:  # a pull may be strong, now and then
            checks.warn(
                f"weight_decay reaches {most:.3g}: so much of every weight is removed at one step. "
                "It is a decay, such as 1e-4 or a schedule near it; a multiplier that is 1 for a "
                "full step goes in as schedule."
            )
        return
    reached = peak_of(multiplier)
    checks.check_weight_decay(weight_decay, learning_rate, reached)
    if not (name and callable(multiplier) and checks.is_known(weight_decay)):
        return
    most = float(np.asarray(weight_decay)) * reached
    if reached < checks.FULL and 0 < most < _FAINT:
        checks.warn(
            f"{name} reaches {reached:.3g} at most, so with weight_decay={weight_decay} no "
            f"update removes more than {most:.3g} of a weight. {_MULTIPLIER}"
        )


_MULTIPLIER = (
    "schedule is a multiplier, 1 for a full step, and no learning rate: make it of one by "
    "peak, eta = split_schedule(learning_rate_schedule, peak), then pass "
    "learning_rate=peak, schedule=eta."
)
