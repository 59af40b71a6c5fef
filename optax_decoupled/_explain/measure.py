r"""Measurements of a few updates, a number for each parameter.

Half the difference of the updates at :math:`+v` and :math:`-v` is the part that is odd in
the parameters, :math:`-c v` for decoupled decay. Factors that depend on the size of the
parameters (trust ratios, parameter scales) are even and cancel; v is synthetic, so biases
that start at zero are seen too. Decay is coupled if that part is remembered by the state,
or depends on the gradients.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import optax

from optax_decoupled._explain import sample
from optax_decoupled._explain.probe import Amplitude, Probe
from optax_decoupled._explain.program import Leaves

# Gradients at the large amplitude are scaled down, so a decay that depends on them shows.
FAINT = 2.0**-6
# Gradients so small that L2 turns a step of one size.
_FAINTEST = 2.0**-40
# Two fractions that differ by more, relative, are different; rounding comes on top.
TOLERANCE = 1e-2
# The amplitude at which momentum and squared gradients both show L2, from 1e-7 to 1.
_MEMORABLE = 2.0**12
# A memory smaller than this, relative to the next update, is rounding: on accelerators sums
# may come out otherwise each time.
_ROUNDING = 1e-5
# The decoupled part that counts, relative to the whole fraction.
SIGNIFICANT = 0.05
# Of the energy of d: what elements that decay at both of two opposite parameters have.
_ONE_SIDED = 0.05
# L2 coefficients that are tried: the last two tell a linear response from a saturated one.
_COEFFICIENTS = (2.0**-20, 1.0, 2.0**10)
TINY = 1e-300


class Response(NamedTuple):
    """Two updates at opposite parameters, and d, half their difference, for each leaf."""

    pair: tuple[Leaves, Leaves]
    odd_part: Leaves  # d
    fraction: np.ndarray  # the c of the best fit d = -c·v
    size: np.ndarray  # the norm of d
    residual: np.ndarray  # the norm of d + c·v, relative to that of d
    update: np.ndarray  # the norm of the updates
    extent: np.ndarray  # the norm of the parameters
    own_noise: np.ndarray  # the norm of d that rounding of the updates may cause
    noise: np.ndarray  # the norm of d that any rounding may cause
    fraction_noise: np.ndarray  # the norm that any rounding may cause, as a fraction


class Memory(NamedTuple):
    """The effect of the parameters on later updates, for each leaf."""

    remembered: np.ndarray  # whether the next update depends on the parameters of this one
    leak: np.ndarray  # how much, as a fraction of them; positive if it shrinks them
    second: np.ndarray  # the fraction removed by the second of two updates at natural amplitude
    decoupled: np.ndarray  # the part of the fraction that neither gradients nor sizes explain
    middle: np.ndarray  # the fraction at an amplitude between natural and large
    noise: np.ndarray  # what rounding may do to that


def response(p: Probe, state: optax.OptState, amplitude: Amplitude, **kwargs: Any) -> Response:
    plus, minus = (p.until_moving(state, s * amplitude, **kwargs)[0] for s in (1, -1))
    odd = [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]
    vv, dd, dv = dot(p.v, p.v), dot(odd, odd), dot(odd, p.v)
    update = np.sqrt((dot(plus, plus) + dot(minus, minus)) / 2)
    extent = amplitude * np.sqrt(vv) + TINY
    noise = rounding(p, update, extent)
    return Response(
        pair=(plus, minus),
        odd_part=odd,
        fraction=-dv / (extent * np.sqrt(vv) + TINY),
        size=np.sqrt(dd),
        residual=np.sqrt(np.clip(1 - dv**2 / (vv * dd + TINY), 0, 1)),
        update=update,
        extent=extent,
        own_noise=16 * p.epsilon * update,
        noise=noise,
        fraction_noise=noise / extent,
    )


def rounding(p: Probe, update: np.ndarray, extent: Amplitude) -> np.ndarray:
    """The norm of d that it may cause: a transform with copies may return their difference."""
    return p.epsilon * (16 * update + (4 * extent if p.moving_copies else 0.0))


def is_odd(p: Probe, found: Response) -> np.ndarray:
    """Whether d is more than rounding: too large, or too straight, for it.

    If a transform returns the difference of copies, rounding may shrink all elements alike. Then d
    is straight, and was up to 0.3 ε of the parameters; a decay below ε is not told from that.
    """
    sizes = np.array([v.size for v in p.v], int)
    straight = (found.residual < 0.5) & (sizes >= 16)
    biased = p.epsilon * found.extent if p.moving_copies else 0.0
    return (found.size > found.noise) | (straight & (found.size > found.own_noise + biased))


def is_same_fraction(c: np.ndarray, *others: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether c equals all others, each with what rounding does to it."""
    return np.all([abs(c - x) < TOLERANCE * abs(c) + noise for x, noise in others], axis=0)


