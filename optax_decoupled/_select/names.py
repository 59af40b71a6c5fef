"""Paths of parameters, the same for every container.

A parameter's path is the tuple of its keys as text, printed with '/' between them. Dicts,
FrozenDicts, dataclasses, tuples and Flax NNX states of the same names have the same paths:
the key of a box around an array, such as nnx.Variable's, is left out.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_decoupled._common.checks import brief
from optax_decoupled._common.dtypes import is_decayable
from optax_decoupled._common.types import KeyPath, Leaf, Path, PyTree

_INTEGER = re.compile(r"\d+")


def named_leaves(tree: PyTree) -> tuple[list[tuple[Path, Any]], list[Path]]:
    """The leaves of a tree with their paths, and the paths of its empty nodes.

    Empty nodes are None, ``optax.MaskedNode`` and containers without children.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_empty)
    paths = unboxed([key_path for key_path, _ in flat])
    nodes = list(zip(paths, (node for _, node in flat), strict=True))
    leaves = [(path, node) for path, node in nodes if not is_empty(node)]
    return leaves, [path for path, node in nodes if is_empty(node)]


def leaves_like(name: str, tree: PyTree, params: optax.Params) -> list[Leaf]:
    """For each leaf of params, the tree's leaf of the same path, which must have its shape."""
    entries = dict(named_leaves(tree)[0])
    leaves, _ = named_leaves(params)
    missing = ["/".join(path) for path, _ in leaves if path not in entries]
    if missing:
        raise ValueError(
            f"{name} does not have the structure of the parameters: it lacks {listing(missing)}. "
            "Pass a tree like the parameters."
        )
    found = [entries[path] for path, _ in leaves]
    _check_shapes(name, zip(found, leaves, strict=True), "Pass a tree like the parameters.")
    return found


def entries_like(name: str, tree: PyTree, params: optax.Params, way_out: str) -> list[Leaf]:
    """For each leaf of params, the entry of a tree of the same structure.

    It is None where the tree has none, as for a masked parameter. Entries of parameters that
    can decay must have the parameter's shape.
    """
    entries = entries_of(name, tree, params, way_out)
    entries = [None if isinstance(entry, optax.MaskedNode) else entry for entry in entries]
    rows = zip(entries, named_leaves(params)[0], strict=True)
    trained = (row for row in rows if row[0] is not None and is_decayable(row[1][1]))
    _check_shapes(name, trained, way_out)
    return entries


def entries_of(name: str, tree: PyTree, params: optax.Params, way_out: str) -> list[Leaf]:
    """For each leaf of params, the entry of a tree of the same structure; None is an entry."""
    structure = jax.tree.structure(params)
    try:
        return structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"{name} has the structure {brief(jax.tree.structure(tree))}; it must be that of "
            f"params, {brief(structure)}. {_difference(tree, params, error)} {way_out}"
        ) from None


def _difference(tree: PyTree, params: optax.Params, error: ValueError) -> str:
    """The paths that only one of the two has; if none, JAX's error without the arrays."""
    found, wanted = ({path for path, _ in named_leaves(each)[0]} for each in (tree, params))
    lacked, added = (
        listing(["/".join(path) for path in sorted(paths)])
        for paths in (wanted - found, found - wanted)
    )
    parts = [f"It lacks {lacked}."] if lacked else []
    parts += [f"It has besides {added}."] if added else []
    return " ".join(parts) or textwrap.shorten(str(error), 160, placeholder=" ...")


def _check_shapes(name: str, rows: Iterable[tuple[Leaf, tuple[Path, Leaf]]], way_out: str) -> None:
    for entry, (path, leaf) in rows:
        if np.shape(entry) != np.shape(leaf):
            raise ValueError(
                f"{name} at {'/'.join(path)!r} has shape {np.shape(entry)}; it must have the "
                f"parameter's shape {np.shape(leaf)}. {way_out}"
            )


def unboxed(key_paths: Sequence[KeyPath]) -> list[Path]:
    """Key paths as text, without the last key where that is the key of a box's content.

    A box is a node with one child, where the child

    - has no name, because the pytree class gives none;
    - or is an attribute with a usual name for contents (``value`` of nnx.Variable, ``array``);
    - or is an attribute whose name all leaves of this tree share, such as ``.raw``.
    """
    children: dict[KeyPath, set[Any]] = {}
    for keys in key_paths:
        for n in range(len(keys)):
            children.setdefault(keys[:n], set()).add(keys[n])
    lone = [len(keys) > 1 and len(children[keys[:-1]]) == 1 for keys in key_paths]
    last = {_key_name(keys[-1]) for keys in key_paths if keys}
    is_common = all(lone) and len(last) == 1 and len(key_paths) > 1
    contents = _CONTENTS | (last - _PARAMETERS if is_common else set())

    def is_content(key: Any) -> bool:
        named = isinstance(key, jax.tree_util.GetAttrKey)
        return key.name in contents if named else isinstance(key, jax.tree_util.FlattenedIndexKey)

    return [
        tuple(map(_key_name, keys[:-1] if only and is_content(keys[-1]) else keys))
        for keys, only in zip(key_paths, lone, strict=True)
    ]


# Names of attributes that hold a box's content, and names that only parameters have.
_CONTENTS = {"value", "array", "data", "raw_value", "tensor", "param"}
_PARAMETERS = {"weight", "kernel", "w", "embedding", "scale", "bias", "b"}


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def is_array(node: PyTree) -> bool:
    return isinstance(node, jax.Array | np.ndarray)


def is_empty(node: PyTree) -> bool:
    if is_array(node):
        return False
    structure = jax.tree.structure(node)
    return structure.num_leaves == 0 and structure.num_nodes == 1


def one_of_each_kind_first(paths: Sequence[str]) -> list[str]:
    """The same paths, first one for each last name; numbers in a name do not count."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(_INTEGER.sub("#", path.rpartition("/")[2]), path)
    return list(dict.fromkeys([*first.values(), *paths]))


def listing(paths: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(repr, paths[:limit])) + more
