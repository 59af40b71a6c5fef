"""The sentences of a `DecayReport`: what is wrong with a decay, and the way out."""

import math
import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.checks import PYTORCH_SCALE
from optax_decoupled._common.dtypes import is_narrow
from optax_decoupled._explain.probe import MAX_STEPS, Probe
from optax_decoupled._explain.report import DECAYING, DecayRow, smallest_change
from optax_decoupled._explain.run import Run
from optax_decoupled._explain.verdict import Findings
from optax_decoupled._select.names import listing
from optax_decoupled._select.spared import are_spared
from optax_decoupled._state import foreign
from optax_decoupled._transforms.decay import DecoupledWeightDecayState, PulledWeightDecayState

_MASK_CALLED = (
    "The mask function did not reach the optimizer: optax.inject_hyperparams takes every callable "
    'for a schedule and called it with the step number. Pass static_args=("mask",) to '
    "inject_hyperparams."
)
_NOTHING = (
    "Nothing decays: the optimizer has no weight decay, its coefficient is 0 at this update, or "
    "its mask selects no parameter. Check weight_decay and mask, or pass the state of a later "
    "step. An L2 penalty inside the loss cannot be seen here; add its gradient in the optimizer "
    "instead, optax.chain(l2_to_grad(l2), tx), and it can."
)
_STILL = (
    "Nothing decays within {} updates, none of which moves anything, as at the end of a schedule. "
    "If others do, pass their step= or state=."
)
_STILL_THERE = (
    "Nothing decays: the update with count {} moves nothing. Its rate is 0 there, as before a "
    "warmup or at the end of a schedule. Pass another step."
)
_GROWING = (
    "The weights of {} grow: the decay has the wrong sign. optax.add_decayed_weights belongs "
    "before the scaling by the learning rate, which changes the sign; to add decay to a finished "
    "optimizer use decouple(inner, weight_decay)."
)
_OURS_GROWING = (
    "The weights of {} grow: add_decoupled_weight_decay stands before the scaling by the learning "
    "rate, which changes its sign, or its weight_decay or schedule is negative. Put it at the end "
    "of the chain, or use decouple(inner, weight_decay); neither factor may be negative."
)
_DOUBLE = (
    "L2 regularization and decoupled decay act at once on {}. Keep one: remove the transform that "
    "adds the parameters to the gradients, or set the optimizer's weight_decay to 0."
)
_COUPLED = (
    "The decay of {} is coupled: it passes through momentum, a preconditioner, clipping or a trust "
    "ratio, so the fraction removed depends on the gradients. For decoupled decay use adamw, sgdw "
    "or decouple(inner, weight_decay)."
)
_UNITS = (
    "One update removes {:.2g} of {}, or more. That looks like a PyTorch value, which is "
    "multiplied by the learning rate; the paper's best values are 1e-5 to 1e-3. Check the units of "
    "weight_decay (weight_decay_from_pytorch)."
)
_UNWANTED = (
    "Biases, norms or other parameters that decay_mask spares decay: {}. Pass mask=decay_mask (or "
    "decay_rules) unless this is intended."
)
_INVERTED = (
    "Only biases, norms or other parameters that decay_mask spares decay: {}. If a mask chooses "
    "them it is inverted: True (or a multiplier above 0) selects what decays. Pass mask=decay_mask "
    "unless this is intended."
)
_LARGE = (
    "One update changes {} by more than a quarter of its value; the paper's best decays are 1e-5 "
    "to 1e-3. Check the units of weight_decay, and whether the optimizer constrains or replaces "
    "its parameters."
)
_OVERSHOT = (
    "One update changes {} by more than the whole difference from what they are pulled to. Check "
    "the units of weight_decay and its schedule."
)
_NO_GRADIENT = (
    "The gradients of {} are 0 everywhere, and yet these parameters decay: frozen or unused? Decay "
    "alone changes them, update after update. Leave them out of the mask, or freeze them with "
    "optax.set_to_zero."
)
_BROKEN = (
    "The update of {} is not finite, so its decay cannot be measured. Check the hyperparameters: "
    "optax.inject_hyperparams keeps them in the parameters' dtype, and in bfloat16 b2=0.999 rounds "
    "to 1; there pass hyperparam_dtype=jnp.float32. optax.contrib.prodigy and dadapt_adamw divide "
    "0 by 0 in a warmup from 0: begin it above 0."
)
_LOST = (
    "The decay of {} is lost to rounding: {} cannot represent a change below {:.2g} of a weight, "
    "and an update removes {:.2g}. Keep the parameters in a wider dtype, or apply the updates with "
    "apply_updates_with_stochastic_rounding."
)
_NONLINEAR = (
    "The decay of {} depends on no gradient, but is not a fraction of each element: an L1 or "
    "clipped decay, or one to a target norm. Its half-life depends on the weights."
)
_LATER = (
    "Measured at update {} from this state: earlier ones move nothing (a warmup from 0, or "
    "gradient accumulation)."
)
_ANOTHER = (
    " Pass step= for another update; step=0 is the first, and steps= adds the sum over the run."
)
_OWN_STEPS = (
    "Budget and left are of updates with counts of the optimizer's own, from 0: where it "
    "accumulates gradients, steps counts what it makes of them and not the calls."
)
_VARYING_CALLS = (
    "Budget and left are not known: the number of calls that make one update changes in the run."
)
_ESTIMATE = (
    "Budget and left are estimates: the decay changes too often in the run to be measured at each "
    "change. The budget may be off by {:.0%}."
)
_PERIOD = (
    "{} calls of update make one that counts: the decay is what that one removes, half-lives count "
    "the calls."
)
_CAUTIOUS = (
    "Cautious decay: in this update {:.0%} of the elements decay, each by this fraction. "
    "Half-lives are of those that always do."
)
_TOWARD = "Pulled to given values, and not to 0: {}. Fractions are of the difference from them."
_CONSTRAINED = "The update holds a norm fixed, so no decay can change it: {}."
_BRAKED = (
    "A radial brake multiplies the growth of {} by {:.2g}. Decay is measured where weights shrink; "
    "from those that grow, it removes {:.2g} of that."
)
_UNCLEAR = (
    "A radial brake acts on {}, and their decay is coupled. Whether a decoupled decay acts besides "
    "cannot be measured there; explain the optimizer without norm_change to see it."
)
_SAMPLED_RANGE = (
    "{}: measured on a sample of the elements, which has the lowest and the highest fraction. Mean "
    "fraction, half-life and budget are those of the sample."
)
_COPIES = "The state keeps copies of the parameters; they were probed together with them."
_LOSS = "Measured with a loss of 1: the update of this optimizer takes value=."
_SYNTHETIC = (
    "Coupled fractions depend on the gradients, here synthetic ones of size 1; pass grads= to use "
    "yours."
)
_SAMPLED = (
    "Measured on a sample of the elements: where a coupled decay passes through a norm (clipping, "
    "a trust ratio), its fraction differs at full size."
)
_REPEATED = (
    "Momentum and moments repeat a coupled decay in later updates. Fractions are those of one "
    "update alone; half-lives count the later ones, unless those vary."
)
_SMALL = (
    "The decay of {} is below 1e-07 per update. If it should be more: schedule is a multiplier, 1 "
    "for a full step, and not a learning rate (split_schedule makes it of one); early in a warmup "
    "it is small."
)
_VECTORS = (
    "Every parameter decays, those of one axis too: {}. Biases and scales are usually spared; "
    "where decay_mask does not know their names, pass a mask of your own or decay_rules."
)
# Arguments that are masks: mask, weight_decay_mask, but not mask_probability.
_MASK_NAME = re.compile(r"(^|_)mask$")
# Below it a weight's half-life exceeds seven million updates: usually an error of units.
_FAINT = 1e-7 * (1 - 1e-3)  # less what rounding takes
# A constant weight decay that removes more in one update is a mistake; a pull may remove all.
_LARGEST, _WHOLE = 0.25, 1.0 + 1e-3
# From here on a fraction looks like PyTorch's, less what rounding takes.
_PYTORCH = PYTORCH_SCALE * (1 - 1e-3)


