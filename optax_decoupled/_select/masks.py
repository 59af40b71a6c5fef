"""Masks: the usual one, and the multiplier that any mask gives to each parameter.

Entries of a mask and parameters are matched by path, so their containers may differ in type.
"""

import contextlib
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief, inject_hint
from optax_decoupled._common.dtypes import is_decayable
from optax_decoupled._common.probing import originals
from optax_decoupled._common.types import Leaf, Mask, MaskFunction, Multiplier, Path, PyTree
from optax_decoupled._select.multipliers import check_multiplier, fitted
from optax_decoupled._select.names import is_array, listing, named_leaves, unboxed
from optax_decoupled._select.spared import are_spared, is_norm, name_words

# Words that name embeddings, wherever they occur in a path, and words that name the last layer.
_EMBEDDING = re.compile(r"(un)?embed(s|der|ding|dings)?|wte|wpe|vocab")
# Elements of a mask's arrays that explain_weight_decay evaluates at most: 64 MiB of float32.
_MOST_CONSTANTS = 2**24
_HEAD = {"head", "logits", "classifier", "readout", "output"}


@checks.mask_function
def decay_mask(params: optax.Params) -> PyTree:
    """The usual selection, by name: all but biases, scales, norms and other coefficients.

    No decay for

    - biases and scales: a name with one of the words ``bias``, ``scale``, ``beta``, ``gamma`` and
      ``offset``, or a ``b`` beside a ``w``;
    - norms: a module whose name (or class, where the tree holds modules) is a norm's, such as
      ``LayerNorm_0``, ``bn1``, ``ln_f``, ``input_layernorm``. The layers inside a ``PreNorm``
      block decay, and so does a ``norm_mlp``;
    - arrays without axes that have a name, such as a temperature;
    - the rates and step sizes of state space models and linear recurrences: ``A_log``, ``log_a``,
      ``a_param``, ``dt_bias``, ``log_step``, ``log_dt``, ``Lambda_re``, ``nu_log``,
      ``theta_log``, ``gamma_log``, and ``D`` beside one of them;
    - attention sinks: a name that ends with ``sink`` or ``sinks``;
    - layer scales: a parameter or module called ``ls1``, ``layer_scale`` or ``LayerScale_0``;
    - coefficients with the word ``lambda``: ``x0_lambda``, ``resid_lambdas``, ``lambda_q1``; not
      where a layer's word follows, as in ``lambda_proj``;
    - gates and skip weights that are one number, or one per layer: a name that ends with ``gate``
      or ``skip_weights``, of an array with at most one axis longer than 1. A ``gate`` matrix
      decays, and so does ``gate_proj/kernel``;
    - slopes of activations: a name with the word ``slope``, or a module called like ``PReLU_0``.

    Everything else decays: also embeddings, position tables, class and register tokens, probes and
    routers. To spare them, too: ``decay_rules((".*embed.*", 0.0), default=decay_mask)``.

    Names decide rather than ``ndim``, because scanned or vmapped layers turn a bias into a matrix.
    A tree that is one bare array has no names: that array decays, even if it has no axes.

    Args:
      params: the parameter tree. Leaves of any shape and dtype.

    Returns:
      A tree of bools of the structure of ``params``. Pass the function itself:
      ``mask=decay_mask``.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
      ...           "LayerNorm_0": {"scale": jnp.ones(2)}}
      >>> mask = od.decay_mask(params)
      >>> assert mask == {"Dense_0": {"kernel": True, "bias": False},
      ...                 "LayerNorm_0": {"scale": False}}
    """

    def is_norm_module(node: PyTree) -> bool:
        children = () if is_array(node) else jax.tree.structure(node).children()
        innermost = all(child.num_nodes == 1 for child in children)
        return innermost and is_norm(type(node).__name__)

    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_norm_module)
    shapes = [getattr(node, "shape", ()) for _, node in flat]
    spared = are_spared(unboxed([key_path for key_path, _ in flat]), shapes)
    nodes = [
        jax.tree.map(lambda _: False, node) if is_norm_module(node) else not spare
        for spare, (_, node) in zip(spared, flat, strict=True)
    ]
    return jax.tree.unflatten(treedef, nodes)


