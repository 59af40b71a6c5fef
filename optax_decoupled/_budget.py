"""Weight decay for a training budget: normalized, and carried over to another run."""

from __future__ import annotations

import math
from typing import Any

from optax_decoupled import _checks
from optax_decoupled._checks import shown
from optax_decoupled._types import Scalar

_BUDGET = "It measures the training budget."


def normalized_weight_decay(
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
      >>> decay = od.normalized_weight_decay(0.05, batch_size=128, dataset_size=50_000, epochs=100)
      >>> assert round(decay, 6) == 2.53e-4
      >>> assert od.normalized_weight_decay(0.05, steps=10_000) == 0.0005

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    scale = check_norm(norm)
    sizes: Any = {"batch_size": batch_size, "dataset_size": dataset_size, "epochs": epochs}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != (3 if steps is None else 0):
        raise TypeError(
            f"normalized_weight_decay got steps={steps!r} and {given}; it needs the budget in one "
            "way. Pass steps alone, or batch_size, dataset_size and epochs."
        )
    if steps is not None:
        return scale / _checks.check_positive("steps", steps, _BUDGET) ** 0.5
    b, B, T = (_checks.check_positive(name, size, _BUDGET) for name, size in sizes.items())
    return scale * (b / B / T) ** 0.5  # B·T may overflow an int32


def weight_decay_to_normalized(weight_decay: Scalar, *, steps: Scalar) -> Any:
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
      >>> assert round(od.weight_decay_to_normalized(3e-5, steps=100_000), 5) == 0.00949

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.1.
    """
    _checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight.")
    return weight_decay * _checks.check_positive("steps", steps, _BUDGET) ** 0.5


def transfer_weight_decay(
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
    so by itself: convert back with :func:`weight_decay_to_pytorch` and the new rate.

    Args:
      weight_decay: :math:`λ_{old} \ge 0`, the fraction of a weight removed per full step.
      steps: ``(old, new)`` updates in the run; None if they stay.
      width: ``(old, new)`` width of the network; None if it stays.
      exponent: :math:`p`. 1 keeps the budget, so the weights average over the same share of
        the run (arXiv:2405.13698); 0.5 is the paper's normalized decay.
      width_exponent: :math:`q`. 0 keeps the decay, as independent decay does; 0.5 was
        measured for AdamW by arXiv:2510.15262.

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
      >>> new = od.transfer_weight_decay(old, steps=(10_000, 20_000))
      >>> assert round(od.weight_decay_to_pytorch(new, 2**0.5 * 1e-3), 6) == 0.098995

    References:
      Wang & Aitchison, arXiv:2405.13698; arXiv:2510.15262; Loshchilov & Hutter,
      arXiv:1711.05101, appendix B.1.
    """
    _checks.check_nonnegative("weight_decay", weight_decay, "It must not add weight.")
    if steps is None and width is None:
        raise TypeError(
            "transfer_weight_decay got neither steps nor width, so nothing changes. "
            "Pass steps=(old, new), width=(old, new) or both."
        )
    by_steps = _factor("steps", steps, "exponent", exponent, 1.0)
    by_width = _factor("width", width, "width_exponent", width_exponent, 0.0)
    return weight_decay * by_steps * by_width


def check_norm(norm: Scalar) -> Any:
    return _checks.check_nonnegative("norm", norm, "The paper's best are 0.025 to 0.05.")


def _factor(
    name: str, sizes: tuple[Scalar, Scalar] | None, power: str, exponent: Scalar, default: float
) -> Any:
    """The old over the new of a pair of sizes, to a power; 1 for None."""
    way_out = "See its argument for usual values."
    _checks.check_number(power, exponent, "a finite number", math.isfinite, way_out)
    if sizes is None:
        if _checks.is_static(exponent) and exponent != default:
            text = f"{power}={exponent} does nothing without {name}=(old, new). Pass that too."
            _checks.warn(text)
        return 1.0
    if not (isinstance(sizes, tuple | list) and len(sizes) == 2):
        raise TypeError(
            f"{name}={shown(sizes)} must be a pair (old, new), e.g. {name}=(1000, 4000)."
        )
    old, new = (_checks.check_positive(name, size, "Pass a pair (old, new).") for size in sizes)
    return (old / new) ** exponent
