"""Functions of the step: warm restarts, decays that move, the split of a learning rate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_decoupled import convert
from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.products import peak_of
from optax_decoupled._common.types import Scalar, Schedule

__all__ = [
    "log_time_weight_decay",
    "normalized_weight_decay",
    "split_schedule",
    "warm_restart_position",
    "warm_restarts",
]

# Optax counts steps in int32, and its counters stop at this value.
_LAST_STEP = 2**31 - 1
_MAX_CYCLES = 1_000_000


def warm_restarts(
    first_cycle_steps: int, cycle_mult: float = 2, *, eta_min: Scalar = 0.0
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    r"""Cosine annealing with warm restarts, the paper's multiplier :math:`η_t`.

    .. math:: η_t = η_{min} + \tfrac12 (1 - η_{min}) (1 + \cos(π T_{cur} / T_i))

    :math:`T_{cur}` steps have passed in cycle :math:`i` of :math:`T_i` =
    round(``first_cycle_steps`` · ``cycle_mult`` :math:`^i`) steps. Step 0 and the first
    step of every cycle give exactly 1. It never ends, and resuming needs only the step.

    Args:
      first_cycle_steps: :math:`T_0 \ge 1` in steps, a static integer; 1 to 10 % of the
        budget in the paper.
      cycle_mult: :math:`T_{mult} \ge 1`, a static number; 2 in the paper.
      eta_min: the lowest multiplier, in [0, 1).

    Returns:
      A schedule, int step of any shape → :math:`η` of the same shape, in JAX's default
      float dtype. At the last step of a cycle :math:`η` is near ``eta_min``: those are
      the weights to keep (:func:`warm_restart_position` finds it).

    Raises:
      TypeError, ValueError: for ``first_cycle_steps`` < 1, ``cycle_mult`` < 1, a value
        that is not static, or ``eta_min`` outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> eta = od.schedules.warm_restarts(100, 2)
      >>> assert jnp.array_equal(eta(jnp.array([0, 100, 300, 700])), jnp.ones(4))
      >>> assert eta(299) < 1e-4

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.2; SGDR, arXiv:1608.03983.
    """
    _check_cycles(first_cycle_steps, cycle_mult)
    floor = checks.check_fraction("eta_min", eta_min, "It is a fraction of the full step.")

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        _, within, length = warm_restart_position(step, first_cycle_steps, cycle_mult)
        # int32 / int32 is float32 even under x64, hence the casts to the default float.
        angle = 0.5 * jnp.pi * within.astype(float) / length.astype(float)
        # cos² of half the angle: the same function, accurate where it is near zero.
        wave = jnp.square(jnp.cos(angle))
        return wave + floor * (1 - wave)  # exactly 1 at a restart, whatever the floor

    return schedule


def warm_restart_position(
    step: jax.typing.ArrayLike, first_cycle_steps: int, cycle_mult: float = 2
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""The cycle of a step under ``warm_restarts``, and the step within it.

    Args:
      step: the number of updates so far, an integer array of any shape (or a tracer), from
        0 to 2³¹ − 1.
      first_cycle_steps, cycle_mult: as in :func:`warm_restarts`.

    Returns:
      ``(cycle, within, length)``, int32 arrays of the shape of ``step``: the index of the
      cycle, the steps since it began, and its length in steps (2³¹ − 1 for a last cycle
      that no int32 counter can finish). A cycle's last update is the one with
      ``within == length - 1``.

    Raises:
      TypeError, ValueError: as :func:`warm_restarts`; also for a ``step`` that is not
        an integer.

    Examples:
      >>> import optax_decoupled as od
      >>> tuple(map(int, od.schedules.warm_restart_position(299, 100, 2)))
      (1, 199, 200)
    """
    _check_cycles(first_cycle_steps, cycle_mult)
    step = jnp.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise TypeError(
            f"step has dtype {step.dtype}; it must be an integer count of updates. "
            "Convert it first, e.g. step.astype(int)."
        )
    step = step.astype(jnp.int32)
    if cycle_mult == 1:
        length = jnp.full_like(step, int(first_cycle_steps))
        return step // length, step % length, length
    starts, lengths = _cycle_table(int(first_cycle_steps), float(cycle_mult))
    cycle = jnp.searchsorted(jnp.asarray(starts), step, side="right").astype(jnp.int32) - 1
    return cycle, step - jnp.asarray(starts)[cycle], jnp.asarray(lengths)[cycle]


