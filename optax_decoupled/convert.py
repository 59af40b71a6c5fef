"""Weight decay between conventions, as plain arithmetic on numbers, arrays and tracers."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.types import Scalar

__all__ = [
    "from_half_life",
    "from_normalized",
    "from_pytorch",
    "from_timescale",
    "to_half_life",
    "to_l2",
    "to_normalized",
    "to_pytorch",
    "to_timescale",
    "transfer",
]

_BUDGET = "It measures the training budget."
_SHARE = "It is the fraction of a weight removed per step."


def from_pytorch(weight_decay: Scalar, learning_rate: Scalar) -> Any:
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


def to_pytorch(weight_decay: Scalar, learning_rate: Scalar) -> Any:
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
      >>> decay = od.convert.to_pytorch(1e-4, 0.001)
      >>> assert abs(od.weight_decay_from_pytorch(decay, 0.001) - 1e-4) < 1e-18
    """
    decay, rate = _checked(weight_decay, learning_rate)
    return decay / rate


def to_l2(weight_decay: Scalar, learning_rate: Scalar) -> Any:
    r"""The L2 coefficient with which plain SGD takes the same steps: :math:`λ' = λ / α`.

    Proposition 1 of the paper. It holds for SGD without momentum at the constant rate
    :math:`α`; with momentum or Adam no L2 coefficient does (Proposition 2).

    Args:
      weight_decay: :math:`λ \ge 0`, the fraction of a weight removed per step.
      learning_rate: :math:`α > 0`.

    Returns:
      :math:`λ'`, for :func:`~optax_decoupled.l2_to_grad` and :func:`~optax_decoupled.sgd_l2`.

    Raises:
      TypeError, ValueError: for a negative decay or a rate that is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> assert od.convert.to_l2(0.001, 0.1) == 0.01

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Proposition 1.
    """
    decay, rate = _checked(weight_decay, learning_rate)
    return decay / rate


def from_half_life(steps: Scalar) -> Any:
    r"""The decay that halves an undriven weight in so many steps: :math:`1 - 2^{-1/n}`.

    Args:
      steps: the half-life :math:`n > 0` in full steps.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step.

    Raises:
      TypeError, ValueError: if ``steps`` is not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.convert.from_half_life(1000)
      >>> assert abs((1 - decay) ** 1000 - 0.5) < 1e-12
    """
    n = checks.check_positive("steps", steps, "It is a half-life in optimizer steps.")
    if checks.is_static(n):
        return -math.expm1(-math.log(2.0) / n)
    return -jnp.expm1(-math.log(2.0) / n)


def from_timescale(steps: Scalar) -> Any:
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
      >>> assert od.convert.from_timescale(2000) == 0.0005

    References:
      Wang & Aitchison, How to set AdamW's weight decay as you scale model and dataset
      size, arXiv:2405.13698.
    """
    tau = checks.check_at_least_1("steps", steps, "It is a timescale in optimizer steps.")
    return 1.0 / tau


def to_half_life(weight_decay: Scalar) -> Any:
    r"""The full steps in which decay alone halves a weight: :math:`\ln 2 / -\ln(1 - λ)`.

    Args:
      weight_decay: :math:`λ` in [0, 1], the fraction of a weight removed per full step.

    Returns:
      The half-life in full steps; infinite without decay.

    Raises:
      TypeError, ValueError: for a decay outside [0, 1].

    Examples:
      >>> import optax_decoupled as od
      >>> assert round(od.convert.to_half_life(3e-5)) == 23_105
    """
    decay = checks.check_share("weight_decay", weight_decay, _SHARE)
    if not checks.is_static(decay):
        return -math.log(2.0) / jnp.log1p(-jnp.asarray(decay))
    if decay in (0, 1):
        return 0.0 if decay else math.inf
    return -math.log(2.0) / math.log1p(-decay)


def to_timescale(weight_decay: Scalar) -> Any:
    r"""The full steps over which the weights average their updates: :math:`τ = 1/λ`.

    Args:
      weight_decay: :math:`λ` in [0, 1], the fraction of a weight removed per full step.

    Returns:
      :math:`τ` in full steps; infinite without decay.

    Raises:
      TypeError, ValueError: for a decay outside [0, 1].

    Examples:
      >>> import optax_decoupled as od
      >>> assert round(od.convert.to_timescale(3e-5)) == 33_333

    References:
      Wang & Aitchison, arXiv:2405.13698.
    """
    decay = checks.check_share("weight_decay", weight_decay, _SHARE)
    return math.inf if checks.is_static_zero(decay) else 1.0 / decay


def from_normalized(
    norm: Scalar,
    *,
    steps: Scalar | None = None,
    batch_size: Scalar | None = None,
    dataset_size: Scalar | None = None,
    epochs: Scalar | None = None,
) -> Any:
    r"""The decay for a training budget, :math:`λ = λ_{norm} \sqrt{b / (B T)} = λ_{norm} / \sqrt S`.

    The paper found that the best :math:`λ_{norm}` moves less with the budget than the
    best :math:`λ`: 0.025 to 0.05 on CIFAR-10 and ImageNet32x32. Pass the budget as
    ``steps``, or as the other three sizes.

    Args:
      norm: :math:`λ_{norm} \ge 0`, dimensionless.
      steps: :math:`S = B T / b`, updates in the run; of the current cycle under restarts.
      batch_size: :math:`b`, examples in a batch.
      dataset_size: :math:`B`, training examples.
      epochs: :math:`T`, passes over the data; of the current cycle under restarts.

    Returns:
      :math:`λ`, the fraction of a weight removed per full step: a Python float for
      static arguments.

    Raises:
      TypeError, ValueError: for a negative ``norm``, a size that is not positive, and
        unless the budget is given in one of the two ways.

    Examples:
      >>> import optax_decoupled as od
      >>> decay = od.convert.from_normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100)
      >>> assert round(decay, 6) == 2.53e-4
      >>> assert od.convert.from_normalized(0.05, steps=10_000) == 0.0005

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    scale = _check_norm(norm)
    sizes: Any = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != (3 if steps is None else 0):
        raise TypeError(
            f"from_normalized got steps={steps!r} and {given}; it needs the budget in one "
            "way. Pass steps alone, or batch_size, dataset_size and epochs."
        )
    if steps is not None:
        return scale / checks.check_positive("steps", steps, _BUDGET) ** 0.5
    b, B, T = (checks.check_positive(name, size, _BUDGET) for name, size in sizes.items())
    return scale * (b / B / T) ** 0.5  # B·T may overflow an int32


