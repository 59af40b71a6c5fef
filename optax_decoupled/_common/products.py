"""Products of schedules and numbers, and warnings where a learning rate stands for a multiplier."""

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

# The counts at which a schedule is evaluated when an optimizer is built: each of the first 16,
# then two per octave up to 2**28.
_SAMPLED = np.unique([*range(16), *np.round(2.0 ** np.arange(4, 28.5, 0.5))]).astype(np.int32)
_LAST = 2**28
_DENSE = np.unique(np.round(2.0 ** np.arange(0, 28, 0.05))).astype(np.int32)
# A decay that removes a smaller fraction than this per update does nothing in most runs.
_FAINT = 5e-7
# A weight_decay that reaches this much within so many updates is taken for a multiplier.
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

    Python numbers are multiplied as such, in float64, until a factor is an array. Arrays of
    fewer than 32 bits are widened, because the product could underflow in them. A constant 0
    makes the product the constant 0, so that callers can skip the work.
    """
    if any(map(checks.is_static_zero, factors)):
        return 0.0
    given = [widen(factor) for factor in factors if factor is not None and factor is not True]
    if len(given) == 1:
        return given[0]  # a mask's True adds no operation to each parameter
    with jax.numpy_dtype_promotion("standard"):  # an int32 multiplier times a float32 schedule
        return math.prod(given)


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
    """The greatest value at a few dozen counts up to `until`; NaN for traced values."""
    if multiplier is None:
        return 1.0
    if not callable(multiplier):
        return float(np.asarray(multiplier)) if checks.is_known(multiplier) else math.nan
    values = _sampled(multiplier, _SAMPLED[until >= _SAMPLED])
    return float(np.max(values, initial=0.0)) if len(values) else math.nan


def _sampled(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """The schedule's finite values at these counts; an empty array if it cannot be evaluated."""
    try:
        values = np.asarray(jax.vmap(schedule)(jnp.asarray(counts)), float)
    except Exception:  # it uses traced values, or does not take a batch of counts
        return np.zeros(0)
    return values[np.isfinite(values)]


def _are_proportional(a: Schedule, b: Schedule) -> bool:
    """Whether both move, and one is a constant times the other."""
    if a is b:
        return True
    both = [_sampled(x, _DENSE) for x in (a, b)]
    x, y = (v / (np.max(v, initial=0) or 1) for v in both)
    moves = len(x) == len(y) > 0 and np.ptp(x) > 0.01
    return bool(moves and np.allclose(x, y, atol=1e-4))


def check_step(learning_rate: ScalarOrSchedule, schedule: ScalarOrSchedule | None) -> None:
    """Checks both. Warns if `schedule` looks like a learning rate, and not like a multiplier."""
    checks.check_learning_rate(learning_rate)
    checks.check_schedule("schedule", schedule)
    if callable(schedule) or checks.is_static(schedule):
        problem = _problem_of_step(learning_rate, schedule)
        if problem:
            checks.warn(f"{problem}. {_WAY_OUT}")


def _problem_of_step(learning_rate: ScalarOrSchedule, schedule: ScalarOrSchedule) -> str | None:
    if (
        callable(schedule)
        and callable(learning_rate)
        and _are_proportional(schedule, learning_rate)
    ):
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
    """Checks a decay. Warns if it or its multiplier looks like a number of another unit.

    `name` is the multiplier's argument. It is None if `check_step` checks that multiplier.
    """
    if callable(weight_decay):
        checks.check_weight_decay(weight_decay)
        most = peak_of(product_schedule(weight_decay, multiplier), _EARLY)
        if toward is None and most >= _LARGE:  # with `toward`, one update may pull strongly
            checks.warn(
                f"weight_decay reaches {most:.3g}: so much of every weight is removed at one step. "
                "weight_decay is the fraction that an update removes, such as 1e-4. A multiplier "
                "that is 1 for a full step goes in as schedule."
            )
        return
    reached = peak_of(multiplier)
    checks.check_weight_decay(weight_decay, peak_of(learning_rate), reached)
    if not (name and callable(multiplier) and checks.is_known(weight_decay)):
        return
    most = float(np.asarray(weight_decay)) * reached
    if reached < checks.FULL and 0 < most < _FAINT:
        checks.warn(
            f"{name} reaches {reached:.3g} at most, so with weight_decay={weight_decay} no "
            f"update removes more than {most:.3g} of a weight. {_WAY_OUT}"
        )


_WAY_OUT = (
    "schedule is a multiplier, 1 for a full step, and not a learning rate. Split a learning-rate "
    "schedule in two: peak, eta = split_schedule(learning_rate_schedule, peak), then pass "
    "learning_rate=peak, schedule=eta."
)