def warnings(rows: Sequence[DecayRow], found: Findings, probe: Probe) -> tuple[str, ...]:
    """One text for each thing that is wrong. Of the state only the structure is looked at."""
    state, kind = probe.start, found.kind
    decays, unwanted, pulled = found.fraction > 0, _unwanted(rows), kind == "toward"
    spared = any(len(row.shape) > 1 for row in _chosen(rows, found.moves & (kind == "none")))
    is_inverted = spared and np.array_equal(unwanted, decays)
    highest = np.array([abs(row.highest) for row in rows])
    large, overshot = (highest > most for most in (_LARGEST, _WHOLE))
    texts = [_MASK_CALLED] if _mask_was_called(state) else []
    if not texts and found.finite.all() and (kind == "none").all():
        texts.append(_nothing_decays(found, probe.count))
    table = (
        (_BROKEN, ~found.finite),
        (_OURS_GROWING if _our_states(state) else _GROWING, kind == "growing"),
        (_DOUBLE, found.double),
        (_COUPLED, (kind == "coupled") & ~found.double),
        (_NONLINEAR, (kind == "nonlinear") & (not _may_hold_length(state))),
        (_INVERTED if is_inverted else _UNWANTED, unwanted),
        (_NO_GRADIENT, np.isin(kind, DECAYING) & probe.gradient_is_zero()),
        (_LARGE, large & ~pulled),
        (_OVERSHOT, overshot & pulled),
    )
    texts += [text.format(_listing(_chosen(rows, mask))) for text, mask in table if mask.any()]
    return *texts, *_units_warning(rows), *_lost_warning(rows, found)


