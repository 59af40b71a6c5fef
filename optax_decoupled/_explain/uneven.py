"""What is no single fraction: norms that are held or braked, and fractions of each element."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import optax

from optax_decoupled._explain.measure import (
    FAINT,
    SIGNIFICANT,
    TINY,
    TOLERANCE,
    Response,
    dot,
    response,
)
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.program import Leaves

# Two measurements of a factor on the growth of a norm may differ by this share of its effect.
_SAME_BRAKE = 0.1
# The growths that a factor is computed from must differ by this ratio.
_LEAST_RATIO = 2.0
# Below this squared sine two directions are one, as those of single numbers are.
_LEAST_ANGLE = 1e-3


def norm_control(
    p: Probe, start: optax.OptState, at_natural: Response
) -> tuple[np.ndarray, np.ndarray]:
    """Whether θ + u has the norm of θ, or one that does not depend on θ; and a factor on growth.

    The factor is that of a radial brake, NaN where there is none. Asked where an update is a
    quarter and a half of θ: of small ones rounding hides it.
    """
    vv = dot(p.v, p.v)
    unit = 4 * at_natural.update / (np.sqrt(vv) + TINY)
    unit = np.where((unit > 0) & np.isfinite(unit), unit, p.natural)
    keeps_norm, norms, factors, growths = np.ones_like(unit, bool), [], [], []
    for amplitude in (unit, unit / 2):
        pair = [p.until_moving(start, sign * amplitude)[0] for sign in (1, -1)]
        uu, gain = dot(pair[0], pair[0]), 2 * amplitude * dot(pair[0], p.v)
        keeps_norm &= (abs(uu + gain) < TOLERANCE * uu) & (uu > 0)
        norms.append(amplitude**2 * vv + uu + gain)
        for factor, growth in _growth_factors(p, amplitude, pair):
            factors.append(factor)
            growths.append(growth)
    constant = (abs(norms[0] - norms[1]) < 1e-3 * norms[0]) & (at_natural.update > 0)
    growth = _common_factor(np.array(factors), np.array(growths))
    return keeps_norm | constant, _with_single_numbers(p, growth, at_natural.update > 0)


def _growth_factors(
    p: Probe, amplitude: np.ndarray, pair: Sequence[Leaves]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The n in ‖θ + u‖ = ‖θ‖ + n (‖θ + u'‖ - ‖θ‖) at θ = ±v, NaN where it shrinks.

    Beside each, the relative growth of the norm by u'.

    A brake keeps the direction of θ + u', and u', the update without it, is the same at v and -v.
    So it is where the two directions meet.
    """
    moved = [
        [sign * v + u / a for v, u, a in zip(p.v, update, amplitude, strict=True)]
        for sign, update in zip((1, -1), pair, strict=True)
    ]
    length, size = np.sqrt(dot(p.v, p.v)), [np.sqrt(dot(x, x)) for x in moved]
    a, b = (dot(x, p.v) / n for x, n in zip(moved, size, strict=True))
    cosine = dot(*moved) / (size[0] * size[1])
    sine = np.where(1 - cosine**2 > _LEAST_ANGLE, 1 - cosine**2, np.nan)  # squared
    unbraked = (2 * x / sine for x in (a - cosine * b, cosine * a - b))
    pairs = zip(size, unbraked, strict=True)
    for x, n in pairs:
        grows = n > (1 + 1e-3) * length
        yield np.where(grows, (x - length) / (n - length), np.nan), n / length - 1


def _common_factor(factors: np.ndarray, growths: np.ndarray) -> np.ndarray:
    """The largest of each column, NaN if it is 1, finite only once, or the others are smaller.

    A decay beside it makes them smaller, the more the less an update is. That shows only if the
    growths differ; where steps are proportional to the weights (LAMB), they do not.
    """
    is_finite = np.isfinite(factors)
    most = np.where(is_finite, factors, -np.inf).max(0)
    spread = np.where(is_finite, most - factors, 0).max(0)
    effect = abs(1 - most)
    is_common = (spread < _SAME_BRAKE * effect) & (effect > SIGNIFICANT) & (is_finite.sum(0) > 1)
    greatest = np.where(is_finite, growths, -np.inf).max(0)
    is_common &= greatest > _LEAST_RATIO * np.where(is_finite, growths, np.inf).min(0)
    return np.where(is_common, most, np.nan)


def _with_single_numbers(p: Probe, growth: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The factors, and for parameters of one element the one that all others have.

    One element has no direction that could show a factor.
    """
    single = np.array([v.size == 1 for v in p.v], bool) & moves
    others = growth[moves & ~single]
    if not others.size or np.isnan(others).any():
        return growth
    return np.where(single & np.isnan(growth), np.median(others), growth)


class Elements(NamedTuple):
    """Fractions over the elements of each parameter, float64[parameters]."""

    is_own: np.ndarray  # whether each element loses a fraction of its own, bool[parameters]
    lowest: np.ndarray
    highest: np.ndarray
    mean: np.ndarray


def fractions_of_elements(
    p: Probe,
    start: optax.OptState,
    at_large: Response,
    at_natural: Response | None,
    asked: np.ndarray,
) -> Elements:
    """Whether an element's part of d is one multiple of the element alone.

    So it is if its fraction is the same at two amplitudes, and at parameters in another order.
    `asked`: the parameters to look at. `at_natural`: None under a brake, which acts there.
    """
    fractions = _fractions(p, at_large, p.large)
    own = asked & (at_large.fraction > at_large.fraction_noise)
    if own.any():
        moved = copy.copy(p)
        rng = np.random.default_rng(1)  # a roll would leave the norms of rows as they are
        moved.v = [rng.permutation(v.ravel()).reshape(v.shape) for v in p.v]
        elsewhere = response(moved, start, p.large, factor=FAINT)
        own &= _are_same(p, fractions, _fractions(moved, elsewhere, p.large), elsewhere)
        if at_natural is not None:
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
    are_same = []
    for c, other, update, extent, v, epsilon in rows:
        size = extent / max(np.sqrt(v.size), 1)
        noise = 16 * epsilon * np.max(abs(update), initial=0.0) / size
        are_same.append(np.all(abs(c - other) <= TOLERANCE * np.max(c, initial=0.0) + noise))
    return np.array(are_same, bool)