def to_normalized(weight_decay: Scalar, *, steps: Scalar) -> Any:
    r"""The normalized decay of a run, :math:`λ_{norm} = λ \sqrt S`: to compare two budgets.

    Args:
      weight_decay: :math:`λ \ge 0`, the fraction of a weight removed per full step.
      steps: :math:`S > 0`, updates in the run.

    Returns:
      :math:`λ_{norm}`, dimensionless; 0.025 to 0.05 was best in the paper.

    Raises:
      TypeError, ValueError: for a negative decay or ``steps`` that are not positive.

    Examples:
      >>> import optax_decoupled as od
      >>> assert round(od.convert.to_normalized(3e-5, steps=100_000), 5) == 0.00949

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight.")
    return weight_decay * checks.check_positive("steps", steps, _BUDGET) ** 0.5


def transfer(
    weight_decay: Scalar,
    *,
    steps: tuple[Scalar, Scalar] | None = None,
    width: tuple[Scalar, Scalar] | None = None,
    exponent: Scalar = 1.0,
    width_exponent: Scalar = 0.0,
) -> Any:
    r"""Carries a decay that was tuned for one run over to a longer or wider one.

    .. math::

        λ_{new} = λ_{old} \left(\frac{S_{old}}{S_{new}}\right)^{p}
        \left(\frac{W_{new}}{W_{old}}\right)^{-q}

    Give the decay per full step. Where the learning rate changes too, PyTorch's value does
    so by itself: convert back with :func:`to_pytorch` and the new rate.

    Args:
      weight_decay: :math:`λ_{old} \ge 0`, the fraction of a weight removed per full step.
      steps: ``(old, new)`` updates in the run; None if they stay.
      width: ``(old, new)`` width of the network; None if it stays.
      exponent: :math:`p`. 1 keeps the budget, so the weights average over the same share of
        the run (arXiv:2405.13698); 0.5 is the paper's normalized decay.
      width_exponent: :math:`q`. 0 keeps the decay, as independent decay does
        (arXiv:2510.19093); 0.5 was measured for AdamW by arXiv:2510.15262.

    Returns:
      :math:`λ_{new}`, the fraction of a weight removed per full step.

    Raises:
      TypeError, ValueError: for a negative decay, sizes that are not positive pairs, an
        exponent that is not finite, and if nothing changes.

    Warns:
      UserWarning: for an exponent without its pair of sizes, which does nothing.

    Examples:
      Twice the batch and four times the tokens, so twice the steps, at √2 times the rate:

      >>> import optax_decoupled as od
      >>> old = od.weight_decay_from_pytorch(0.28, 1e-3)
      >>> new = od.convert.transfer(old, steps=(10_000, 20_000))
      >>> assert round(od.convert.to_pytorch(new, 2**0.5 * 1e-3), 6) == 0.098995

    References:
      Wang & Aitchison, arXiv:2405.13698; Kosson et al., arXiv:2510.19093; arXiv:2510.15262;
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight.")
    if steps is None and width is None:
        raise TypeError(
            "transfer got neither steps nor width, so nothing changes. "
            "Pass steps=(old, new), width=(old, new) or both."
        )
    by_steps = _factor("steps", steps, "exponent", exponent, 1.0)
    by_width = _factor("width", width, "width_exponent", width_exponent, 0.0)
    return weight_decay * by_steps * by_width


def _checked(weight_decay: Scalar, learning_rate: Scalar) -> tuple[Any, Any]:
    return (
        checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight."),
        checks.check_positive("learning_rate", learning_rate, "Use the schedule's peak rate."),
    )


def _check_norm(norm: Scalar) -> Any:
    return checks.check_nonnegative("norm", norm, "The paper's best are 0.025 to 0.05.")


def _factor(
    name: str, sizes: tuple[Scalar, Scalar] | None, power: str, exponent: Scalar, default: float
) -> Any:
    """The old over the new of a pair of sizes, to a power; 1 for None."""
    way_out = "See its argument for usual values."
    checks.check_finite(power, exponent, way_out)
    if sizes is None:
        if checks.is_static(exponent) and exponent != default:
            text = f"{power}={exponent} does nothing without {name}=(old, new). Pass that too."
            checks.warn(text)
        return 1.0
    if not (isinstance(sizes, tuple | list) and len(sizes) == 2):
        raise TypeError(
            f"{name}={brief(sizes)} must be a pair (old, new), e.g. {name}=(1000, 4000)."
        )
    old, new = (checks.check_positive(name, size, "Pass a pair (old, new).") for size in sizes)
    return (old / new) ** exponent


def __dir__() -> list[str]:
    return __all__