def is_cautious(
    p: Probe, start: optax.OptState, at_large: Response
) -> tuple[np.ndarray, np.ndarray]:
    """Whether elements decay only where the gradients let them, and the share that does.

    At opposite parameters it is the other elements' turn, so half of what is removed is in d
    and half in the part that is even. Without gradients and moments each element decays, or
    none does. Where something moves even then, no element may decay at both.
    """
    seen = at_large.fraction > at_large.fraction_noise
    seen &= at_large.update > (1 - TOLERANCE) * math.sqrt(2) * at_large.size
    if not seen.any():
        return seen, np.zeros(len(seen))
    share = np.array([np.mean(x <= 0) if x.size else 0.0 for x in _along(p, at_large)])
    rest = _at_rest(p, start)
    moved = p.step(rest, 0.0, factor=0.0)[0]
    ratio = response(p, rest, p.large, factor=0.0).fraction / at_large.fraction
    all_or_none = (abs(ratio - 2) < TOLERANCE) | (abs(ratio) < TOLERANCE)
    return seen & np.where(dot(moved, moved) == 0, all_or_none, _one_sided(at_large)), share


def _along(p: Probe, found: Response) -> Leaves:
    """The sum of the two updates times v, for each element: their even part along v."""
    pairs = zip(*found.pair, p.v, strict=True)
    return [np.real((a + b) * np.conj(v)) for a, b, v in pairs]


def _one_sided(found: Response) -> np.ndarray:
    """Whether the even part of the updates is as large as the odd one in each element."""
    pairs = list(zip(*found.pair, strict=True))
    excess = [abs(a + b) - abs(a - b) for a, b in pairs]
    return dot(excess, excess) < 4 * _ONE_SIDED * found.size**2


def is_pulled(p: Probe, start: optax.OptState, c: np.ndarray) -> np.ndarray:
    """Whether parameters at 0 move without gradients and moments: to what tx or the state keeps.

    Noise does not move twice alike.
    """
    kept = _lasting(p, start)
    start = p.with_references(start, p.natural)
    first, state = p.step(sample.emptied(start, kept), 0.0, factor=0.0)
    xx = dot(first, first)
    pulled = np.sqrt(xx) > TOLERANCE * abs(c) * p.natural * np.sqrt(dot(p.v, p.v))
    if not pulled.any():
        return pulled
    second = p.until_moving(sample.emptied(state, kept), 0.0, factor=0.0)[0]
    return pulled & (dot(first, second) > (1 - TOLERANCE) * np.sqrt(xx * dot(second, second)))


def _lasting(p: Probe, start: optax.OptState) -> set[Any]:
    """Paths of what an update with other gradients leaves alone, which is no moment."""
    return sample.unchanged(start, p.until_moving(start, p.natural, other=True)[2])


def _at_rest(p: Probe, start: optax.OptState) -> optax.OptState:
    """The state without moments."""
    return sample.emptied(start, _lasting(p, start))


def decays_alone(p: Probe, start: optax.OptState) -> np.ndarray:
    """Whether parameters change without gradients and moments, in the opposite way at -v."""
    rest = _at_rest(p, start)
    plus, minus = (p.step(rest, sign * p.large, factor=0.0)[0] for sign in (1, -1))
    odd = [a - b for a, b in zip(plus, minus, strict=True)]
    return dot(odd, odd) > dot(plus, plus) + dot(minus, minus)


def depends_on_no_gradient(p: Probe, start: optax.OptState) -> np.ndarray:
    """Whether other gradients leave d as it is, where it is not 0.

    After an update: at its first, Adam takes steps of one size whatever the gradients. At
    another amplitude than the state's: a pull to the initial norm is 0 there.
    """
    after, amplitude = p.until_moving(_at_rest(p, start), p.natural)[2], 4 * p.natural
    one = response(p, after, amplitude)
    other = response(p, after, amplitude, other=True)
    change = [a - b for a, b in zip(one.odd_part, other.odd_part, strict=True)]
    noise = one.noise + other.noise
    is_equal = np.sqrt(dot(change, change)) < TOLERANCE * one.size + noise
    return is_equal & (one.size > noise)


def hides_l2(p: Probe, start: optax.OptState, c: np.ndarray) -> np.ndarray:
    """Whether faint gradients let more decay: L2 that turns steps of one size, else not seen."""
    faint = response(p, start, p.natural, factor=_FAINTEST)
    return faint.fraction > c * (1 + TOLERANCE) + faint.fraction_noise