def normalized_weight_decay(
    norm: Scalar, first_cycle_steps: int, cycle_mult: float = 2
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    r"""Normalized decay under warm restarts, :math:`λ_i = λ_{norm} / \sqrt{T_i}`.

    :math:`T_i` is the length in steps of the current cycle of :func:`warm_restarts`, so
    the decay falls by :math:`\sqrt{T_{mult}}` at each restart.

    Args:
      norm: :math:`λ_{norm} \ge 0`, dimensionless.
      first_cycle_steps, cycle_mult: as in :func:`warm_restarts`.

    Returns:
      A schedule, int step of any shape → :math:`λ_i` of the same shape.

    Raises:
      TypeError, ValueError: as :func:`warm_restarts`; also for a negative ``norm``.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.schedules.normalized_weight_decay(0.05, 100, 4)
      >>> assert abs(decay(0) - 0.005) < 1e-8 and abs(decay(100) - 0.0025) < 1e-8

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendices B.1 and B.2.
    """
    _check_cycles(first_cycle_steps, cycle_mult)
    scale = convert.from_normalized(norm, steps=1)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        _, _, length = warm_restart_position(step, first_cycle_steps, cycle_mult)
        return scale / jnp.sqrt(length.astype(float))

    return schedule


def log_time_weight_decay(
    steps: Scalar, budget: Scalar = 4.0
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    r"""A decay that falls like 1/t, so that the weights average over a share of the past.

    .. math:: λ_t = \frac{ω}{S/10 + t}

    Early steps forget fast and late steps slowly. Over :math:`S` steps it adds up to
    :math:`ω \ln 11 ≈ 2.4 ω`, where the constant decay :math:`ω/S` adds up to :math:`ω`.

    Args:
      steps: :math:`S > 0`, the length of the run.
      budget: :math:`ω \ge 0`, dimensionless; at most ``steps / 10``.

    Returns:
      A schedule, int step of any shape → :math:`λ_t` of the same shape, for the
      ``weight_decay`` of :func:`~optax_decoupled.adamw` and of
      :func:`~optax_decoupled.add_decoupled_weight_decay`.

    Raises:
      TypeError, ValueError: for arguments out of range, and if the first step would remove
        more than the whole weight.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.schedules.log_time_weight_decay(10_000)
      >>> assert abs(decay(0) - 0.004) < 1e-8 and abs(decay(10_000) - 0.004 / 11) < 1e-9

    References:
      Ferbach et al., Logarithmic-time Schedules for Scaling Language Models with Momentum,
      arXiv:2602.05298.
    """
    S = checks.check_positive("steps", steps, "It is the length of the run.")
    omega = checks.check_nonnegative("budget", budget, "The paper's value is 4.")
    if checks.is_static(S) and checks.is_static(omega) and omega > S / 10:
        raise ValueError(
            f"budget={budget!r} over steps={steps!r} would remove {10 * omega / S:.3g} of a "
            "weight at the first step; at most 1 is allowed. Take at most steps / 10."
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(omega / (S / 10 + jnp.asarray(step).astype(float)))

    return schedule


def split_schedule(
    learning_rate_schedule: Schedule, peak: Scalar
) -> tuple[Any, Callable[[jax.typing.ArrayLike], Any]]:
    r"""Splits a learning-rate schedule into the paper's :math:`α` and :math:`η_t`.

    .. math:: \text{rate}(t) = α η_t, \qquad α = \text{peak}, \quad η_t = \text{rate}(t) / α

    Args:
      learning_rate_schedule: any Optax schedule of the learning rate.
      peak: the rate of a full step, > 0; usually the schedule's highest value.

    Returns:
      ``(peak, schedule)``, for ``adamw(peak, weight_decay, schedule=schedule)``.

    Raises:
      TypeError, ValueError: if the first argument is not a schedule or ``peak`` is not
        positive.

    Examples:
      >>> import optax, optax_decoupled as od
      >>> rate = optax.cosine_decay_schedule(0.003, 100)
      >>> alpha, eta = od.split_schedule(rate, peak=0.003)
      >>> assert eta(0) == 1.0 and abs(alpha * eta(50) - rate(50)) < 1e-9
    """
    if not callable(learning_rate_schedule):
        raise TypeError(
            f"learning_rate_schedule={brief(learning_rate_schedule)} must be a schedule "
            "(step -> learning rate). A constant needs no splitting: pass it as learning_rate."
        )
    alpha = checks.check_positive("peak", peak, "It is the learning rate of a full step.")
    reached = peak_of(learning_rate_schedule)
    ratio = reached / float(alpha) if checks.is_static(alpha) else 1.0
    if 0 < ratio <= checks.FULL or ratio >= 1.01:
        checks.warn(
            f"peak={peak} is not the peak of learning_rate_schedule, which reaches about "
            f"{reached:.2g}: as a multiplier it would reach {ratio:.2g} instead of 1. Pass the "
            "schedule's own peak unless this is meant."
        )
    return alpha, lambda step: learning_rate_schedule(step) / alpha


def _check_cycles(first_cycle_steps: object, cycle_mult: object) -> None:
    checks.check_whole("first_cycle_steps", first_cycle_steps, "It is the first cycle's length.")
    checks.check_static("cycle_mult", cycle_mult)
    way_out = "1 repeats cycles of one length, 2 doubles them."
    checks.check_at_least_1("cycle_mult", cycle_mult, way_out)


@functools.lru_cache(maxsize=64)
def _cycle_table(first: int, mult: float) -> tuple[np.ndarray, np.ndarray]:
    """First step and length of every cycle that begins within int32, exact integers."""
    starts, lengths, start = [], [], 0
    while start <= _LAST_STEP:
        length = round(first * mult ** len(starts))
        starts.append(start)
        lengths.append(min(length, _LAST_STEP))
        start += length
        if len(starts) > _MAX_CYCLES:
            raise ValueError(
                f"cycle_mult={mult} with first_cycle_steps={first} makes more than {_MAX_CYCLES} "
                "cycles within 2**31 steps. Use cycle_mult=1 for cycles of one length, or longer "
                "cycles."
            )
    return np.array(starts, np.int32), np.array(lengths, np.int32)


def __dir__() -> list[str]:
    return __all__
