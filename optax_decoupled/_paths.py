"""How a parameter is named: one way for every container.

A parameter's path is the tuple of its keys as text, joined by '/' for people. It
is the same for dicts, FrozenDicts, dataclasses, tuples and Flax NNX states,
whose `Variable` boxes (a lone attribute `value`) leave no trace in the path.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from optax_decoupled._types import Path, PyTree


def named_leaves(tree: PyTree) -> tuple[list[tuple[Path, Any]], list[Path]]:
    """The leaves of a tree with their paths, and the paths of its empty nodes.

    Empty nodes are None, ``optax.MaskedNode`` and containers without children.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_empty)
    paths = unboxed([key_path for key_path, _ in flat])
    nodes = list(zip(paths, (node for _, node in flat), strict=True))
    leaves = [(path, node) for path, node in nodes if not is_empty(node)]
    return leaves, [path for path, node in nodes if is_empty(node)]


def unboxed(key_paths: Sequence[tuple[Any, ...]]) -> list[Path]:
    """Key paths as text, without the `value` attribute of boxes such as nnx.Variable.

    A box is a node whose only child is an attribute named `value`.
    """
    children: dict[tuple[Any, ...], int] = {}
    for keys in key_paths:
        children[keys[:-1]] = children.get(keys[:-1], 0) + 1
    paths = []
    for keys in key_paths:
        boxed = (
            len(keys) > 1
            and isinstance(keys[-1], jax.tree_util.GetAttrKey)
            and keys[-1].name == "value"
            and children[keys[:-1]] == 1
        )
        paths.append(tuple(map(_key_name, keys[:-1] if boxed else keys)))
    return paths


def _key_name(key: object) -> str:
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


def listing(paths: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return ", ".join(map(repr, paths[:limit])) + more
