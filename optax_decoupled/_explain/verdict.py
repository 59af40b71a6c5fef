r"""What an optimizer does to each parameter, from a few of its updates.

Half the difference of the updates at :math:`+v` and :math:`-v` is the part that is odd in
the parameters, :math:`-c v` for decoupled decay. Factors that depend on the size of the
parameters (trust ratios, parameter scales) are even and cancel; v is synthetic, so biases
that start at zero are seen too. Decay is coupled if that part is remembered by the state,
or depends on the gradients.
"""

from typing import Any, NamedTuple

import numpy as np
import optax

from optax_decoupled._explain.probe import Amplitude, Leaves, Probe

# A saturated preconditioner turns L2 into steps of fixed size: at this amplitude they
# are small beside decoupled decay, and so is rounding.
_LARGE = 2.0**20
# Copies of the parameters in the state may be in float16, which ends at 2**16.
_LARGE_COPIED = 2.0**14
# Gradients at the large amplitude are scaled down, so a decay that depends on them shows.
_FAINT = 2.0**-6
# Two fractions that differ by more, relative, are different; rounding comes on top.
_TOLERANCE = 1e-2
# The amplitude at which momentum and squared gradients both show L2, from 1e-7 to 1.
_MEMORABLE = 2.0**12
# A memory smaller than this, relative to the next update, is rounding.
_ROUNDING = 1e-5
# The decoupled part that counts, relative to the whole fraction.
_SIGNIFICANT = 0.05
# L2 coefficients that are tried: the last two tell a linear response from a saturated one.
_COEFFICIENTS = (2.0**-20, 1.0, 2.0**10)
# A fraction smaller than this share of the second update's is hidden by the first one.
_HIDDEN = 0.1
# Energies of a cautious decay: of the elements that are let alone, of those that are not.
_ONE_SIDED = 0.05
# The elements that opposite gradients must choose differently.
_TURNS = 0.05
_TINY = 1e-300


class Findings(NamedTuple):
    """What was found out about each parameter, arrays of one entry for each.

    Attributes:
      kind: a `report.Kind`.
      fraction: the fraction removed by an update.
      steady: that removed by each of many; NaN where it depends on their gradients.
      double: whether L2 and decoupled decay act at once.
      moves: whether the update is not zero.
      finite: whether the update is finite.
      share: of the elements that decay at once, where the decay is cautious.
      silent: calls of tx.update before the first that moves anything; None if none does.
      period: calls from one such update to the next.
    """

    kind: np.ndarray
    fraction: np.ndarray
    steady: np.ndarray
    double: np.ndarray
    moves: np.ndarray
    finite: np.ndarray
    share: np.ndarray
    silent: int | None
    period: int


class _Response(NamedTuple):
    """Two updates at opposite parameters, and d, half their difference, for each leaf.

    Attributes:
      pair: the updates.
      odd: d.
      fraction: the c of the best fit d = -c·v.
      size: the norm of d.
      residual: the norm of d + c·v, relative to that of d.
      update: the norm of the updates.
      extent: the norm of the parameters.
      own_noise: the norm of d that rounding of the updates may cause.
      noise: the norm of d that any rounding may cause.
      fraction_noise: the same as a fraction.
    """

    pair: tuple[Leaves, Leaves]
    odd: Leaves
    fraction: np.ndarray
    size: np.ndarray
    residual: np.ndarray
    update: np.ndarray
    extent: np.ndarray
    own_noise: np.ndarray
    noise: np.ndarray
    fraction_noise: np.ndarray


class _Memory(NamedTuple):
    """What later updates remember of the parameters, for each leaf, float64[n].

    Attributes:
      immediate: the fraction removed by one update at the amplitude of `leak`.
      remembered: whether the next update depends on the parameters of this one.
      leak: how much, as a fraction of them; positive if it shrinks them.
      second: the fraction removed by the second of two updates at natural amplitude.
      decoupled: the part of the immediate fraction that neither gradients nor the size of
        the parameters explain.
    """

    immediate: np.ndarray
    remembered: np.ndarray
    leak: np.ndarray
    second: np.ndarray
    decoupled: np.ndarray


