r"""The size at which the weights of a normalized layer settle, and how they reach it.

Random gradients make a weight longer and decay makes it shorter. Where the two balance, its
length and the angle of a step stay constant (Kosson et al., arXiv:2305.17212). The page "Watch
the weights" of the documentation has the derivations; the tests are simulations.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optax_decoupled._common import checks
from optax_decoupled._common.products import peak_of, product_over_run
from optax_decoupled._common.types import Scalar, ScalarOrSchedule

__all__ = [
    "Equilibrium",
    "adamw",
    "lion",
    "rms_over_run",
    "sgd_l2",
    "sgdw",
]

# Powers and coefficients of the arcsine's power series. 64 terms give S within 0.2 % up to
# b1 = b2 = 0.999, and to the last digit for Lion's usual values.
_POWERS = np.arange(1.0, 128.0, 2.0)
_ARCSINE = np.cumprod([1.0, *(1 - 1 / (_POWERS[:-1] + 1))]) / _POWERS


class Equilibrium(NamedTuple):
    """The size and rotation of a normalized layer's weight under random gradients.

    Attributes:
      rms: root mean square of its elements.
      rotation: the angle that one step turns it by, in radians.
      relaxation: steps in which its distance from this rms falls to 1/e.
    """

    rms: Any
    rotation: Any
    relaxation: Any


def adamw(learning_rate: Scalar, weight_decay: Scalar, b1: Scalar = 0.9) -> Equilibrium:
    r"""Equilibrium of AdamW's weights in a normalized layer, with :math:`a = 1 - c`.

    .. math::

        \text{rms} = α \sqrt{\frac{(1 - β_1)(1 + aβ_1)}{(1 + β_1)(1 - aβ_1)(1 - a^2)}}
        ≈ \frac{α}{\sqrt{2c}}, \qquad
        \sin(\text{rotation}) = \frac{\sqrt{(1 - a^2)(1 - β_1^2)}}{1 + aβ_1}, \qquad
        \text{relaxation} = \frac{1}{2c}

    The rotation does not contain the learning rate: decoupled decay alone sets it. Cautious
    decay acts like about :math:`c/2`, less with momentum, which keeps updates and weights
    pointing the same way: in simulations with :math:`β_1 = 0.9` its rms was that of
    :math:`0.43 c` for :math:`c = 0.001` and of :math:`0.32 c` for 0.01; with 0, of
    :math:`0.48 c` and :math:`0.47 c`.

    Args:
      learning_rate: :math:`α > 0`, times the schedule where that is not 1.
      weight_decay: :math:`c` in (0, 1), the fraction of a weight removed per step.
      b1: :math:`β_1` in [0, 1). :math:`β_2` is taken to be close to 1.

    Returns:
      An :class:`Equilibrium`; floats for floats.

    Raises:
      TypeError, ValueError: for arguments out of range. Without decay there is none.

    Examples:
      >>> import optax_decoupled as od
      >>> there = od.equilibrium.adamw(1e-3, 1e-3)
      >>> assert round(there.rms, 4) == 0.0223 and round(there.rotation, 5) == 0.01026
      >>> assert od.equilibrium.adamw(1e-2, 1e-3).rotation == there.rotation

    References:
      Kosson et al., Rotational Equilibrium, arXiv:2305.17212.
    """
    alpha, c = _checked(learning_rate, weight_decay)
    checks.check_fraction("b1", b1, "0.9 is the usual value.")
    lost = c * (2 - c)  # 1 − a², without its cancellation
    kept = (1 - c) * b1
    rms = alpha * ((1 - b1) * (1 + kept) / ((1 + b1) * (1 - kept) * lost)) ** 0.5
    return Equilibrium(rms, _angle(c * (1 - b1) / (1 + kept)), 0.5 / c)


def lion(
    learning_rate: Scalar, weight_decay: Scalar, b1: Scalar = 0.9, b2: Scalar = 0.99
) -> Equilibrium:
    r"""Equilibrium of Lion's weights in a normalized layer, with :math:`a = 1 - c`.

    .. math::

        \text{rms} = α \sqrt{\frac{1 + 2S}{1 - a^2}}, \qquad
        \cos(\text{rotation}) = 1 - c \, \frac{1 - cS/a}{1 + 2S}, \qquad
        \text{relaxation} = \frac{1}{2c}

    :math:`S` is the discounted sum of the correlations between the sign of one step and the
    sign :math:`k` steps later, which follow from those of the momentum:

    .. math::

        S = \sum_{k \ge 1} a^k \, \frac2π \arcsin(ρ β_2^{k-1}), \qquad
        ρ = \frac{β_1 (1 - β_2) (1 - β_1 + β_1 β_2 / (1 + β_2))}
        {(1 - β_1)^2 + β_1^2 (1 - β_2) / (1 + β_2)}

    Args:
      learning_rate, weight_decay: :math:`α` and :math:`c`, see :func:`adamw`.
      b1, b2: :math:`β_1, β_2` in [0, 1).

    Returns:
      An :class:`Equilibrium`; floats for floats.

    Raises:
      TypeError, ValueError: for arguments out of range.

    Examples:
      The rate sets the size of the weights, not their rotation:

      >>> import optax_decoupled as od
      >>> slow, fast = (od.equilibrium.lion(rate, 1e-3) for rate in (1e-4, 2e-4))
      >>> assert slow.rotation == fast.rotation and fast.rms == 2 * slow.rms

    References:
      Kosson et al., Rotational Equilibrium, arXiv:2305.17212. The sum over signs uses the
      arcsine law for the correlation of two Gaussian signs (Van Vleck & Middleton, 1966).
    """
    alpha, c = _checked(learning_rate, weight_decay)
    checks.check_fraction("b1", b1, "0.9 is the usual value.")
    checks.check_fraction("b2", b2, "0.99 is the usual value.")
    S = sum_of_sign_correlations(b1, b2, 1 - c)
    rms = alpha * ((1 + 2 * S) / (c * (2 - c))) ** 0.5
    turned = c * (1 - c * S / (1 - c)) / (1 + 2 * S)  # 1 - cos(rotation)
    return Equilibrium(rms, _angle(turned), 0.5 / c)


def sum_of_sign_correlations(b1: Any, b2: Any, a: Any) -> Any:
    """S of :func:`lion`: the arcsine as its power series, each term a geometric series in k."""
    variance = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    first = b1 * (1 - b2) * (1 - b1 + b1 * b2 / (1 + b2)) / variance
    total = (_ARCSINE * first**_POWERS * a / (1 - a * b2**_POWERS)).sum() * 2 / math.pi
    return float(total) if checks.is_static(total) else total


def sgdw(
    learning_rate: Scalar,
    weight_decay: Scalar,
    momentum: Scalar = 0.9,
    *,
    gradient_norm: Scalar = 1.0,
    size: Scalar = 1,
) -> Equilibrium:
    r"""Equilibrium of SGDW's weights in a normalized layer, whose gradient is :math:`G/\|θ\|`.

    .. math::

        \|θ\|^4 = \frac{α^2 G^2}{2c (1 - m)^2}, \qquad
        \text{rotation} = \sqrt{\frac{2c (1 - m)}{1 + m}}, \qquad
        \text{relaxation} = \frac{1}{4c}

    The gradient of a scale-invariant loss falls as its weight grows, which is why the rms
    depends on it, and why it relaxes in half of the time that AdamW takes.

    Args:
      learning_rate: :math:`α > 0`.
      weight_decay: :math:`c` in (0, 1), the fraction of a weight removed per step.
      momentum: :math:`m` in [0, 1), with a buffer as PyTorch's and Optax's.
      gradient_norm: :math:`G = \|g\| \|θ\| > 0`: measure the two norms and multiply them.
      size: elements of the weight. With 1 the rms is the norm.

    Returns:
      An :class:`Equilibrium`; floats for floats.

    Raises:
      TypeError, ValueError: for arguments out of range.

    Examples:
      Neither the rate nor the gradient moves the rotation:

      >>> import optax_decoupled as od
      >>> slow = od.equilibrium.sgdw(0.1, 1e-3, gradient_norm=0.5)
      >>> assert slow.rotation == od.equilibrium.sgdw(0.4, 1e-3).rotation

    References:
      Kosson et al., arXiv:2305.17212; Defazio, arXiv:2506.02285.
    """
    alpha, c = _checked(learning_rate, weight_decay)
    checks.check_fraction("momentum", momentum, "0.0 is SGD without momentum.")
    checks.check_positive("gradient_norm", gradient_norm, "It is the product of two norms.")
    checks.check_positive("size", size, "It counts the elements of the weight.")
    squared_norm = alpha * gradient_norm / (1 - momentum) / (2 * c) ** 0.5
    rotation = (2 * c * (1 - momentum) / (1 + momentum)) ** 0.5
    return Equilibrium((squared_norm / size) ** 0.5, rotation, 0.25 / c)


def sgd_l2(
    learning_rate: Scalar,
    l2: Scalar,
    momentum: Scalar = 0.9,
    *,
    gradient_norm: Scalar = 1.0,
    size: Scalar = 1,
) -> Equilibrium:
    r"""Equilibrium of the weights of SGD with L2 in a normalized layer.

    .. math::

        \|θ\|^4 = \frac{α G^2}{2 λ' (1 - m)}, \qquad
        \text{rotation} = \sqrt{\frac{2 α λ'}{1 + m}}

    The penalty passes through the momentum, so in the long run a step removes
    :math:`α λ' / (1 - m)` of a weight, and all else is :func:`sgdw` of that
    decay. A function of its own, as :func:`~optax_decoupled.sgd_l2` is: its coefficient is no
    fraction, and its rotation moves with the learning rate.

    Args:
      learning_rate: :math:`α > 0`.
      l2: :math:`λ' > 0`, the coefficient as in :func:`~optax_decoupled.sgd_l2`.
      momentum, gradient_norm, size: see :func:`sgdw`.

    Returns:
      An :class:`Equilibrium`; floats for floats.

    Raises:
      TypeError, ValueError: for arguments out of range.

    Examples:
      >>> import optax_decoupled as od
      >>> turn = od.equilibrium.sgd_l2(0.1, 1e-3, momentum=0.0).rotation
      >>> assert abs(turn - (2 * 0.1 * 1e-3) ** 0.5) < 1e-12

    References:
      Kosson et al., arXiv:2305.17212.
    """
    checks.check_positive("learning_rate", learning_rate, "It is the step size.")
    checks.check_positive("l2", l2, "Without it there is no equilibrium.")
    checks.check_fraction("momentum", momentum, "0.0 is SGD without momentum.")
    removed = learning_rate * l2 / (1 - momentum)
    return sgdw(learning_rate, removed, momentum, gradient_norm=gradient_norm, size=size)


def rms_over_run(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None,
    steps: int,
    initial_rms: float,
    decay_schedule: ScalarOrSchedule | None = None,
) -> np.ndarray:
    r"""The rms of a normalized layer's weight under AdamW, before and after every step.

    .. math:: ρ_{t+1} = (1 - c_t)^2 ρ_t + α_t^2, \qquad \text{rms}_t = \sqrt{ρ_t}

    The arguments are those of :func:`~optax_decoupled.adamw`. Where the schedule moves faster than
    :math:`1/2c_t`, the rms cannot follow and the equilibrium of the moment,
    :math:`α_t / \sqrt{2c_t}`, is wrong, by ten times at the end of a cosine.

    Args:
      learning_rate: :math:`α`, a number or a schedule of the rate.
      weight_decay: :math:`λ`, the fraction of a weight removed per full step.
      schedule: :math:`η_t`, the multiplier of both; None for 1.
      steps: the length of the run.
      initial_rms: that of the weight at the start.
      decay_schedule: the decay's own multiplier, instead of ``schedule``.

    Returns:
      A NumPy array of float64[steps + 1].

    Raises:
      TypeError, ValueError: for arguments out of range.

    Examples:
      Corrected decay, with the square of the schedule, keeps the rms where it is:

      >>> import optax, optax_decoupled as od
      >>> eta = optax.cosine_decay_schedule(1.0, 10_000)
      >>> start = od.equilibrium.adamw(1e-3, 1e-3).rms
      >>> kept = od.equilibrium.rms_over_run(1e-3, 1e-3, eta, 10_000, start, lambda t: eta(t) ** 2)
      >>> assert abs(kept[-1] / start - 1) < 0.01

    References:
      Kosson et al., arXiv:2305.17212; Defazio, arXiv:2506.02285.
    """
    checks.check_learning_rate(learning_rate)
    checks.check_weight_decay(weight_decay, peak_of(learning_rate))
    checks.check_schedule("schedule", schedule)
    checks.check_schedule("decay_schedule", decay_schedule)
    checks.check_whole("steps", steps, "It is the length of the run.")
    checks.check_nonnegative("initial_rms", initial_rms, "It is that of the weight at init.")
    steps, multiplier = int(steps), schedule if decay_schedule is None else decay_schedule
    rate = product_over_run(steps, learning_rate, schedule)
    decay = product_over_run(steps, weight_decay, multiplier)
    pairs = zip(((1 - decay) ** 2).tolist(), (rate**2).tolist(), strict=True)
    squares = itertools.accumulate(
        pairs, lambda rho, pair: pair[0] * rho + pair[1], initial=float(initial_rms) ** 2
    )
    return np.sqrt(np.fromiter(squares, float, steps + 1))


def _angle(turned: Any) -> Any:
    """The angle whose cosine is 1 - turned, also where that would round to 1."""
    half = (turned / 2) ** 0.5  # the sine of half the angle
    return 2 * (math.asin(half) if checks.is_static(half) else jnp.arcsin(half))


def _checked(learning_rate: Any, weight_decay: Any) -> tuple[Any, Any]:
    checks.check_positive("learning_rate", learning_rate, "It is the step size.")
    way_out = "Without decay there is no equilibrium."
    checks.check_inner_fraction("weight_decay", weight_decay, way_out)
    return learning_rate, weight_decay


def __dir__() -> list[str]:
    return __all__
