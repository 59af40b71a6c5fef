"""Which parameters decay: what a mask means, and the usual one, by name.

A mask is matched to parameters by path, so its containers may be of other types.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import shown
from optax_decoupled._common.dtypes import is_decayable
from optax_decoupled._common.injection import inject_hint
from optax_decoupled._common.types import Mask, MaskFunction, Multiplier, Path, PyTree
from optax_decoupled._select.names import is_array, listing, named_leaves, unboxed

# A word that names a norm, and words that make it the adjective of something else.
_NORM = re.compile(r"[a-z]*(norms?|normali[sz](e|er|ation))|bn|ln|gn|rms")
_LAYERS = {"attention", "attn", "block", "conv", "dense", "embed", "embedding", "fc", "ffn"}
_LAYERS |= {"gate", "head", "linear", "mlp", "proj", "projection"}
_UNDECAYED = {"bias", "biases", "scale", "scales", "beta", "gamma", "offset"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Words that name embeddings, wherever they stand, and the last layer of a network.
_EMBEDDING = re.compile(r"(un)?embed(s|der|ding|dings)?|wte|wpe|vocab")
_HEAD = {"head", "logits", "classifier", "readout", "output"}
# A bias b beside a weight w: b, b1, b_in beside w, w1, w_in.
_SHORT_BIAS = re.compile(r"b(\d*|_\w+)")
_WEIGHTS = ("w", "weight", "kernel")
# Of optax.contrib.split_real_and_imaginary.
_COMPLEX_PARTS = {"real", "imaginary"}


def decay_mask(params: optax.Params) -> PyTree:
    """The usual selection, by name: everything but biases, scales and norm layers.

    No decay for a parameter whose name has one of the words ``bias``, ``scale``, ``beta``,
    ``gamma`` and ``offset``, for a ``b`` beside a ``w``, nor for one whose own module has a
    name (or class, where the tree holds modules) like a norm: ``LayerNorm_0``, ``bn1``,
    ``ln_f``, ``input_layernorm``. The layers inside a ``PreNorm`` block decay, and so does a
    ``norm_mlp``. Names rather than ``ndim``, because scanned or vmapped layers turn a bias
    into a matrix.

    Everything else decays: also embeddings, position tables, class tokens and probes. To
    spare them, too: ``decay_rules((".*embed.*", 0.0), default=decay_mask)``.

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
        return innermost and _is_norm(type(node).__name__)

    flat, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_norm_module)
    spared = are_biases_or_norms(unboxed([key_path for key_path, _ in flat]))
    nodes = [
        jax.tree.map(lambda _: False, node) if is_norm_module(node) else not spare
        for spare, (_, node) in zip(spared, flat, strict=True)
    ]
    return jax.tree.unflatten(treedef, nodes)