def measure_memory(
    p: Probe, start: optax.OptState, at_large: Response, at_natural: Response
) -> Memory:
    """Compares the updates that follow one at +v with those that follow one at -v."""
    c, large, vv = at_large.fraction, p.large, dot(p.v, p.v) + TINY

    def two_steps(first: Amplitude, shift: float, second: np.ndarray) -> np.ndarray:
        u1, state = p.step(start, first, shift=shift)
        u2 = p.until_moving(state, second, other=True)[0]
        sizes = (np.sqrt(dot(u, u) / vv) for u in (u1, u2))
        return np.array([dot(u1, p.v) / vv, dot(u2, p.v) / vv, *sizes])

    def odd_part(first: Amplitude, shift: float = 0.0, flip: bool = False) -> np.ndarray:
        """Of the first update, and of the one that follows; and the sizes of both."""
        opposite = (first, -shift) if shift else (-first, shift)
        plus = two_steps(first, shift, p.natural)
        minus = two_steps(*opposite, -p.natural if flip else p.natural)
        return np.array([*(minus[:2] - plus[:2]) / 2, *plus[2:]])

    middle, leak, moved, size = odd_part(_MEMORABLE)
    noise = rounding(p, moved, _MEMORABLE) / _MEMORABLE
    remembered = abs(leak) > _ROUNDING * size
    _, second, _, scale = odd_part(p.natural, flip=True) / p.natural
    decoupled = np.zeros_like(c)
    if remembered.any():
        remembers = odd_part(large)[1] / large
        as_l2 = [odd_part(p.natural, k * large)[:2] / large for k in _COEFFICIENTS]
        small = at_natural.fraction, at_natural.fraction_noise
        is_linear = is_same_fraction(c, small, (middle / _MEMORABLE, noise))
        decoupled = _beside_l2(c, remembers, np.array(as_l2), is_linear)
        decoupled = np.where(remembered & (decoupled > at_large.fraction_noise), decoupled, 0.0)
        if decoupled.any():  # unless steps grow with the parameters: then L2 explains more there
            most = odd_part(large, _COEFFICIENTS[-1] * large)[0] / large
            explains_it = c - most < SIGNIFICANT * c
            decoupled = np.where(explains_it & (most > 8 * as_l2[-1][0]), 0.0, decoupled)
    second = np.where(abs(second) > 1e-6 * scale, abs(second), 0.0)
    return Memory(remembered, leak, second, decoupled, middle / _MEMORABLE, noise)


def _beside_l2(
    fraction: np.ndarray, leak: np.ndarray, as_l2: np.ndarray, is_linear: np.ndarray
) -> np.ndarray:
    """The decoupled part beside L2, 0 where L2 alone explains what was measured.

    Pure L2 of coefficient k acts as a gradient k·v: some k explains both the fraction
    and the leak. With a decoupled part there is none. Either the fraction is out of
    reach (a preconditioner limits the step of L2, not that of decay), or, if the
    response is linear in k, fraction and leak ask for different ones. So they do behind a
    clip of the gradients, which limits k·v and not L2, but keeps the ratio of the two.
    """
    fractions, leaks = as_l2.swapaxes(0, 1)
    most, most_leak = fractions.max(0), abs(leaks).max(0)
    out_of_reach = (fraction > most) & (abs(leak) < 1.1 * most_leak)
    linear = fractions[-1] > 0.9 * _COEFFICIENTS[-1] / _COEFFICIENTS[-2] * fractions[-2]
    ratios = np.divide(fractions, leaks, out=np.zeros_like(leaks), where=leaks != 0)
    linear |= is_linear & (abs(ratios - ratios[-1]) < TOLERANCE * abs(ratios[-1])).all(0)
    share = np.divide(leak, leaks[-1], out=np.ones_like(leak), where=leaks[-1] != 0)
    of_l2 = np.where(linear, share * fractions[-1], np.where(out_of_reach, most, fraction))
    rest = fraction - of_l2
    valid = (fraction > 0) & np.isfinite(as_l2).all((0, 1)) & np.isfinite(leak)
    return np.where(valid & (rest > SIGNIFICANT * fraction), rest, 0.0)


def steady_fraction(p: Probe, start: optax.OptState) -> np.ndarray:
    """The fraction that each of many updates removes, after momentum has added up.

    While the parameters are held fixed, the fraction grows towards it by a geometric series, of
    which three terms tell the limit. NaN if they are not of one, or of one so slow that the
    parameters would not stay as they are.
    """
    removed = np.zeros((3, len(p.v)))
    for sign in (1, -1):
        state = start
        for i in range(3):
            update, _, state, _ = p.until_moving(state, sign * p.natural)
            removed[i] -= sign * dot(update, p.v) / (2 * dot(p.v, p.v) * p.natural + TINY)
    first, _, third = removed
    steps = np.diff(removed, axis=0)
    constant = (abs(steps) < 1e-3 * abs(first)).all(0)
    ratio = steps[1] / steps[0]
    limit = third + steps[1] * ratio / (1 - ratio)
    slow = abs(limit) > 0.05 * (1 - ratio)
    geometric = (ratio >= 0) & (ratio < 1) & ~slow & (abs(steps[0]) < 1.01 * abs(first))
    return np.where(constant, third, np.where(geometric, limit, np.nan))


def dot(xs: Leaves, ys: Leaves) -> np.ndarray:
    """The inner product of each pair of leaves, in float64."""
    wide = lambda x: np.asarray(x, np.result_type(x, np.float64))
    pairs = zip(xs, ys, strict=True)
    return np.array([np.real(np.vdot(wide(x), wide(y))) for x, y in pairs], float)