@checks.mask_function
def hidden_matrices(params: optax.Params) -> PyTree:
    """Selects as :func:`decay_mask` does, but only from two axes on and no embedding or head."""
    leaves, _ = named_leaves(params)
    chosen = [
        bool(decays) and np.ndim(leaf) > 1 and not _is_embedding_or_head(path)
        for (path, leaf), decays in zip(leaves, leaf_multipliers(decay_mask, params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _is_embedding_or_head(path: Path) -> bool:
    """Whether a parameter belongs to an embedding or to the network's head, not attention's."""
    if any(_EMBEDDING.fullmatch(word) for name in path for word in name_words(name)):
        return True
    first = set(name_words(path[0])) if path else set()
    begins = not _HEAD.isdisjoint(first) and {"multi", "attention", "attn"}.isdisjoint(first)
    return begins or any(name.lower() in {"head", "lm_head"} for name in path[-2:])


def where_normalized(mask: Mask, normalized: Mask, is_normalized: bool) -> MaskFunction:
    """A mask function: `mask` on the layers that `normalized` marks, or on all others."""

    @checks.mask_function
    def masked_layers(params: optax.Params, /) -> PyTree:
        marks = leaf_multipliers(normalized, params)
        if not all(isinstance(mark, bool) for mark in marks):
            raise ValueError("normalized must be a mask of bools: a layer is normalized or not.")
        rows = zip(leaf_multipliers(mask, params), marks, strict=True)
        chosen = [w if mark == is_normalized else False for w, mark in rows]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    return masked_layers


def leaf_multipliers(mask: Mask, params: optax.Params) -> list[Multiplier]:
    """Evaluates a mask on params: one multiplier for each of ``jax.tree.leaves(params)``.

    A static 0 is returned as False and a static 1 as True, so that callers can skip the
    multiplication. An array has the rank of its leaf, to whose shape it broadcasts. Leaves that
    cannot decay, such as integers, get False.
    """
    leaves, empty = named_leaves(params)
    if mask is None or not leaves:
        return [is_decayable(leaf) for _, leaf in leaves]
    tree = _evaluated(mask, params) if _is_function(mask) else mask
    entries = _mask_entries(tree, params)
    used: set[Path] = set()
    multipliers: list[Multiplier] = []
    uncovered: list[str] = []
    for path, leaf in leaves:
        entry = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in entries), None)
        if entry is None:
            uncovered.append("/".join(path))
            continue
        used.add(entry)
        multipliers.append(_multiplier(entry, path, entries[entry], leaf))
    unused = ["/".join(path) for path in entries_without_parameter(entries, used, empty)]
    if uncovered or unused:
        raise ValueError(_mismatch_error(uncovered, unused))
    return multipliers


def _multiplier(entry: Path, path: Path, value: object, leaf: Leaf) -> Multiplier:
    if not is_decayable(leaf):
        return False
    name = f"mask at {'/'.join(entry)!r}"
    multiplier = check_multiplier(name, value)
    name += "" if entry == path else f" for {'/'.join(path)!r}"
    return fitted(name, multiplier, np.shape(leaf))


def scalar_multipliers(name: str, mask: Mask, params: optax.Params) -> list[Multiplier]:
    """The same, but arrays with axes are refused."""
    multipliers = leaf_multipliers(mask, params)
    for (path, _), w in zip(named_leaves(params)[0], multipliers, strict=True):
        if np.shape(w) != ():
            raise ValueError(
                f"{name} at {'/'.join(path)!r} is an array of shape {np.shape(w)}; it must be one "
                "number for the whole parameter."
            )
    return multipliers


def _mask_entries(tree: PyTree, params: optax.Params) -> dict[Path, Any]:
    """The mask's values by path. None is kept as a value, so that it can be refused."""
    bare = jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))
    bare_params = jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
    is_whole = isinstance(tree, bool | float) or (is_array(tree) and np.ndim(tree) > 0)
    if bare and not (bare_params and is_whole):
        raise ValueError(
            f"mask is {brief(tree)}, a single {type(tree).__name__} for the whole parameter tree. "
            "It must be a tree (or prefix) of bools or multipliers shaped like the parameters, "
            "or a function from the parameters to one; leave mask out to decay everything. "
            f"{inject_hint('mask')}"
        )
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return dict(zip(unboxed([key_path for key_path, _ in flat]), (v for _, v in flat), strict=True))


