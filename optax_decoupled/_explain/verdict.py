"""The kind of decay of each parameter, from measurements of a few updates."""

from typing import NamedTuple

import numpy as np
import optax

from optax_decoupled._explain import measure
from optax_decoupled._explain.measure import FAINT, TINY, TOLERANCE, Memory, Response
from optax_decoupled._explain.probe import Probe
from optax_decoupled._explain.uneven import Elements, fractions_of_elements, norm_control
from optax_decoupled._state import foreign

# An update smaller than this share of the one before is the rounding of a schedule that is 0.
_ENDED = 1e-6
# A fraction smaller than this share of the second update's is hidden by the first one.
_HIDDEN = 0.1


class Findings(NamedTuple):
    """The verdict on each parameter, arrays of one entry for each."""

    kind: np.ndarray  # a `report.Kind`
    fraction: np.ndarray  # removed by an update
    steady: np.ndarray  # removed by each of many; NaN where it depends on their gradients
    double: np.ndarray  # whether L2 and decoupled decay act at once
    moves: np.ndarray  # whether the update is not zero
    finite: np.ndarray  # whether the update is finite
    share: np.ndarray  # of the elements that decay at once, where the decay is cautious
    silent: int | None  # calls before the first that moves anything; None if none does
    period: int  # calls from one such update to the next
    varies: np.ndarray  # whether the fraction depends on gradients, memory or sizes
    growth: np.ndarray  # the factor of a radial brake on the growth of the norm; NaN without
    unclear: np.ndarray  # whether a brake hides what decoupled decay there is beside a coupled one
    projected: np.ndarray  # the fraction that fits all elements best
    spread: np.ndarray  # the lowest and the highest fraction of an element; NaN where there is one
    start: optax.OptState | None  # before the update that was measured; None if nothing moves


@np.errstate(all="ignore")  # an update that is not finite is reported, not warned about
def examine(p: Probe) -> Findings:
    """Measures an optimizer at its first update that moves anything."""
    sizes = np.array([k * v.size for k, v in zip(p.decays, p.v, strict=True)], int)
    start, silent, period = _where_it_moves(p)
    if start is None:
        return _nothing_moves(sizes)
    at_large = measure.response(p, start, p.large, factor=FAINT)
    at_natural = measure.response(p, start, p.natural)
    memory = measure.measure_memory(p, start, at_large, at_natural)
    cautious, share = measure.is_cautious(p, start, at_large)
    traits = _traits(p, start, at_large, at_natural, memory)
    traits = traits._replace(cautious=cautious & ~traits.coupled)
    hidden = _hides_l2(p, start, at_large.fraction, traits)
    traits = traits._replace(coupled=traits.coupled | hidden)
    is_one_call = silent + p.calls_per_step == 1
    from_start = at_large if is_one_call else measure.response(p, p.start, p.large, factor=FAINT)
    mean = traits.elements.mean * (from_start.fraction / at_large.fraction)
    c = np.where(traits.elements.is_own, mean, from_start.fraction)
    fraction = _fractions(c, at_natural, memory, traits)
    steady = np.where(traits.remembered | traits.nonlinear, np.nan, fraction)
    if traits.linear.any():
        steady = np.where(traits.linear, measure.steady_fraction(p, start), steady)
    return Findings(
        kind=_kinds(p, start, at_large, traits),
        fraction=fraction,
        steady=steady,
        double=(memory.decoupled > 0) & ~traits.braked | hidden,
        moves=(at_natural.update != 0) | (sizes == 0),
        finite=np.isfinite(at_large.update),
        share=share,
        silent=silent,
        period=period,
        varies=traits.coupled,
        growth=traits.growth,
        unclear=traits.braked & traits.coupled,
        projected=from_start.fraction,
        spread=_spread(traits, fraction),
        start=start,
    )


def _where_it_moves(p: Probe) -> tuple[optax.OptState | None, int, int]:
    """The state before the first update that moves anything, None if the one asked for does not.

    Also the calls before it, and those from one such update to the next.
    """
    first, start, after, calls = p.until_moving(p.start, p.natural)
    silent = calls - p.calls_per_step
    if not any(map(np.any, first)):
        return None, silent, 1
    later, _, _, period = p.until_moving(after, p.natural)
    pairs = zip(later, first, strict=True)
    if any(_peak(x) <= _ENDED * _peak(y) > 0 for x, y in pairs):
        p.counts_of = start  # a schedule ends here, and is measured as if it went on
    if p.counts_of is not None or p.count is not None:
        accumulated = p.until_moving(foreign.at_count_of(after, start), p.natural)[3]
        if p.count is not None and silent >= accumulated:
            return None, silent, 1
        period = period if p.counts_of is None else accumulated
    return start, silent, period


def _peak(x: np.ndarray) -> float:
    return float(np.max(abs(x), initial=0.0))


def _nothing_moves(sizes: np.ndarray) -> Findings:
    zero = np.zeros(len(sizes))
    no, unknown = zero > 0, np.full(len(sizes), np.nan)
    return Findings(
        kind=np.full(len(sizes), "none"),
        fraction=zero,
        steady=zero,
        double=no,
        moves=sizes == 0,
        finite=~no,
        share=zero,
        silent=None if sizes.any() else 0,
        period=1,
        varies=no,
        growth=unknown,
        unclear=no,
        projected=zero,
        spread=np.array([unknown, unknown]),
        start=None,
    )


