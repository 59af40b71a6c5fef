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


def normalized_weight_decay(
    norm: Scalar,
    *,
    batch_size: Scalar,
    dataset_size: Scalar,
    epochs: Scalar,
) -> Any:
    r"""The decay for a training budget, :math:`λ = λ_{norm} \sqrt{b / (B T)}`.

    The paper found that the best :math:`λ_{norm}` moves less with the budget than the
    best :math:`λ`: 0.025 to 0.05 on CIFAR-10 and ImageNet32x32.

    Args:
      norm: :math:`λ_{norm} \ge 0`, dimensionless.
      batch_size: :math:`b`, examples in a batch.
      dataset_size: :math:`B`, training examples.
      epochs: :math:`T`, passes over the data; of the current cycle under restarts.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step: a Python float for
      static arguments.

    Raises:
      TypeError, ValueError: for a negative ``norm`` or a size that is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.normalized_weight_decay(0.05, batch_size=128, dataset_size=50_000, epochs=100)
      >>> assert round(decay, 6) == 2.53e-4

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    scale = check_norm(norm)
    sizes = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    b, B, T = (
        _checks.check_positive(name, value, "It measures the training budget.")
        for name, value in sizes.items()
    )
    return scale * (b / B / T) ** 0.5  # B·T may overflow an int32


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


def check_norm(norm: Scalar) -> Any:
    return _checks.check_nonnegative("norm", norm, "The paper's best are 0.025 to 0.05.")


def _checked(weight_decay: Scalar, learning_rate: Scalar) -> tuple[Any, Any]:
    return (
        _checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight."),
        _checks.check_positive("learning_rate", learning_rate, "Use the schedule's peak rate."),
    )
