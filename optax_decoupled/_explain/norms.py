"""Whether an update holds the norm of a parameter, or brakes its growth."""

from collections.abc import Sequence

import numpy as np
import optax

from optax_decoupled._explain.measure import SIGNIFICANT, TINY, TOLERANCE, Response, dot
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.sharing import Leaves

# Two measurements of a factor on the growth of a norm may differ by this share of its effect.
_SAME_BRAKE = 0.1
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
    keeps_norm, norms, factors = np.ones_like(unit, bool), [], []
    for amplitude in (unit, unit / 2):
        pair = [p.until_moving(start, sign * amplitude)[0] for sign in (1, -1)]
        uu, gain = dot(pair[0], pair[0]), 2 * amplitude * dot(pair[0], p.v)
        keeps_norm &= (abs(uu + gain) < TOLERANCE * uu) & (uu > 0)
        norms.append(amplitude**2 * vv + uu + gain)
        factors += _growth_factors(p, amplitude, pair)
    constant = (abs(norms[0] - norms[1]) < 1e-3 * norms[0]) & (at_natural.update > 0)
    return keeps_norm | constant, _common_factor(np.array(factors))


def _growth_factors(p: Probe, amplitude: np.ndarray, pair: Sequence[Leaves]) -> list[np.ndarray]:
    """The n in ‖θ + u‖ = ‖θ‖ + n (‖θ + u'‖ - ‖θ‖) at θ = ±v, NaN where it shrinks.

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
    grows = lambda n: n > (1 + 1e-3) * length
    return [np.where(grows(n), (x - length) / (n - length), np.nan) for x, n in pairs]


def _common_factor(factors: np.ndarray) -> np.ndarray:
    """The largest of each column, NaN if it is 1, known only once, or the others are smaller.

    A decay beside it makes them smaller, the more the less an update is.
    """
    known = np.isfinite(factors)
    most = np.where(known, factors, -np.inf).max(0)
    spread = np.where(known, most - factors, 0).max(0)
    effect = abs(1 - most)
    is_common = (spread < _SAME_BRAKE * effect) & (effect > SIGNIFICANT) & (known.sum(0) > 1)
    return np.where(is_common, most, np.nan)
