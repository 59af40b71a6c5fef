"""The fraction that each element of a parameter loses, where a multiplier is an array."""

import copy
from typing import NamedTuple

import numpy as np
import optax

from optax_decoupled._explain.measure import FAINT, TOLERANCE, Response, response
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.sharing import Leaves


class Elements(NamedTuple):
    """Fractions over the elements of each parameter, float64[parameters]."""

    is_own: np.ndarray  # whether each element loses a fraction of its own, bool[parameters]
    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray


def examine(
    p: Probe, start: optax.OptState, at_large: Response, at_natural: Response, asked: np.ndarray
) -> Elements:
    """Whether an element's part of d is one multiple of the element alone.

    So it is if its fraction is the same at two amplitudes, and at parameters in another order.
    `asked`: the parameters to look at.
    """
    fractions = _fractions(p, at_large, p.large)
    own = asked & (at_large.fraction > at_large.fraction_noise)
    if own.any():
        moved = copy.copy(p)
        moved.v = [np.roll(v, 1).reshape(v.shape) for v in p.v]
        elsewhere = response(moved, start, p.large, factor=FAINT)
        own &= _are_same(p, fractions, _fractions(moved, elsewhere, p.large), elsewhere)
        own &= _are_same(p, fractions, _fractions(p, at_natural, p.natural), at_natural)
    lowest, highest, mean = (
        np.array([f(c) if c.size else 0.0 for c in fractions]) for f in (np.min, np.max, np.mean)
    )
    own &= lowest > -TOLERANCE * highest
    return Elements(own, np.clip(lowest, 0, None), highest, mean)


def _fractions(p: Probe, found: Response, amplitude: float | np.ndarray) -> Leaves:
    """What each element loses at ±v, over itself."""
    each = np.broadcast_to(amplitude, len(p.v)).tolist()
    rows = zip(found.odd_part, p.v, each, strict=True)
    return [-np.real(d.astype(np.result_type(d, np.float64)) / (a * v)) for d, v, a in rows]


def _are_same(p: Probe, fractions: Leaves, others: Leaves, found: Response) -> np.ndarray:
    """Whether they differ by no more than rounding of the others may cause: bool[parameters]."""
    rows = zip(fractions, others, found.pair[0], found.extent, p.v, p.epsilon, strict=True)
    same = []
    for c, other, update, extent, v, epsilon in rows:
        size = extent / max(np.sqrt(v.size), 1)
        noise = 16 * epsilon * np.max(abs(update), initial=0.0) / size
        same.append(np.all(abs(c - other) <= TOLERANCE * np.max(c, initial=0.0) + noise))
    return np.array(same, bool)