def _nothing_decays(found: Findings, count: int | None) -> str:
    if found.silent is not None:
        return _NOTHING
    return _STILL.format(MAX_STEPS) if count is None else _STILL_THERE.format(count)


def notes(
    rows: Sequence[DecayRow], found: Findings, probe: Probe, run: Run | None, *, synthetic: bool
) -> tuple[str, ...]:
    """How the numbers were measured, where that is not obvious; `synthetic`: the gradients are."""
    still, coupled = _chosen(rows, ~found.moves), _of_kind(rows, "coupled")
    pulled = _of_kind(rows, "nonlinear") if _may_hold_length(probe.start) else []
    later = _LATER.format((found.silent or 0) + 1) + _ANOTHER * (probe.count is None)
    repeated = np.any((found.fraction != found.steady) & (found.kind == "coupled"))
    share = found.share[found.kind == "cautious"]
    braked = np.isfinite(found.growth) & np.array([math.prod(row.shape) > 1 for row in rows], bool)
    growth = found.growth[braked].mean() if braked.any() else 1.0
    faint = [row for row in _of_kind(rows, "decoupled") if abs(row.decay_per_step) < _FAINT]
    named = (
        (_NONLINEAR, pulled),
        (_TOWARD, _of_kind(rows, "toward")),
        (_CONSTRAINED, _of_kind(rows, "constrained")),
        (_UNCLEAR, _chosen(rows, found.unclear & (found.kind == "coupled"))),
        (_SAMPLED_RANGE, [r for r in rows if probe.is_sampled and r.decay_range is not None]),
        (_SMALL, faint),
        (_VECTORS, _vectors_if_all_decay(rows)),
    )
    texts = [
        (found.silent, later),
        (found.period > 1, _PERIOD.format(found.period)),
        (0 < len(still) < len(rows), f"Not moved by this update: {_listing(still)}."),
        (probe.moving_copies, _COPIES),
        (probe.tx.was_passed, _LOSS),
        (synthetic and coupled, _SYNTHETIC),
        (probe.is_sampled and coupled, _SAMPLED),
        (repeated, _REPEATED),
        (braked.any(), _BRAKED.format(_listing(_chosen(rows, braked)), growth, growth)),
        (share.size, _CAUTIOUS.format(share.sum() / max(share.size, 1))),
        *((chosen, text.format(_listing(chosen))) for text, chosen in named),
    ]
    if run is not None:
        texts += [
            (run.period > 1, _OWN_STEPS),
            (run.is_partial, _VARYING_CALLS),
            (run.error > 0.005, _ESTIMATE.format(run.error)),
        ]
    return tuple(text for applies, text in texts if applies)