def _mismatch_error(uncovered: Sequence[str], unused: Sequence[str]) -> str:
    parts = ["mask does not have the structure of the parameters (or a prefix of it)."]
    if uncovered:
        parts.append(f"It has no entry for the parameters {listing(uncovered)}.")
    if unused:
        parts.append(f"It has entries that are no parameters: {listing(unused)}.")
    parts.append("Build it with jax.tree.map over the parameters, or use decay_rules.")
    return " ".join(parts)


def entries_without_parameter(
    entries: Iterable[Path], used: set[Path], empty: Sequence[Path]
) -> list[Path]:
    """Entries that belong to no parameter, except those above, at or below an empty node.

    An empty node stands for parameters that another transform updates.
    """
    nodes = set(empty)
    above = {path[:n] for path in empty for n in range(len(path))}
    return [
        path
        for path in entries
        if path not in used
        and path not in above
        and not any(path[:n] in nodes for n in range(len(path) + 1))
    ]


def _evaluated(mask: Any, params: optax.Params) -> PyTree:
    if originals() is not None:
        with contextlib.suppress(Exception):
            return _constants(mask, params)
    try:
        return mask(params)
    except Exception as error:
        if not checks.is_ours(mask):  # errors of this package's masks need no explanation
            error.add_note(
                f"This was raised by mask={mask!r}, which is called with the tree of parameters "
                "and must return a tree (or prefix) of bools or multipliers."
            )
        raise


def _constants(mask: Any, params: optax.Params) -> PyTree:
    """The mask of the original parameters, its arrays constants even under `jit`.

    So a sample of the parameters has a sample of their multipliers. Raises where that would need
    the parameters' values or much memory.
    """
    leaves = [_original(*row) for row in named_leaves(params)[0]]
    full = jax.tree.unflatten(jax.tree.structure(params), leaves)
    found: list[PyTree] = []
    jax.eval_shape(lambda tree: found.append(mask(tree)), full)
    if sum(np.size(x) for x in jax.tree.leaves(found)) > _MOST_CONSTANTS:
        raise ValueError("The mask's arrays are too large.")

    def evaluate(tree: optax.Params) -> None:
        with jax.ensure_compile_time_eval():
            found.append(mask(tree))

    jax.eval_shape(evaluate, full)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found[1])):
        raise TypeError("The mask depends on the parameters' values.")
    return found[1]


def _original(path: Path, leaf: Leaf) -> jax.ShapeDtypeStruct:
    """Of a parameter; of its own shape under `vmap`, where it has fewer axes than the original."""
    own = np.shape(leaf)
    measured = originals()
    struct = measured.structs.get(path) if measured else None
    if struct is None:
        return jax.ShapeDtypeStruct(own, jnp.result_type(leaf))
    fits = len(struct.shape) == len(own) and all(map(operator.ge, struct.shape, own))
    return struct if fits else jax.ShapeDtypeStruct(own, struct.dtype)


def _is_function(mask: Mask) -> bool:
    """Whether a mask is a function, and not a tree of bools whose class can be called."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(mask))
    return callable(mask) and (is_leaf or isinstance(mask, jax.tree_util.Partial))
