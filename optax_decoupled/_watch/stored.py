"""The tables of `record_weight_dynamics`, found in a state or checkpoint and read on the host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_decoupled._common.types import PyTree
from optax_decoupled._state import foreign
from optax_decoupled._watch.recorder import WeightHistoryState
from optax_decoupled._watch.verdict import Averages


def tables(opt_state: PyTree) -> list[Table]:
    """The table of each recorder in a state."""
    optimizer, own_state = foreign.transform_and_state(opt_state)
    tree = foreign.without_boxes(optimizer if own_state is None else own_state)
    return [Table(node) for node in history_nodes(tree)]


class Place(NamedTuple):
    """Where a weight is: the path and shape of its array, and its index over the leading axes."""

    path: str
    array: jax.ShapeDtypeStruct
    indices: tuple[int, ...]


def places(found: list[Table]) -> dict[str, Place]:
    """The place of each weight, by its path."""
    return {
        _name(path, indices): Place(path, jax.ShapeDtypeStruct(tuple(shape), dtype), indices)
        for table in found
        for path, shape, dtype, axes in table.labels
        for indices in np.ndindex(*shape[:axes])
    }


def history_nodes(tree: PyTree) -> list[Mapping[str, Any]]:
    """The fields of each recorder's state, also where a checkpoint made a dict of it."""
    fields = set(WeightHistoryState._fields)

    def as_mapping(node: Any) -> Any:
        return node._asdict() if hasattr(node, "_asdict") else node

    def is_history(node: Any) -> bool:
        mapping = as_mapping(node)
        return isinstance(mapping, Mapping) and fields <= set(mapping)

    nodes = jax.tree.leaves(tree, is_leaf=is_history)
    return [as_mapping(node) for node in nodes if is_history(node)]


class Table:
    """One recorder's state on the host."""

    def __init__(self, state: Mapping[str, Any]):
        if np.ndim(_on_host(state["count"])):
            raise ValueError(
                f"opt_state holds a stack of {len(_on_host(state['count']))} weight histories, as "
                "jax.vmap makes it. Pass one: jax.tree.map(lambda x: x[0], opt_state)."
            )
        size, stride, count, pending = (
            int(_on_host(state[name])) for name in ("size", "stride", "count", "pending")
        )
        last = count - 1 - max(pending, 0)
        self.interval = stride
        self.steps = last - stride * np.arange(size - 1, -1, -1)
        self.values = np.asarray(_on_host(state["table"]), float)[:size]
        self.labels = json.loads(bytes(_on_host(state["labels"]).astype(np.uint8)).decode())

    def weights(self) -> Iterator[tuple[str, tuple[int, ...], str, Averages]]:
        """The path, shape, dtype and averages of each weight."""
        number = 0
        for path, shape, dtype, axes in self.labels:
            for indices in np.ndindex(*shape[:axes]):
                averages = Averages(*self.values[:, number].T)
                yield _name(path, indices), tuple(shape[axes:]), dtype, averages
                number += 1


def _name(path: str, indices: tuple[int, ...]) -> str:
    """Of an array's slice, or of an array that is one weight."""
    return path + (f"[{','.join(map(str, indices))}]" if indices else "")


def _on_host(x: Any) -> np.ndarray:
    while isinstance(x, Mapping) and len(x) == 1:  # a box of Flax NNX, restored as a dict
        (x,) = x.values()
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = x.addressable_data(0)  # replicated over the processes
    return np.asarray(x)
