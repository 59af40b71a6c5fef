"""Weight histories in a migration: carried as a whole or begun anew."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from optax_decoupled._common import checks
from optax_decoupled._common.types import PyTree
from optax_decoupled._state import foreign

_BEGINS = (
    "The weight history begins anew: opt_state has none of these weights with this capacity. Its "
    "own is still in opt_state: read it with recorded_weight_dynamics before you drop that."
)
_ENDS = (
    "The weight history of opt_state is not carried over, because tx does not record one. To go on "
    "with it, migrate to optax.chain(tx, record_weight_dynamics())."
)


def with_histories(state: PyTree, opt_state: PyTree, count: Any) -> Any:
    """The new state with the weight histories of the old one, if they are of the same weights.

    Others begin anew, after so many updates, with a warning if the old state has one.
    """
    is_history = lambda node: type(node).__name__ == foreign.HISTORY
    old, new = (
        [node for node in jax.tree.leaves(tree, is_leaf=is_history) if is_history(node)]
        for tree in (opt_state, state)
    )
    shapes = [[[jnp.shape(x) for x in node] for node in nodes] for nodes in (old, new)]
    if shapes[0] != shapes[1] or not all(
        isinstance(b.labels, jax.core.Tracer) or bool(jnp.array_equal(a.labels, b.labels))
        for a, b in zip(old, new, strict=True)
    ):
        if old:
            checks.warn(_BEGINS if new else _ENDS)
        old = [node._replace(count=jnp.asarray(count, node.count.dtype)) for node in new]
    kept = iter(old)
    return jax.tree.map(lambda x: next(kept) if is_history(x) else x, state, is_leaf=is_history)