@np.errstate(all="ignore")  # an update that is not finite is reported, not warned about
def examine(p: Probe) -> Findings:
    """Measures an optimizer at its first update that moves anything."""
    first, start, after, calls = p.until_moving(p.start, p.natural)
    sizes = np.array([k * v.size for k, v in zip(p.decays, p.v, strict=True)], int)
    if not any(map(np.any, first)):
        return _nothing_moves(sizes)
    large = np.full_like(p.natural, _LARGE_COPIED if p.follows else _LARGE)
    at_large = _response(p, start, large, factor=_FAINT)
    at_natural = _response(p, start, p.natural)
    memory = _measure_memory(p, start, large, at_large)
    cautious, share = _is_cautious(p, start, large, at_large)
    traits = _traits(p, start, at_large, at_natural, memory)
    traits = traits._replace(cautious=cautious & ~(traits.remembered | traits.uneven))
    whole = at_large if calls == 1 else _response(p, p.start, large, factor=_FAINT)
    fraction = _fractions(whole.fraction, at_natural, memory, traits)
    steady = np.where(traits.remembered | traits.nonlinear, np.nan, fraction)
    if traits.linear.any():
        steady = np.where(traits.linear, _steady_fraction(p, start), steady)
    return Findings(
        kind=_kinds(p, start, large, at_large, traits),
        fraction=fraction,
        steady=steady,
        double=memory.decoupled > 0,
        moves=(at_natural.update != 0) | (sizes == 0),
        finite=np.isfinite(at_large.update),
        share=share,
        silent=calls - p.calls_per_step,
        period=p.until_moving(after, p.natural)[3],
    )


def _nothing_moves(sizes: np.ndarray) -> Findings:
    zero = np.zeros(len(sizes))
    kind, silent = np.full(len(sizes), "none"), None if sizes.any() else 0
    return Findings(kind, zero, zero, zero > 0, sizes == 0, zero == 0, zero, silent, 1)


class _Traits(NamedTuple):
    """What each parameter's decay is like, bool[parameters], and its sign."""

    nothing: np.ndarray
    sign: np.ndarray
    held: np.ndarray
    remembered: np.ndarray
    uneven: np.ndarray
    nonlinear: np.ndarray
    linear: np.ndarray
    cautious: np.ndarray


def _traits(
    p: Probe,
    start: optax.OptState,
    at_large: _Response,
    at_natural: _Response,
    memory: _Memory,
) -> _Traits:
    c, small_c = at_large.fraction, at_natural.fraction
    odd = _is_odd(p, at_large)
    odd_when_small = at_natural.size > at_natural.noise + 8 * p.epsilon * at_natural.extent
    straight = at_large.residual < _TOLERANCE + at_large.noise / (at_large.size + _TINY)
    same = abs(c - small_c) < _TOLERANCE * abs(c) + at_natural.fraction_noise
    held = _holds_norm(p, start, at_natural)
    nothing = ~(odd | odd_when_small | memory.remembered | held)
    uneven = ~(straight & same) & ~nothing & ~held
    free = np.zeros_like(uneven)
    if (uneven & ~memory.remembered).any():
        free = _depends_on_no_gradient(p, start)
    return _Traits(
        nothing=nothing,
        sign=np.sign(np.where(odd, c, np.where(odd_when_small, small_c, memory.leak))),
        held=held,
        remembered=memory.remembered & ~held,
        uneven=uneven,
        nonlinear=uneven & free & ~memory.remembered,
        linear=memory.remembered & ~uneven & (abs(memory.immediate - c) < _TOLERANCE * abs(c)),
        cautious=np.zeros_like(uneven),
    )


def _kinds(
    p: Probe, start: optax.OptState, large: np.ndarray, at_large: _Response, traits: _Traits
) -> np.ndarray:
    toward = np.zeros_like(traits.nothing)
    if p.references:
        along = _response(p, start, large, factor=_FAINT, along=True).fraction
        toward = abs(along - at_large.fraction) > _TOLERANCE * abs(at_large.fraction)
    table = (
        (traits.held, "constrained"),
        (traits.nothing, "none"),
        (traits.sign < 0, "growing"),
        (traits.nonlinear, "nonlinear"),
        (traits.remembered | traits.uneven, "coupled"),
        (toward, "toward"),
        (traits.cautious, "cautious"),
    )
    return np.select(*map(list, zip(*table, strict=True)), default="decoupled")


def _fractions(
    c: np.ndarray, at_natural: _Response, memory: _Memory, traits: _Traits
) -> np.ndarray:
    coupled, small_c, sign = traits.remembered | traits.uneven, at_natural.fraction, traits.sign
    # Adam's first step hides L2 all but for its eps: then the second one counts.
    visible = abs(small_c) > np.maximum(at_natural.fraction_noise, _HIDDEN * memory.second)
    table = (
        (traits.nothing | traits.held, 0.0),
        (traits.cautious, 2 * c),
        (~coupled, c),
        (traits.nonlinear, small_c),
        (visible, sign * abs(small_c)),
        (memory.second > 0, sign * memory.second),
    )
    # What is left is a step of fixed size, in which these gradients hide L2.
    hidden = np.where(sign < 0, c, 0.0)
    return np.select(*map(list, zip(*table, strict=True)), default=hidden)


