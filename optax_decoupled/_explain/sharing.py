"""Equal leaves of repeated layers as one, so that what is done with them is compiled once."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._explain.sample import is_device_array

# An array or a number for each leaf of a tree.
Leaves = list[Any]
# Which of the distinct leaves each leaf of some trees is, and their structure.
Layout = tuple[tuple[int, ...], Any]

_INTEGER = re.compile(r"\d+")


class Sharing:
    """Finds equal leaves, if `active`.

    Only leaves of one place in repeated layers are compared, so that what is equal remains
    so from one update to the next.
    """

    def __init__(self, active: bool):
        self.active = active
        self._places: dict[Any, list[str]] = {}

    def distinct(self, *trees: Any) -> tuple[Layout, Leaves]:
        """How trees are made of distinct leaves, and these."""
        leaves, structure = jax.tree.flatten(trees)
        if structure not in self._places:
            paths, _ = jax.tree_util.tree_flatten_with_path(trees)
            self._places[structure] = [_INTEGER.sub("#", jax.tree_util.keystr(p)) for p, _ in paths]
        index, distinct = [], {}
        for place, x in zip(self._places[structure], leaves, strict=True):
            content = id(x)
            if self.active and is_device_array(x):
                content = x.shape, x.dtype, np.asarray(x).tobytes()
            index.append(distinct.setdefault((place, content), (len(distinct), x))[0])
        return (tuple(index), structure), [x for _, x in distinct.values()]

    def emptied(self, state: optax.OptState, kept: set[Any]) -> optax.OptState:
        """The state with its arrays 0 but those kept, equal where those of other states are."""
        zeros: dict[Any, np.ndarray] = {}

        def empty(path: Any, x: Any) -> Any:
            if path in kept or not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
                return x
            key = x.shape, x.dtype, None if self.active else path
            return zeros.setdefault(key, np.zeros(x.shape, x.dtype))

        return jax.tree_util.tree_map_with_path(empty, state)
