"""The sentences of a `DecayReport`: what is wrong with a decay, and the way out."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_decoupled._decay import DecoupledWeightDecayState
from optax_decoupled._explain.probe import MAX_STEPS
from optax_decoupled._explain.report import DecayRow, half_life, smallest_change
from optax_decoupled._masks import are_biases_or_norms

_MASK_CALLED = (
    "The mask function did not reach the optimizer: optax.inject_hyperparams takes every callable "
    'for a schedule and called it with the step number. Pass static_args=("mask",) to '
    "inject_hyperparams."
)
_NOTHING = (
    "Nothing decays: the optimizer has no weight decay, its coefficient is 0 at this update, or "
    "its mask selects no parameter. Check weight_decay and mask, or pass the state of a later step."
)
_STILL = (
    "Nothing decays within {} updates, none of which moves anything. If later ones do, pass the "
    "state of such a step."
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
_UNWANTED = (
    "Biases, scales or norm parameters decay: {}. Pass mask=decay_mask (or decay_rules) unless "
    "this is intended."
)
_LARGE = (
    "One update changes {} by more than a quarter of its value, which no weight decay does. Check "
    "the units of weight_decay, and whether the optimizer constrains or replaces its parameters."
)
_BROKEN = (
    "The update of {} is not finite, so its decay cannot be measured. Check the hyperparameters: "
    "optax.inject_hyperparams keeps them in the parameters' dtype, and in bfloat16 b2=0.999 rounds "
    "to 1; there pass hyperparam_dtype=jnp.float32."
)
_LOST = (
    "The decay of {} is lost to rounding: {} cannot represent a change below {:.2g} of a weight, "
    "and an update removes {:.2g}. Keep the parameters in a wider dtype, or apply the updates with "
    "apply_updates_with_stochastic_rounding."
)
# Arguments that are masks: mask, weight_decay_mask, but not mask_probability.
_MASK_NAME = re.compile(r"(^|_)mask$")
# A decay that leaves half of a weight after seven million updates is seldom meant.
_FAINT = 1e-7


def warnings(
    rows: Sequence[DecayRow],
    *,
    broken: Sequence[DecayRow],
    double: Sequence[DecayRow],
    gave_up: bool,
    state: Any,
) -> tuple[str, ...]:
    """One text for each thing that is wrong.

    Args:
      rows: all parameters.
      broken: those whose update is not finite.
      double: those with L2 and decoupled decay.
      gave_up: whether no update that moves anything was found.
      state: the optimizer state, or its shapes; only its structure is looked at.
    """
    coupled = [row for row in _of_kind(rows, "coupled") if row not in double]
    named = (
        (_BROKEN, broken),
        (_OURS_GROWING if _holds_our_decay(state) else _GROWING, _of_kind(rows, "growing")),
        (_DOUBLE, double),
        (_COUPLED, coupled),
        (_UNWANTED, [row for row in rows if row.decay_per_step > 0 and _is_bias_or_norm(row)]),
        (_LARGE, [row for row in rows if abs(row.decay_per_step) > 0.25]),
    )
    texts = [_MASK_CALLED] if _mask_was_called(state) else []
    if not broken and all(row.kind == "none" for row in rows):
        texts.append(_STILL.format(MAX_STEPS) if gave_up else _NOTHING)
    texts += [text.format(_listing(chosen)) for text, chosen in named if chosen]
    lost = [row for row in rows if row.lost_to_rounding]
    return (*texts, _lost_warning(lost)) if lost else tuple(texts)


def notes(
    rows: Sequence[DecayRow],
    still: Sequence[DecayRow],
    steps: int,
    *,
    has_copies: bool,
    synthetic: bool,
) -> tuple[str, ...]:
    """How the numbers were measured, where that is not obvious.

    Args:
      rows: all parameters.
      still: those that the update does not move.
      steps: updates that were skipped because they move nothing.
      has_copies: whether the state keeps copies of the parameters.
      synthetic: whether the gradients are synthetic.
    """
    faint = [row for row in _of_kind(rows, "decoupled") if abs(row.decay_per_step) < _FAINT]
    texts = (
        (
            steps > 0,
            f"Measured at update {steps + 1} from this state: before it nothing moves (a warmup "
            "from 0, or gradient accumulation).",
        ),
        (0 < len(still) < len(rows), f"Not moved by this update: {_listing(still)}."),
        (
            has_copies,
            "The state keeps copies of the parameters; they were probed together with them.",
        ),
        (
            synthetic and _of_kind(rows, "coupled"),
            "Coupled fractions depend on the gradients, here synthetic ones of size 1; pass "
            "grads= to use yours.",
        ),
        (
            any(x.half_life != half_life(x.decay_per_step) for x in _of_kind(rows, "coupled")),
            "Momentum and moments repeat a coupled decay in later updates. Fractions are those of "
            "one update alone; half-lives count the later ones, unless those vary.",
        ),
        (
            faint,
            f"The decay of {_listing(faint)} is below {_FAINT:.0e} per update. If it should be "
            "more: schedule is a multiplier, 1 for a full step, and not a learning rate "
            "(split_schedule makes it of one); early in a warmup it is small.",
        ),
    )
    return tuple(text for applies, text in texts if applies)


def _listing(rows: Sequence[DecayRow], limit: int = 3) -> str:
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(repr(row.path) for row in rows[:limit]) + more


def _of_kind(rows: Sequence[DecayRow], kind: str) -> list[DecayRow]:
    return [row for row in rows if row.kind == kind]


def _is_bias_or_norm(row: DecayRow) -> bool:
    return are_biases_or_norms([tuple(row.path.split("/"))])[0]


def _lost_warning(lost: Sequence[DecayRow]) -> str:
    dtype = max((row.dtype for row in lost), key=lambda dtype: float(jnp.finfo(dtype).eps))
    largest = max(abs(row.decay_per_step) for row in lost if row.dtype == dtype)
    return _LOST.format(_listing(lost), dtype, smallest_change(dtype), largest)


def _mask_was_called(state: Any) -> bool:
    """Whether inject_hyperparams holds a lone value for a mask: a function's of the step."""

    def is_injected(node: Any) -> bool:
        return isinstance(getattr(node, "hyperparams", None), dict)

    injected = filter(is_injected, jax.tree.leaves(state, is_leaf=is_injected))
    return any(
        _MASK_NAME.search(name) and jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
        for node in injected
        for name, value in node.hyperparams.items()
    )


def _holds_our_decay(state: Any) -> bool:
    def is_ours(node: Any) -> bool:
        return isinstance(node, DecoupledWeightDecayState)

    return any(map(is_ours, jax.tree.leaves(state, is_leaf=is_ours)))