def _response(p: Probe, state: optax.OptState, amplitude: Amplitude, **kwargs: Any) -> _Response:
    plus, minus = (p.until_moving(state, s * amplitude, **kwargs)[0] for s in (1, -1))
    odd = [(a - b) / 2 for a, b in zip(plus, minus, strict=True)]
    vv, dd, dv = _dot(p.v, p.v), _dot(odd, odd), _dot(odd, p.v)
    update = np.sqrt((_dot(plus, plus) + _dot(minus, minus)) / 2)
    extent = amplitude * np.sqrt(vv) + _TINY
    own_noise = 16 * p.epsilon * update
    # A transform with copies of the parameters may return the difference of two.
    noise = own_noise + (4 * p.epsilon * extent if p.follows else 0.0)
    return _Response(
        pair=(plus, minus),
        odd=odd,
        fraction=-dv / (extent * np.sqrt(vv) + _TINY),
        size=np.sqrt(dd),
        residual=np.sqrt(np.clip(1 - dv**2 / (vv * dd + _TINY), 0, 1)),
        update=update,
        extent=extent,
        own_noise=own_noise,
        noise=noise,
        fraction_noise=noise / extent,
    )


def _is_odd(p: Probe, response: _Response) -> np.ndarray:
    """Whether d is more than rounding: too large, or too straight, for it."""
    sizes = np.array([v.size for v in p.v], int)
    straight = (response.residual < 0.5) & (sizes >= 16)
    return (response.size > response.noise) | (straight & (response.size > response.own_noise))


def _is_cautious(
    p: Probe, start: optax.OptState, large: np.ndarray, at_large: _Response
) -> tuple[np.ndarray, np.ndarray]:
    """Whether elements decay only where the gradients let them, and the share that does.

    At opposite parameters it is the other elements' turn, so of the fractions removed there
    one is 0; at the next update too, when Adam's steps differ in size; and opposite
    gradients choose others.
    """
    one_sided, share = _one_sided(p, at_large)
    if not one_sided.any():
        return one_sided, share
    after = p.until_moving(start, p.natural)[2]
    one_sided &= _one_sided(p, _response(p, after, large, factor=_FAINT, other=True))[0]
    opposite = (p.until_moving(start, large, factor=factor)[0] for factor in (16.0, -16.0))
    chosen = [[x > np.max(x, initial=0) / 2 for x in _removed(p, u, 1)] for u in opposite]
    turns = [np.mean(a != b) if a.size else 0.0 for a, b in zip(*chosen, strict=True)]
    return one_sided & (np.array(turns) > _TURNS), share


def _one_sided(p: Probe, response: _Response) -> tuple[np.ndarray, np.ndarray]:
    both = [_removed(p, u, sign) for u, sign in zip(response.pair, (1, -1), strict=True)]
    both = [np.abs(pair) for pair in zip(*both, strict=True)]
    less, more = [x.min(0) for x in both], [x.max(0) for x in both]
    share = [np.mean(x[0] > x[1]) if x.size else 0.0 for x in both]
    return _dot(less, less) < _ONE_SIDED * _dot(more, more), np.array(share)


def _holds_norm(p: Probe, start: optax.OptState, at_natural: _Response) -> np.ndarray:
    """Whether θ + u has the norm of θ, or one that does not depend on θ.

    Asked where an update is a quarter and a half of θ: of small ones rounding hides it.
    """
    vv = _dot(p.v, p.v)
    unit = 4 * at_natural.update / (np.sqrt(vv) + _TINY)
    unit = np.where((unit > 0) & np.isfinite(unit), unit, p.natural)
    held, norms = np.ones_like(unit, bool), []
    for amplitude in (unit, unit / 2):
        update = p.until_moving(start, amplitude)[0]
        uu, gain = _dot(update, update), 2 * amplitude * _dot(update, p.v)
        held &= (abs(uu + gain) < _TOLERANCE * uu) & (uu > 0)
        norms.append(amplitude**2 * vv + uu + gain)
    constant = (abs(norms[0] - norms[1]) < 1e-3 * norms[0]) & (at_natural.update > 0)
    return held | constant


