"""All that we know of other people's optimizers: the names in their states, and their habits."""

import traceback
from typing import Any

import jax
import jax.numpy as jnp

# optax.inject_hyperparams takes every callable for a schedule and calls it with the step.
INJECT_HINT = (
    "If it came through optax.inject_hyperparams, which takes every callable for a "
    'schedule, pass static_args=("mask",) to it.'
)

# Fields of Optax states that count steps. All of a state's counters agree,
COUNTERS = frozenset({"count", "gradient_step"})
# but for those of states that start theirs anew: they are carried like moments.
RECOUNTING = frozenset({"ReduceLROnPlateauState", "ApplyEvery"})
# Fields that belong to an optimizer rather than to a run: the target's own are kept.
OWN = frozenset({"decay_rate", "hyperparams", "hyperparams_states"})
# Fields of optax.MultiSteps that mean nothing between two of its steps.
ACCUMULATION = frozenset({"mini_step", "acc_grads", "skip_state"})
# Fields that hold the state of an inner transform.
CONTAINERS = frozenset({"inner_state", "inner_states", "inner_opt_state"})

# Transforms whose state holds what happened since their last update: (field, name or None).
_CYCLES = {"ApplyEvery": ("count", "grad_acc"), "SAMState": ("steps_since_sync",)}


def at_cycle_start(state: Any) -> Any:
    """The state with apply_every and SAM at the first of the calls that make one update."""

    def is_cycle(node: Any) -> bool:
        return type(node).__name__ in _CYCLES

    def start(node: Any) -> Any:
        if not is_cycle(node):
            return node
        fields = {name: getattr(node, name) for name in _CYCLES[type(node).__name__]}
        return node._replace(**jax.tree.map(jnp.zeros_like, fields))

    return jax.tree.map(start, state, is_leaf=is_cycle)


def is_perturbed(state: Any) -> bool:
    """Whether SAM has moved the parameters away, to come back in a later call."""

    def is_sam(node: Any) -> bool:
        return hasattr(node, "steps_since_sync")

    nodes = jax.tree.leaves(state, is_leaf=is_sam)
    return any(is_sam(node) and bool(node.steps_since_sync) for node in nodes)


def injected(state: Any) -> list[dict[str, Any]]:
    """The hyperparameters in the states of optax.inject_hyperparams."""

    def is_injected(node: Any) -> bool:
        return isinstance(getattr(node, "hyperparams", None), dict)

    nodes = jax.tree.leaves(state, is_leaf=is_injected)
    return [node.hyperparams for node in nodes if is_injected(node)]


def came_through_injection(error: BaseException) -> bool:
    """Whether an error was raised inside optax.inject_hyperparams."""
    frames = traceback.walk_tb(error.__traceback__)
    return any("inject_hyperparams" in frame.f_code.co_qualname for frame, _ in frames)


def without_boxes(tree: Any) -> Any:
    """Flax NNX variables as their arrays, as nnx.Optimizer passes them to tx.update."""

    def is_box(node: Any) -> bool:
        return hasattr(node, "get_value") and hasattr(node, "get_metadata")

    return jax.tree.map(lambda x: x.get_value() if is_box(x) else x, tree, is_leaf=is_box)


def transform_and_state(optimizer: Any) -> tuple[Any, Any]:
    """The transform of an nnx.Optimizer and its state; of anything else itself and None."""
    inner = getattr(optimizer, "tx", None)
    if callable(getattr(optimizer, "init", None)) or not callable(getattr(inner, "init", None)):
        return optimizer, None
    return inner, getattr(optimizer, "opt_state", None)