class _Traits(NamedTuple):
    """Properties of each parameter's decay, bool[parameters], and its sign."""

    nothing: np.ndarray
    sign: np.ndarray
    keeps_norm: np.ndarray
    remembered: np.ndarray
    coupled: np.ndarray  # or nonlinear
    nonlinear: np.ndarray
    linear: np.ndarray
    cautious: np.ndarray
    braked: np.ndarray  # it may be coupled too
    growth: np.ndarray  # the factor of a brake beside decay that is not coupled, or NaN
    elements: Elements


def _traits(
    p: Probe, start: optax.OptState, at_large: Response, at_natural: Response, memory: Memory
) -> _Traits:
    c, small_c = at_large.fraction, at_natural.fraction
    odd_when_large = measure.is_odd(p, at_large)
    odd_when_small = at_natural.size > at_natural.noise + 8 * p.epsilon * at_natural.extent
    straight = at_large.residual < TOLERANCE + at_large.noise / (at_large.size + TINY)
    others = ((small_c, at_natural.fraction_noise), (memory.middle, memory.noise))
    is_constant = measure.is_same_fraction(c, *others)
    keeps_norm, growth = norm_control(p, start, at_natural)
    brakes = np.isfinite(growth) & ~keeps_norm & ~memory.remembered
    if brakes.any():  # they remove a part of each growth, which is no decay
        is_constant |= brakes
        odd_when_small &= ~brakes
        odd_when_large &= ~brakes | measure.decays_alone(p, start)
    # A step whose size depends on the parameters turns with their sign, but not along them.
    both = (at_large, at_natural)
    along = np.any([abs(x.fraction) * x.extent > x.own_noise for x in both], axis=0)
    is_odd = odd_when_large | odd_when_small
    unclear = is_odd & ~(along & straight & is_constant) & ~(memory.remembered | keeps_norm)
    ignores_gradients = np.zeros_like(is_odd)
    if unclear.any():
        ignores_gradients = measure.depends_on_no_gradient(p, start)
    nothing = ~(is_odd & (along | ignores_gradients) | memory.remembered | keeps_norm)
    uneven = ~(straight & is_constant) & ~nothing & ~keeps_norm
    asked = uneven & ~memory.remembered & (ignores_gradients | brakes)
    own = fractions_of_elements(p, start, at_large, None if brakes.any() else at_natural, asked)
    uneven &= ~own.is_own
    return _Traits(
        nothing=nothing,
        sign=np.sign(np.where(odd_when_large, c, np.where(odd_when_small, small_c, memory.leak))),
        keeps_norm=keeps_norm,
        remembered=memory.remembered & ~keeps_norm,
        coupled=(memory.remembered & ~keeps_norm) | uneven,
        nonlinear=uneven & ignores_gradients & ~memory.remembered,
        linear=memory.remembered & ~(uneven | keeps_norm),
        cautious=np.zeros_like(uneven),
        braked=np.isfinite(growth),
        growth=np.where(brakes, growth, np.nan),
        elements=own,
    )


def _hides_l2(p: Probe, start: optax.OptState, c: np.ndarray, traits: _Traits) -> np.ndarray:
    """Whether a decay that seems decoupled stands beside L2 that these gradients hide."""
    seems = ~(traits.nothing | traits.keeps_norm | traits.coupled | traits.cautious) & (c > 0)
    seems &= np.isnan(traits.growth)  # a brake removes more of what grows
    return seems & measure.hides_l2(p, start, c) if seems.any() else seems


def _kinds(p: Probe, start: optax.OptState, at_large: Response, traits: _Traits) -> np.ndarray:
    toward = np.zeros_like(traits.nothing)
    if not (traits.nothing | traits.keeps_norm | traits.coupled).all():
        toward = measure.is_pulled(p, start, at_large.fraction)
    table = (
        (traits.keeps_norm, "constrained"),
        (traits.nothing, "none"),
        (traits.sign < 0, "growing"),
        (traits.nonlinear, "nonlinear"),
        (traits.coupled, "coupled"),
        (toward, "toward"),
        (traits.cautious, "cautious"),
    )
    return np.select(*map(list, zip(*table, strict=True)), default="decoupled")


def _spread(traits: _Traits, fraction: np.ndarray) -> np.ndarray:
    """The lowest and the highest fraction of an element: float64[2, parameters]."""
    own = traits.elements
    ends = np.array([own.lowest, own.highest]) * (fraction / own.mean)
    return np.where(own.is_own, ends, np.nan)


def _fractions(c: np.ndarray, at_natural: Response, memory: Memory, traits: _Traits) -> np.ndarray:
    small_c, sign = at_natural.fraction, traits.sign
    # Adam's first step hides L2 all but for its eps: then the second one counts.
    visible = abs(small_c) > np.maximum(at_natural.fraction_noise, _HIDDEN * memory.second)
    table = (
        (traits.nothing | traits.keeps_norm, 0.0),
        (traits.cautious, 2 * c),
        (~traits.coupled, c),
        (traits.nonlinear, small_c),
        (visible, sign * abs(small_c)),
        (memory.second > 0, sign * memory.second),
    )
    # The rest are steps of fixed size, in which these gradients hide L2.
    hidden = np.where(sign < 0, c, 0.0)
    return np.select(*map(list, zip(*table, strict=True)), default=hidden)