def _depends_on_no_gradient(p: Probe, start: optax.OptState) -> np.ndarray:
    """Whether other gradients leave d as it is, where it is not 0.

    After an update: at its first, Adam takes steps of one size whatever the gradients.
    """
    after = p.until_moving(start, p.natural)[2]
    one = _response(p, after, p.natural)
    other = _response(p, after, p.natural, other=True)
    change = [a - b for a, b in zip(one.odd, other.odd, strict=True)]
    noise = one.noise + other.noise
    same = np.sqrt(_dot(change, change)) < _TOLERANCE * one.size + noise
    return same & (one.size > noise)


def _measure_memory(
    p: Probe, start: optax.OptState, large: np.ndarray, at_large: _Response
) -> _Memory:
    """Compares the updates that follow one at +v with those that follow one at -v."""
    zero, c = np.zeros_like(p.natural), at_large.fraction
    vv = _dot(p.v, p.v) + _TINY

    def two_steps(first: np.ndarray, shift: np.ndarray, second: np.ndarray) -> np.ndarray:
        u1, state = p.step(start, first, shift=shift)
        u2 = p.until_moving(state, second, other=True)[0]
        return np.array([_dot(u1, p.v) / vv, _dot(u2, p.v) / vv, np.sqrt(_dot(u2, u2) / vv)])

    def odd_part(first: np.ndarray, shift: np.ndarray = zero, flip: bool = False) -> np.ndarray:
        """Of the first update, and of the one that follows; and the size of that."""
        opposite = (first, -shift) if shift.any() else (-first, shift)
        plus = two_steps(first, shift, p.natural)
        minus = two_steps(*opposite, -p.natural if flip else p.natural)
        return np.array([(minus[0] - plus[0]) / 2, (minus[1] - plus[1]) / 2, plus[2]])

    immediate, leak, size = odd_part(np.full_like(zero, _MEMORABLE))
    remembered = abs(leak) > _ROUNDING * size
    _, second, scale = odd_part(p.natural, flip=True) / p.natural
    decoupled = zero
    if remembered.any():
        remembers = odd_part(large)[1] / large
        as_l2 = [odd_part(p.natural, k * large)[:2] / large for k in _COEFFICIENTS]
        decoupled = _beside_l2(c, remembers, np.array(as_l2))
        decoupled = np.where(remembered & (decoupled > at_large.fraction_noise), decoupled, 0.0)
        if decoupled.any():  # unless steps grow with the parameters: then L2 explains more there
            most = odd_part(large, _COEFFICIENTS[-1] * large)[0] / large
            explains_it = c - most < _SIGNIFICANT * c
            decoupled = np.where(explains_it & (most > 8 * as_l2[-1][0]), 0.0, decoupled)
    second = np.where(abs(second) > 1e-6 * scale, abs(second), 0.0)
    return _Memory(immediate / _MEMORABLE, remembered, leak, second, decoupled)


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


def _steady_fraction(p: Probe, start: optax.OptState) -> np.ndarray:
    """What momentum adds up to: the fraction that each of many updates removes.

    While the parameters are held, the fraction grows towards it by a geometric series, of
    which three terms tell the limit. NaN if they are not of one, or of one so slow that the
    parameters would not stay as they are.
    """
    removed = np.zeros((3, len(p.v)))
    for sign in (1, -1):
        state = start
        for i in range(3):
            update, _, state, _ = p.until_moving(state, sign * p.natural)
            removed[i] -= sign * _dot(update, p.v) / (2 * _dot(p.v, p.v) * p.natural + _TINY)
    first, _, third = removed
    steps = np.diff(removed, axis=0)
    constant = (abs(steps) < 1e-3 * abs(first)).all(0)
    ratio = steps[1] / steps[0]
    limit = third + steps[1] * ratio / (1 - ratio)
    slow = abs(limit) > 0.05 * (1 - ratio)
    geometric = (ratio >= 0) & (ratio < 1) & ~slow & (abs(steps[0]) < 1.01 * abs(first))
    return np.where(constant, third, np.where(geometric, limit, np.nan))


def _removed(p: Probe, updates: Leaves, sign: int) -> Leaves:
    """How much less of v each element of ±v has after an update."""
    pairs = zip(updates, p.v, strict=True)
    return [-sign * np.real(u * np.conj(v)) / np.float64(abs(v) ** 2) for u, v in pairs]


def _dot(xs: Leaves, ys: Leaves) -> np.ndarray:
    """The inner product of each pair of leaves, in float64."""
    return np.array([_inner(x, y) for x, y in zip(xs, ys, strict=True)], float)


def _inner(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (np.asarray(a, np.result_type(a, np.float64)).ravel() for a in (x, y))
    return float(np.real(np.vdot(x, y)))
