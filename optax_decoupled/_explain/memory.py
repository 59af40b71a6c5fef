"""Decay that reaches later updates through the optimizer's state, as L2 does."""

from typing import NamedTuple

import numpy as np

from optax_decoupled._explain.probe import Data, Probe, Response

# The amplitude at which momentum and squared gradients both show L2, from 1e-7 to 1.
MEMORABLE = 2.0**12
# A memory smaller than this, relative to the next update, is rounding.
_ROUNDING = 1e-5
# The decoupled part that counts, relative to the whole fraction.
_SIGNIFICANT = 0.05
# L2 coefficients that are tried: the last two tell a linear response from a saturated one.
_COEFFICIENTS = (2.0**-20, 1.0, 2.0**10)


class Memory(NamedTuple):
    """What later updates remember of the parameters, for each leaf, float64[n].

    Attributes:
      immediate: the fraction removed by one update at the amplitude of `leak`.
      remembered: whether the next update depends on the parameters of this one (0 or 1).
      leak: how much, as a fraction of them; positive if it shrinks them.
      second: the fraction removed by the second of two updates at natural amplitude.
      noise: that of `second`.
      decoupled: the part of the immediate fraction that neither gradients nor the size of
        the parameters explain.
    """

    immediate: np.ndarray
    remembered: np.ndarray
    leak: np.ndarray
    second: np.ndarray
    noise: np.ndarray
    decoupled: np.ndarray


def measure_memory(probe: Probe, data: Data, large: np.ndarray, at_large: Response) -> Memory:
    """Compares the updates that follow one at +v with those that follow one at -v.

    Args:
      probe: the optimizer.
      data: its arrays.
      large: the amplitudes of `at_large`, where L2 has saturated.
      at_large: what the optimizer does there.
    """
    fraction, natural, zero = at_large.fraction, probe.natural, np.zeros(len(probe.kinds))

    def odd_part(first: np.ndarray, shift: np.ndarray, flip: bool = False) -> np.ndarray:
        """Of the first update, and of the one that follows; and the size of that."""
        if shift.any():
            opposite = first, -shift, natural
        else:
            opposite = -first, shift, -natural if flip else natural
        plus, minus = probe.two_steps(data, (first, shift, natural), opposite)
        return np.array([(minus[0] - plus[0]) / 2, (minus[1] - plus[1]) / 2, plus[2]])

    immediate, leak, size = odd_part(np.full_like(natural, MEMORABLE), zero)
    remembered = abs(leak) > _ROUNDING * size
    _, second, noise = odd_part(natural, zero, flip=True) / probe.per_leaf(natural)
    decoupled = np.zeros(len(fraction))
    if remembered.any():
        amplitude = probe.per_leaf(large)
        memory = odd_part(large, zero)[1] / amplitude
        as_l2 = [odd_part(natural, k * large)[:2] / amplitude for k in _COEFFICIENTS]
        decoupled = _beside_l2(fraction, memory, np.array(as_l2))
        decoupled = np.where(remembered & (decoupled > at_large.fraction_noise), decoupled, 0.0)
        if decoupled.any():  # unless steps grow with the parameters: then L2 explains more there
            most = odd_part(large, _COEFFICIENTS[-1] * large)[0] / amplitude
            explains_it = fraction - most < _SIGNIFICANT * fraction
            decoupled = np.where(explains_it & (most > 8 * as_l2[-1][0]), 0.0, decoupled)
    immediate, leak = immediate / MEMORABLE, leak / MEMORABLE
    return Memory(immediate, remembered, leak, second, 1e-6 * noise, decoupled)


def _beside_l2(fraction: np.ndarray, leak: np.ndarray, as_l2: np.ndarray) -> np.ndarray:
    """The decoupled part beside L2, 0 where L2 alone explains what was measured.

    Pure L2 of coefficient k acts as a gradient k·v: some k explains both the fraction
    and the leak. With a decoupled part there is none. Either the fraction is out of
    reach (a preconditioner limits the step of L2, not that of decay), or, if the
    response is linear in k, fraction and leak ask for different ones.
    """
    fractions, leaks = as_l2.swapaxes(0, 1)
    most, most_leak = fractions.max(0), abs(leaks).max(0)
    out_of_reach = (fraction > most) & (abs(leak) < 1.1 * most_leak)
    linear = fractions[-1] > 0.9 * _COEFFICIENTS[-1] / _COEFFICIENTS[-2] * fractions[-2]
    share = np.divide(leak, leaks[-1], out=np.ones_like(leak), where=leaks[-1] != 0)
    of_l2 = np.where(linear, share * fractions[-1], np.where(out_of_reach, most, fraction))
    rest = fraction - of_l2
    valid = (fraction > 0) & np.isfinite(as_l2).all((0, 1)) & np.isfinite(leak)
    return np.where(valid & (rest > _SIGNIFICANT * fraction), rest, 0.0)


def steady_fraction(probe: Probe, data: Data) -> np.ndarray:
    """What momentum adds up to: the fraction that each of many updates removes, for each leaf.

    While the parameters are held, the fraction grows towards it by a geometric series, of
    which three terms tell the limit. NaN if they are not of one, or of one so slow that the
    parameters would not stay as they are.
    """
    first, second, third = probe.held(data, probe.natural)
    steps = np.array([second - first, third - second])
    constant = (abs(steps) < 1e-3 * abs(first)).all(0)
    with np.errstate(all="ignore"):
        ratio = steps[1] / steps[0]
        limit = third + steps[1] * ratio / (1 - ratio)
    slow = abs(limit) > 0.05 * (1 - ratio)
    geometric = (ratio >= 0) & (ratio < 1) & ~slow & (abs(steps[0]) < 1.01 * abs(first))
    return np.where(constant, third, np.where(geometric, limit, np.nan))
