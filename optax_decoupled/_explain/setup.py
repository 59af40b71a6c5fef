"""From an optimizer and its arguments to a probe of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._dtypes import is_decayable
from optax_decoupled._explain import arrays, programs
from optax_decoupled._explain.probe import Data, Probe
from optax_decoupled._paths import named_leaves

_INJECT_HINT = (
    "A mask function under optax.inject_hyperparams is taken for a schedule, unless it is named "
    'in static_args=("mask",).'
)


def make_probe(
    tx: optax.GradientTransformation, params: Any, state: Any, grads: Any
) -> tuple[Probe, Data, bool]:
    """A probe, its data, and whether the state after an update can depend on the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    wide = [jax.ShapeDtypeStruct(x.shape, arrays.wide(x.dtype)) for x in shapes]
    init, wide_init = (_trace_init(tx, treedef.unflatten(x)) for x in (shapes, wide))
    state_def, state_like = jax.tree.structure(init.out_info), jax.tree.leaves(wide_init.out_info)
    if state is not None and jax.tree.structure(state) != state_def:
        raise ValueError(_other_state(state, init.out_info))
    _check_shapes("state", state, init.out_info)
    _check_shapes("grads", grads, params)
    places, place_of = arrays.placements(leaves)
    dtypes = [x.dtype for x in shapes]
    kinds, kind_of = arrays.distinct(
        list(zip(place_of, dtypes, _natural_amplitudes(leaves), strict=True))
    )
    state_dtypes = [x.dtype for x in state_like]
    no_copies = [False] * len(state_dtypes)
    probe = Probe(tx, treedef, shapes, kinds, kind_of, state_def, state_dtypes, no_copies, dtypes)
    data = Data(
        arrays.make_patterns(places),
        [None if is_decayable(x) else _concrete(x) for x in leaves],
        state,
        *_gradients(grads, treedef),
    )
    if any(programs.depends_on_inputs(init.jaxpr, [True] * len(leaves))):
        probe = dataclasses.replace(probe, copies=_find_copies(probe, data))
    update = _trace_update(probe, treedef.unflatten(wide), wide_init.out_info)
    kept_as = _kept_as(probe, update, [x.dtype for x in jax.tree.leaves(init.out_info)])
    return dataclasses.replace(probe, kept_as=kept_as), data, _may_remember(probe, update)


def _trace_init(tx: optax.GradientTransformation, params: Any) -> Any:
    try:
        return jax.jit(tx.init).trace(params)
    except Exception as error:
        hint = "" if "static_args" in str(error) else f" {_INJECT_HINT}"
        raise ValueError(f"tx.init fails on these params: {error}{hint}") from error


def _check_shapes(name: str, tree: Any, expected: Any) -> None:
    """Where both have a leaf, it must have the same shape."""
    wanted = dict(named_leaves(expected)[0])
    for path, leaf in named_leaves(tree)[0]:
        shape = jnp.shape(wanted.get(path, leaf))
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"{name} at {'/'.join(path)!r} has shape {jnp.shape(leaf)}; for these params it "
                f"must be {shape}. Pass what belongs to the same parameters, or None."
            )


def _other_state(state: Any, expected: Any) -> str:
    given, own = ({"/".join(p) for p, _ in named_leaves(tree)[0]} for tree in (state, expected))
    differences = [f"{path!r} is missing" for path in sorted(own - given)]
    differences += [f"{path!r} is unexpected" for path in sorted(given - own)]
    return (
        "state is not what this tx has for these params: "
        f"{', '.join(differences[:3]) or 'its containers are of other types'}. "
        "Pass tx.init(params) or a later state of the same optimizer; that of Flax's nnx.Optimizer "
        "is its opt_state, for nnx.state(model, nnx.Param) as params."
    )


def _trace_update(probe: Probe, params: Any, state: Any) -> Any:
    try:
        return probe._update.trace(params, state, params).jaxpr
    except Exception as error:
        raise ValueError(
            f"tx.update(grads, state, params) fails: {error}\n"
            "If it needs more arguments, bind them: "
            "optax.GradientTransformation(tx.init, functools.partial(tx.update, value=...))."
        ) from error


def _may_remember(probe: Probe, update: Any) -> bool:
    n, m = len(probe.leaves), len(probe.state_dtypes)
    reached = programs.depends_on_inputs(update, [False] * n + probe.copies + [True] * n)
    return any(reached[len(reached) - m :])


def _kept_as(probe: Probe, update: Any, state_dtypes: Sequence[Any]) -> list[Any]:
    """For each parameter its dtype, or that of wider copies of which its update is made."""
    n, kept_as = len(probe.leaves), [x.dtype for x in probe.leaves]
    copied = [d if copy else None for d, copy in zip(state_dtypes, probe.copies, strict=True)]
    for wide in {*copied} - {None}:
        copies = [dtype == wide for dtype in copied]
        reached = programs.depends_on_inputs(update, [False] * n + copies + [False] * n)
        updates = reached[: len(reached) - len(copied)]
        if len(updates) != n:  # some are None
            break
        kept_as = [
            wide if made_of_it and _digits(wide) > _digits(dtype) else dtype
            for made_of_it, dtype in zip(updates, kept_as, strict=True)
        ]
    return kept_as


def _digits(dtype: Any) -> int:
    return int(jnp.finfo(dtype).nmant) if jnp.issubdtype(dtype, jnp.inexact) else 0


def _natural_amplitudes(leaves: Sequence[Any]) -> list[float]:
    """For each leaf a power of two near its size over 1.5, which is that of a pattern."""
    known = [0.0 if isinstance(x, jax.ShapeDtypeStruct) else x for x in leaves]
    sizes = arrays.root_mean_squares(known) / 1.5
    sizes[~((sizes > 0) & np.isfinite(sizes))] = 2.0**-4
    return [float(x) for x in 2.0 ** np.clip(np.round(np.log2(sizes)), -14, 10)]


def _concrete(leaf: Any) -> Any:
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return jnp.zeros(leaf.shape, leaf.dtype) if is_shape else leaf


def _gradients(grads: Any, treedef: Any) -> tuple[list[Any], list[Any]]:
    """The caller's gradients and, for their zeros, the sizes of synthetic ones."""
    nothing = [None] * treedef.num_leaves
    if grads is None:
        return nothing, nothing
    try:
        leaves = treedef.flatten_up_to(grads)
    except ValueError as error:
        raise ValueError(
            f"grads has the structure {jax.tree.structure(grads)}; it must be that of params, "
            f"{treedef}. Pass what you pass to tx.update, or None."
        ) from error
    leaves = [None if g is None or not is_decayable(g) else g for g in leaves]
    sizes = arrays.root_mean_squares([0 if g is None else g for g in leaves])
    sizes[sizes == 0] = sizes.max(initial=0) or 1.0
    return leaves, list(arrays.scalars(sizes))


def _find_copies(probe: Probe, data: Data) -> list[bool]:
    """Leaves of the initial state that change sign with the parameters: schedule-free's z."""

    def first_elements(data: Data, sign: Any) -> Any:
        params = probe._params(data, [sign] * len(probe.kinds))
        return [
            jnp.ravel(x)[:1] if is_decayable(x) else jnp.zeros(1)
            for x in jax.tree.leaves(probe._fresh(params))
        ]

    first = jax.jit(first_elements)
    both = zip(*(jax.device_get(first(data, np.float32(s))) for s in (1, -1)), strict=True)
    return [bool(np.any(x != y)) for x, y in both]
