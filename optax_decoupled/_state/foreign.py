"""Field names and conventions in the states of Optax and Flax."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_decoupled._common.types import PyTree

# Fields of Optax states that count steps. All counters of a state agree,
COUNTERS = frozenset({"count", "gradient_step"})
# except in these states, which reset theirs: such counters are carried like moments.
RECOUNTING = frozenset({"ReduceLROnPlateauState", "ApplyEvery", "WeightHistoryState"})
# The state of this package's recorder, which counts its own calls.
HISTORY = "WeightHistoryState"
# Fields that belong to an optimizer, not to a run: a migration keeps those of the target.
OWN = frozenset({"decay_rate", "hyperparams", "hyperparams_states"})
# Fields in which states add up gradients or updates over several steps.
ACCUMULATORS = frozenset({"acc_grads", "grad_acc"})
# Fields of optax.MultiSteps that hold nothing between two of its steps.
ACCUMULATION = frozenset({"mini_step", "acc_grads", "skip_state"})
# Fields of optax.apply_if_finite, which count the updates that it skipped.
REFUSALS = frozenset({"notfinite_count", "last_finite", "total_notfinite"})
# Fields that hold the state of an inner transform.
CONTAINERS = frozenset({"inner_state", "inner_states", "inner_opt_state"})


def nodes_with(state: PyTree, *fields: str) -> list[Any]:
    """The outermost states within a state that have one of these fields."""
    holds = lambda node: not set(fields).isdisjoint(getattr(node, "_fields", ()))
    return [node for node in jax.tree.leaves(state, is_leaf=holds) if holds(node)]


def accumulates(state: PyTree) -> bool:
    """Whether a state holds a wrapper that applies updates only now and then."""
    return bool(nodes_with(state, *ACCUMULATORS))


# Transforms that need several calls for one update: the fields that count or add up the calls.
_CYCLES = {"ApplyEvery": ("count", "grad_acc"), "SAMState": ("steps_since_sync",)}


def at_cycle_start(state: PyTree) -> Any:
    """The state with apply_every and SAM at the first of the calls that make one update."""
    is_cycle = lambda node: type(node).__name__ in _CYCLES

    def start(node: PyTree) -> Any:
        if not is_cycle(node):
            return node
        fields = {name: getattr(node, name) for name in _CYCLES[type(node).__name__]}
        return node._replace(**jax.tree.map(jnp.zeros_like, fields))

    return jax.tree.map(start, state, is_leaf=is_cycle)


def at_count(state: PyTree, count: Any) -> Any:
    """The state with every counter of the optimizer's own steps at this count."""
    return _counting(state, lambda path, x: jnp.full_like(x, count))


def at_count_of(state: PyTree, other: PyTree) -> Any:
    """The state with every counter at its value in another state."""
    leaves = dict(jax.tree_util.tree_flatten_with_path(other)[0])
    return _counting(state, leaves.get)


def _counting(state: PyTree, count: Callable[[Any, Any], Any]) -> Any:
    recounts = lambda node: type(node).__name__ in RECOUNTING

    def moved(path: Any, x: Any) -> Any:
        return count(path, x) if not recounts(x) and _name(path) in COUNTERS else x

    return jax.tree_util.tree_map_with_path(moved, state, is_leaf=recounts)


def makes_update(before: PyTree, after: PyTree) -> jax.Array:
    """Whether an accumulating optimizer took a step of its own between two states."""
    both = [jax.tree_util.tree_flatten_with_path(state)[0] for state in (before, after)]
    steps = [[x for path, x in leaves if _name(path) == "gradient_step"] for leaves in both]
    moved = [jnp.any(a != b) if jnp.ndim(a) else a != b for a, b in zip(*steps, strict=True)]
    return functools.reduce(jnp.logical_and, moved, jnp.array(True))


def _name(path: Any) -> str | None:
    """The name of the field at the end of a path, or None."""
    return getattr(path[-1], "name", None) if path else None


def is_perturbed(state: PyTree) -> bool:
    """Whether SAM has perturbed the parameters and will undo that in a later call."""
    return any(bool(node.steps_since_sync) for node in nodes_with(state, "steps_since_sync"))


def injected(state: PyTree) -> list[dict[str, Any]]:
    """The hyperparameters in the states of optax.inject_hyperparams."""
    found = [node.hyperparams for node in nodes_with(state, "hyperparams")]
    return [hyperparams for hyperparams in found if isinstance(hyperparams, dict)]


def without_histories(state: PyTree) -> Any:
    """The state with empty arrays for each weight history: its recorder then records nothing."""
    is_history = lambda node: type(node).__name__ == HISTORY
    empty = lambda node: jax.tree.map(lambda _: jnp.zeros(0, jnp.uint8), node)
    return jax.tree.map(lambda x: empty(x) if is_history(x) else x, state, is_leaf=is_history)


def without_boxes(tree: PyTree) -> Any:
    """Flax NNX variables as their arrays, as nnx.Optimizer passes them to tx.update."""
    is_box = lambda node: hasattr(node, "get_value") and hasattr(node, "get_metadata")
    return jax.tree.map(lambda x: x.get_value() if is_box(x) else x, tree, is_leaf=is_box)


def transform_and_state(optimizer: Any) -> tuple[Any, Any]:
    """The transform of an nnx.Optimizer and its state; of anything else itself and None."""
    inner = getattr(optimizer, "tx", None)
    if callable(getattr(optimizer, "init", None)) or not callable(getattr(inner, "init", None)):
        return optimizer, None
    return inner, getattr(optimizer, "opt_state", None)
