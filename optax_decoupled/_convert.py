"""Weight decay between conventions. All plain arithmetic: numbers, arrays and tracers."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from optax_decoupled import _checks
from optax_decoupled._types import Scalar


def weight_decay_from_pytorch(weight_decay: Scalar, learning_rate: Scalar) -> Any:
    r"""The paper's decay for a value of PyTorch, Optax or Keras: :math:`λ = λ_{PT} α`.

    Those libraries multiply their ``weight_decay`` by the learning rate; this package
    does not. The conversion holds for the full step of rate :math:`α`; with the schedule
    on both sides it holds at every step.

    Args:
      weight_decay: :math:`λ_{PT} \ge 0`, fraction of a weight per unit of learning rate.
      learning_rate: :math:`α > 0`, the peak rate.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step: a float for floats.

    Raises:
      TypeError, ValueError: for a negative decay or a rate that is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> assert od.weight_decay_from_pytorch(0.1, 0.001) == 0.1 * 0.001
    """
    decay, rate = _checked(weight_decay, learning_rate)
    return decay * rate


def weight_decay_to_pytorch(weight_decay: Scalar, learning_rate: Scalar) -> Any:
    r"""The value for PyTorch, Optax or Keras of the paper's decay: :math:`λ_{PT} = λ / α`.

    Args:
      weight_decay: :math:`λ \ge 0`, the fraction of a weight removed per full step.
      learning_rate: :math:`α > 0`, the peak rate.

    Returns:
      :math:`λ_{PT}`, fraction per unit of learning rate.

    Raises:
      TypeError, ValueError: for a negative decay or a rate that is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.weight_decay_to_pytorch(1e-4, 0.001)
      >>> assert abs(od.weight_decay_from_pytorch(decay, 0.001) - 1e-4) < 1e-18
    """
    decay, rate = _checked(weight_decay, learning_rate)
    return decay / rate


def l2_from_weight_decay(weight_decay: Scalar, learning_rate: Scalar) -> Any:
    r"""The L2 coefficient with which plain SGD takes the same steps: :math:`λ' = λ / α`.

    Proposition 1 of the paper. It holds for SGD without momentum at the constant rate
    :math:`α`; with momentum or Adam no L2 coefficient does (Proposition 2).

    Args:
      weight_decay: :math:`λ \ge 0`, the fraction of a weight removed per step.
      learning_rate: :math:`α > 0`.

    Returns:
      :math:`λ'`, for :func:`l2_to_grad` and :func:`sgd_l2`.

    Raises:
      TypeError, ValueError: for a negative decay or a rate that is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> assert od.l2_from_weight_decay(0.001, 0.1) == 0.01

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Proposition 1.
    """
    decay, rate = _checked(weight_decay, learning_rate)
    return decay / rate


def weight_decay_from_half_life(steps: Scalar) -> Any:
    r"""The decay that halves an undriven weight in so many steps: :math:`1 - 2^{-1/n}`.

    Args:
      steps: the half-life :math:`n > 0` in full steps.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step.

    Raises:
      TypeError, ValueError: if ``steps`` is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.weight_decay_from_half_life(1000)
      >>> assert abs((1 - decay) ** 1000 - 0.5) < 1e-12
    """
    n = _checks.check_positive("steps", steps, "It is a half-life in optimizer steps.")
    if _checks.is_static(n):
        return -math.expm1(-math.log(2.0) / n)
    return -jnp.expm1(-math.log(2.0) / n)


def weight_decay_from_timescale(steps: Scalar) -> Any:
    r"""The decay that makes the weights an average over :math:`τ` steps: :math:`λ = 1/τ`.

    With decoupled decay the weights are an exponential moving average of the scaled
    updates with timescale :math:`τ = 1/λ`.

    Args:
      steps: :math:`τ \ge 1` in full steps.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step.

    Raises:
      TypeError, ValueError: if ``steps`` is below 1.

    Examples:
      >>> import optax_decoupled as od
      >>> assert od.weight_decay_from_timescale(2000) == 0.0005

    References:
      Wang & Aitchison, How to set AdamW's weight decay as you scale model and dataset
      size, arXiv:2405.13698.
    """
    tau = _checks.check_at_least_1("steps", steps, "It is a timescale in optimizer steps.")
    return 1.0 / tau


def weight_decay_to_half_life(weight_decay: Scalar) -> Any:
    r"""The full steps in which decay alone halves a weight: :math:`\ln 2 / -\ln(1 - λ)`.

    Args:
      weight_decay: :math:`λ` in [0, 1], the fraction of a weight removed per full step.

    Returns:
      The half-life in full steps; infinite without decay.

    Raises:
      TypeError, ValueError: for a decay outside [0, 1].

    Examples:
      >>> import optax_decoupled as od
      >>> assert round(od.weight_decay_to_half_life(3e-5)) == 23_105
    """
    decay = _check_share(weight_decay)
    if not _checks.is_static(decay):
        return -math.log(2.0) / jnp.log1p(-jnp.asarray(decay))
    if decay in (0, 1):
        return 0.0 if decay else math.inf
    return -math.log(2.0) / math.log1p(-decay)


def weight_decay_to_timescale(weight_decay: Scalar) -> Any:
    r"""The full steps over which the weights average their updates: :math:`τ = 1/λ`.

    Args:
      weight_decay: :math:`λ` in [0, 1], the fraction of a weight removed per full step.

    Returns:
      :math:`τ` in full steps; infinite without decay.

    Raises:
      TypeError, ValueError: for a decay outside [0, 1].

    Examples:
      >>> import optax_decoupled as od
      >>> assert round(od.weight_decay_to_timescale(3e-5)) == 33_333

    References:
      Wang & Aitchison, arXiv:2405.13698.
    """
    decay = _check_share(weight_decay)
    return math.inf if _checks.is_static_zero(decay) else 1.0 / decay


def _checked(weight_decay: Scalar, learning_rate: Scalar) -> tuple[Any, Any]:
    return (
        _checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight."),
        _checks.check_positive("learning_rate", learning_rate, "Use the schedule's peak rate."),
    )


def _check_share(weight_decay: Scalar) -> Any:
    return _checks.check_number(
        "weight_decay",
        weight_decay,
        "a number in [0, 1]",
        lambda x: 0.0 <= x <= 1.0,
        "It is the fraction of a weight removed per step.",
    )
