"""Decay that reaches later updates through the optimizer's state, as L2 does."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from optax_decoupled._probe import Data, Probe

# A memory smaller than this, relative to the next update, is rounding.
_ROUNDING = 1e-5
# The decoupled part that counts, relative to the whole fraction.
_SIGNIFICANT = 0.05
# L2 coefficients that are tried, as powers of two, and how often their interval is halved.
_COARSE = np.arange(-40.0, 11.0, 5.0)
_HALVINGS = 6


class Memory(NamedTuple):
    """What later updates remember of the parameters, for each leaf, float64[n].

    Attributes:
      remembered: whether the next update depends on the parameters of this one (0 or 1).
      leak: how much, as a fraction of them; positive if it shrinks them.
      second: the fraction removed by the second of two updates at natural amplitude.
      noise: that of `second`.
      decoupled: the part of the immediate fraction that no gradient can explain.
    """

    remembered: np.ndarray
    leak: np.ndarray
    second: np.ndarray
    noise: np.ndarray
    decoupled: np.ndarray


def measure_memory(
    probe: Probe, data: Data, large: np.ndarray, factor: float, fraction: np.ndarray
) -> Memory:
    """Compares the updates that follow one at +v with those that follow one at -v."""
    natural, amplitude, zero = probe.natural, probe.per_leaf(large), np.zeros(len(probe.leaves))
    plus = probe.two_steps(data, large, zero, natural, factor)
    minus = probe.two_steps(data, -large, zero, natural, factor)
    leak, size = (minus[1] - plus[1]) / 2, plus[2]
    remembered = abs(leak) > _ROUNDING * size
    plus = probe.two_steps(data, natural, zero, natural, 1.0)
    minus = probe.two_steps(data, -natural, zero, -natural, 1.0)
    second = (minus[1] - plus[1]) / 2 / probe.per_leaf(natural)
    noise = 1e-6 * plus[2] / probe.per_leaf(natural)

    def as_gradient(octaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fraction and leak that L2 of coefficient 2**octaves would have at `large`."""
        shift = 2.0**octaves * amplitude
        plus = probe.two_steps(data, natural, shift, natural, factor)
        minus = probe.two_steps(data, natural, -shift, natural, factor)
        return (minus[0] - plus[0]) / 2 / amplitude, (minus[1] - plus[1]) / 2

    decoupled = zero
    if remembered.any():
        decoupled = np.where(remembered, _beside_l2(as_gradient, fraction, leak), 0.0)
    return Memory(remembered, leak / amplitude, second, noise, decoupled)


def _beside_l2(
    as_gradient: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    fraction: np.ndarray,
    leak: np.ndarray,
) -> np.ndarray:
    """The decoupled part beside L2, 0 where L2 alone explains what was measured.

    Pure L2 of coefficient k acts as a gradient k·v: some k explains both the fraction
    and the leak. With a decoupled part there is none. Either the fraction is out of
    reach (a preconditioner limits the step, not the decay), or, where the response is
    linear in k, the k that explains the fraction leaves too large a leak.
    """
    n = len(fraction)
    fractions, leaks = np.array([as_gradient(np.full(n, x)) for x in _COARSE]).swapaxes(0, 1)
    reached = fractions >= fraction
    first = np.where(reached.any(0), reached.argmax(0), len(_COARSE) - 1)
    low, high = _COARSE[np.maximum(first - 1, 0)], _COARSE[first]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = as_gradient(middle)[0] >= fraction
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    like, like_leak = as_gradient(high)
    linear = as_gradient(high + 1)[0] > 2**0.5 * like
    most, most_leak = fractions.max(0), abs(leaks).max(0)
    out_of_reach = (fraction > most) & (abs(leak) < 1.1 * most_leak)
    share = np.divide(leak, like_leak, out=np.ones(n), where=like_leak != 0)
    explained = np.where(out_of_reach, most, np.where(linear, share * like, fraction))
    rest = fraction - explained
    return np.where((leak * fraction > 0) & (rest > _SIGNIFICANT * fraction), rest, 0.0)
