"""Checks of the arguments of `explain_weight_decay`, and errors of the optimizer in context."""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief, inject_hint
from optax_decoupled._select.names import named_leaves

INIT = "tx.init fails on these params"
UPDATE = "tx.update(grads, state, params) fails"
BIND = (
    "\nIf it needs more arguments, bind them: "
    "optax.GradientTransformation(tx.init, functools.partial(tx.update, value=...))."
)
NOT_SAMPLED = (
    "tx cannot be measured on samples of these {:,} weights, because it holds arrays of their "
    "shapes or depends on their number, and they are too many to measure it on all. Explain it for "
    "fewer or narrower layers of the same names."
)
_FACTORY = (
    "It is the first argument: explain_weight_decay(tx, params). Call the optimizer's factory "
    "first, e.g. optax.adamw(1e-3)."
)
STEP = (
    "It is the number of updates before the one to report: 0 for the first, None for the state's."
)
STEPS = "It is the number of updates in the run, or None."
_LOOKAHEAD = (
    "optax.lookahead cannot be explained: it keeps a pair of fast and slow parameters, and a "
    "report is about one set. Pass the optimizer inside it, with the fast ones as params: "
    "explain_weight_decay(fast_optimizer, params.fast). Each synchronization keeps slow_step_size "
    "of what it removes."
)
_NEEDS_LOSS = "missing 1 required keyword-only argument: 'value'"


class WithLoss:
    """An optimizer whose update is passed a loss, ``value=1``, if it asks for one."""

    def __init__(self, tx: optax.GradientTransformation):
        self.init, self._update = tx.init, tx.update
        self.was_passed = False

    def update(self, *trees: Any) -> tuple[Any, Any]:
        try:
            return self._update(*trees)
        except TypeError as error:
            if _NEEDS_LOSS not in str(error):
                raise
        self.was_passed = True
        return self._update(*trees, value=jnp.float32(1.0))  # pyright: ignore[reportCallIssue]


def check_arguments(tx: object, *trees: object) -> None:
    checks.check_transformation("tx", tx, _FACTORY)
    if isinstance(trees[0], optax.LookaheadParams):
        raise ValueError(_LOOKAHEAD)
    is_key = lambda x: jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key)
    keys = [path for path, x in named_leaves(trees[0])[0] if is_key(x)]
    if keys:
        raise TypeError(
            f"params holds a random key at {'/'.join(keys[0])!r}, which is no parameter. Pass the "
            "parameters alone, of a Flax NNX model nnx.state(model, nnx.Param)."
        )
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(trees)):
        raise TypeError(
            "explain_weight_decay got traced arrays, but it reports numbers. Call it outside "
            "jit, grad and scan; tx.update may be a jitted function."
        )


def whole_number(name: str, value: object, least: int, way_out: str) -> int | None:
    """A number of updates as an int; or None."""
    if value is None:
        return None
    number = np.asarray(value).item() if checks.is_known(value) else value
    rule = f"a whole number from {least} to 2**31 - 1"
    if not checks.is_static(number) or isinstance(number, bool | np.bool_):
        raise TypeError(f"{name}={brief(value)} must be {rule}. {way_out}")
    holds = lambda x: x == x // 1 and least <= x < 2**31
    checks.check_number(name, number, rule, holds, way_out)
    return int(number)


def with_context(function: Callable[..., Any], what: str, way_out: str, *arguments: Any) -> Any:
    """The function's result, or a ValueError that quotes its error."""
    try:
        return function(*arguments)
    except Exception as error:
        has_hint = "static_args" in str(error) or not _came_through_injection(error)
        hint = "" if has_hint else f" {inject_hint('mask')}"
        text = f"{what} with {type(error).__name__}: {error}{hint}{way_out}"
        raise ValueError(text) from error


def _came_through_injection(error: BaseException) -> bool:
    """Whether an error was raised inside optax.inject_hyperparams."""
    frames = traceback.walk_tb(error.__traceback__)
    return any("inject_hyperparams" in frame.f_code.co_qualname for frame, _ in frames)


def check_state_fits(
    state: optax.OptState | None, expected: Iterable[optax.OptState]
) -> optax.OptState:
    """The first expected state, or the first with this one's structure; shapes must be equal."""
    seen: list[optax.OptState] = []
    for like in expected:
        seen.append(like)
        if any(map(_is_lookahead, jax.tree.leaves(like, is_leaf=_is_lookahead))):
            raise ValueError(_LOOKAHEAD)
        if state is None or same_structure(state, like):
            check_shapes("state", state, like)
            return like
    given, own = ({"/".join(p) for p, _ in named_leaves(tree)[0]} for tree in (state, seen[0]))
    differences = [f"{path!r} is missing" for path in sorted(own - given)]
    differences += [f"{path!r} is unexpected" for path in sorted(given - own)]
    raise ValueError(
        "state is not what this tx has for these params: "
        f"{', '.join(differences[:3]) or 'its containers are of other types'}. "
        "Pass tx.init(params) or a later state of the same optimizer; that of Flax's nnx.Optimizer "
        "is its opt_state, for nnx.state(model, nnx.Param) as params."
    )


def _is_lookahead(node: Any) -> bool:
    return isinstance(node, optax.LookaheadState)


def same_structure(tree: Any, other: Any) -> bool:
    return jax.tree.structure(tree) == jax.tree.structure(other)


def check_shapes(name: str, tree: Any, expected: Any) -> None:
    """Where both have a leaf, it must have the same shape."""
    wanted = dict(named_leaves(expected)[0])
    for path, leaf in named_leaves(tree)[0]:
        shape = jnp.shape(wanted.get(path, leaf))
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"{name} at {'/'.join(path)!r} has shape {jnp.shape(leaf)}; for these params it "
                f"must be {shape}. Pass what belongs to the same parameters, or None."
            )