def _chosen(rows: Sequence[DecayRow], mask: Iterable[bool]) -> list[DecayRow]:
    return [row for row, take in zip(rows, mask, strict=True) if take]


def _listing(rows: Sequence[DecayRow]) -> str:
    return listing([row.path for row in rows], limit=3)


def _of_kind(rows: Sequence[DecayRow], kind: str) -> list[DecayRow]:
    return [row for row in rows if row.kind == kind]


def _unwanted(rows: Sequence[DecayRow]) -> np.ndarray:
    """Whether each row decays though decay_mask would spare it: bool[rows]."""
    paths = [tuple(row.path.split("/")) if row.path else () for row in rows]
    spared = are_spared(paths, [row.shape for row in rows])
    decays = [row.decay_per_step > 0 for row in rows]
    return np.array(spared, bool) & np.array(decays, bool)


def _vectors_if_all_decay(rows: Sequence[DecayRow]) -> list[DecayRow]:
    """Parameters of one axis or none, where nothing is spared and there are matrices too."""
    decaying = [row for row in rows if jnp.issubdtype(row.dtype, jnp.inexact)]
    vectors = [row for row in decaying if len(row.shape) < 2]
    spared = any(row.decay_per_step <= 0 for row in decaying)
    return [] if spared or len(vectors) == len(decaying) or _unwanted(rows).any() else vectors


def _units_warning(rows: Sequence[DecayRow]) -> list[str]:
    """As the constructors of this package warn, whoever made the optimizer."""
    kinds = ("decoupled", "cautious")
    high = [row for row in rows if row.kind in kinds and _PYTORCH <= row.highest <= _LARGEST]
    smallest = min((row.highest for row in high), default=0.0)
    return [_UNITS.format(smallest, _listing(high))] if high else []


def _lost_warning(rows: Sequence[DecayRow], found: Findings) -> list[str]:
    lost = [row for row in rows if row.lost_to_rounding]
    if found.silent:  # early in a warmup from 0 a decay is smaller than it will be
        lost = [row for row in lost if is_narrow(row)]
    if not lost:
        return []
    dtype = max((row.dtype for row in lost), key=lambda dtype: float(jnp.finfo(dtype).eps))
    largest = max(abs(row.highest) for row in lost if row.dtype == dtype)
    return [_LOST.format(_listing(lost), dtype, smallest_change(dtype), largest)]


def _mask_was_called(state: optax.OptState) -> bool:
    """Whether inject_hyperparams holds a lone value for a mask: a function's of the step."""
    return any(
        _MASK_NAME.search(name) and jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
        for hyperparams in foreign.injected(state)
        for name, value in hyperparams.items()
    )


def _our_states(state: optax.OptState) -> list[DecoupledWeightDecayState | PulledWeightDecayState]:
    """The states of this package's decay."""
    is_ours = lambda x: isinstance(x, DecoupledWeightDecayState | PulledWeightDecayState)
    return list(filter(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))


def _may_hold_length(state: optax.OptState) -> bool:
    """Whether a toward_rms may act, for which a decay that is not linear is meant."""
    kept = [x.reference for x in _our_states(state) if isinstance(x, PulledWeightDecayState)]
    return any(x is None or (isinstance(x, dict) and x.keys() == {"rms"}) for x in kept)