def hidden_matrices(params: optax.Params) -> PyTree:
    """What :func:`decay_mask` selects of two axes or more, without embeddings and heads."""
    leaves, _ = named_leaves(params)
    chosen = [
        bool(decays) and np.ndim(leaf) > 1 and not _is_outer(path)
        for (path, leaf), decays in zip(leaves, leaf_multipliers(decay_mask, params), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _is_outer(path: Path) -> bool:
    """Whether it leads to an embedding, or begins with or ends in a head (none of attention's)."""
    if any(_EMBEDDING.fullmatch(word) for name in path for word in _words(name)):
        return True
    first = set(_words(path[0])) if path else set()
    begins = not _HEAD.isdisjoint(first) and {"multi", "attention", "attn"}.isdisjoint(first)
    return begins or any(name.lower() in {"head", "lm_head"} for name in path[-2:])


def where_normalized(mask: Mask, normalized: Mask, holds: bool) -> MaskFunction:
    """A mask on the layers that are normalized, or that are not, and no decay elsewhere."""

    def part(params: optax.Params, /) -> PyTree:
        marks = leaf_multipliers(normalized, params)
        if not all(isinstance(mark, bool) for mark in marks):
            raise ValueError("normalized must be a mask of bools: a layer is normalized or not.")
        rows = zip(leaf_multipliers(mask, params), marks, strict=True)
        chosen = [w if mark == holds else False for w, mark in rows]
        return jax.tree.unflatten(jax.tree.structure(params), chosen)

    return part


def are_biases_or_norms(paths: Sequence[Path]) -> list[bool]:
    """For each parameter of a tree, whether its path names a bias, a scale or a part of a norm."""
    split = [tuple(name for key in path for name in key.split("/")) for path in paths]  # Haiku's
    split = [path[:-1] if path[-1:] and path[-1] in _COMPLEX_PARTS else path for path in split]
    siblings: dict[Path, set[str]] = {}
    for path in split:
        siblings.setdefault(path[:-1], set()).update(name.lower() for name in path[-1:])
    return [bool(path) and _is_bias_or_norm(path, siblings[path[:-1]]) for path in split]


def _is_bias_or_norm(path: Path, siblings: set[str]) -> bool:
    module = next((name for name in path[-2::-1] if not name.isdigit()), "")
    named = not _UNDECAYED.isdisjoint(_words(path[-1]))
    return named or _is_norm(path[-1]) or _is_norm(module) or _is_short_bias(path[-1], siblings)


def _is_short_bias(name: str, siblings: set[str]) -> bool:
    """Such as b1 beside w1. The b of a pair of factors a and b (LoRA) is none."""
    match = _SHORT_BIAS.fullmatch(name.lower())
    if match is None or f"a{match[1]}" in siblings:
        return False
    return match[1].startswith("_") or any(f"{w}{match[1]}" in siblings for w in _WEIGHTS)


def _is_norm(name: str) -> bool:
    """LayerNorm_0, ln_f, norm1, pre_norm; not norm_mlp, nor normalized_proj."""
    words = _words(name)
    norms = [i for i, word in enumerate(words) if _NORM.fullmatch(word)]
    return bool(norms) and _LAYERS.isdisjoint(words[norms[-1] + 1 :])


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def leaf_multipliers(mask: Mask, params: optax.Params) -> list[Multiplier]:
    """Evaluates a mask on params: one multiplier for each of ``jax.tree.leaves(params)``.

    A static 0 comes back as False and a static 1 as True, so that callers can skip
    the arithmetic; leaves that cannot decay are False.
    """
    leaves, empty = named_leaves(params)
    if mask is None or not leaves:
        return [is_decayable(leaf) for _, leaf in leaves]
    tree = _called(mask, params) if _is_function(mask) else mask
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
        name = f"mask at {'/'.join(entry)!r}"
        multipliers.append(check_multiplier(name, entries[entry]) if is_decayable(leaf) else False)
    unused = ["/".join(path) for path in foreign_entries(entries, used, empty)]
    if uncovered or unused:
        raise ValueError(_mismatch(uncovered, unused))
    return multipliers


def _mask_entries(tree: PyTree, params: optax.Params) -> dict[Path, Any]:
    """The mask's values by path; None counts as a value, so that it can be refused."""
    bare = jax.tree_util.treedef_is_leaf(jax.tree.structure(tree))
    bare_params = jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
    if bare and not (bare_params and isinstance(tree, bool | float)):
        raise ValueError(
            f"mask is {shown(tree)}, a single {type(tree).__name__} for the whole parameter tree. "
            "It must be a tree (or prefix) of bools or multipliers shaped like the parameters, "
            "or a function from the parameters to one; None decays everything. "
            f"{inject_hint('mask')}"
        )
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None)
    return dict(zip(unboxed([key_path for key_path, _ in flat]), (v for _, v in flat), strict=True))


def check_multiplier(name: str, value: object) -> Multiplier:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, jax.Array):
        if value.shape != ():
            raise ValueError(
                f"{name} is an array of shape {value.shape}; it must be a bool or a scalar "
                "multiplier, one for the whole parameter."
            )
        return value
    if not checks.is_static(value):
        raise TypeError(
            f"{name} is {shown(value)}, a {type(value).__name__}; it must be a bool or a "
            "multiplier >= 0. Use False (or 0.0) for parameters that shall not decay."
        )
    checks.check_nonnegative(name, value, "A multiplier scales the decay; 0.0 turns it off.")
    return bool(value) if value in (0.0, 1.0) else float(value)


def _mismatch(uncovered: Sequence[str], unused: Sequence[str]) -> str:
    parts = ["mask does not have the structure of the parameters (or a prefix of it)."]
    if uncovered:
        parts.append(f"It says nothing about the parameters {listing(uncovered)}.")
    if unused:
        parts.append(f"It has entries that are no parameters: {listing(unused)}.")
    parts.append("Build it with jax.tree.map over the parameters, or use decay_rules.")
    return " ".join(parts)


def foreign_entries(entries: Iterable[Path], used: set[Path], empty: Sequence[Path]) -> list[Path]:
    """Mask entries that select nothing, but for those above, at or below an empty node."""
    nodes = set(empty)
    above = {path[:n] for path in empty for n in range(len(path))}
    return [
        path
        for path in entries
        if path not in used
        and path not in above
        and not any(path[:n] in nodes for n in range(len(path) + 1))
    ]


def _called(mask: Any, params: optax.Params) -> PyTree:
    try:
        return mask(params)
    except Exception as error:
        if not checks.is_ours(mask):  # those of this package say what they mean
            error.add_note(
                f"This was raised by mask={mask!r}, which is called with the tree of parameters "
                "and must return a tree (or prefix) of bools or multipliers."
            )
        raise


def _is_function(mask: Mask) -> bool:
    """A function of the parameters, and no module of bools that happens to be callable."""
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(mask))
    return callable(mask) and (is_leaf or isinstance(mask, jax.tree_util.Partial))
