"""All that we know of other people's optimizers: the names in their states, and their habits."""

import jax

from optax_decoupled._types import PyTree


def inject_hint(argument: str) -> str:
    return (
        "If it came through optax.inject_hyperparams, which takes every callable for a "
        f'schedule, pass static_args=("{argument}",) to it.'
    )


# Fields of Optax states that count steps. All of a state's counters agree,
COUNTERS = frozenset({"count", "gradient_step"})
# but for those of states that start theirs anew: they are carried like moments.
RECOUNTING = frozenset({"ReduceLROnPlateauState", "ApplyEvery"})
# Fields that belong to an optimizer rather than to a run: the target's own are kept.
OWN = frozenset({"decay_rate", "hyperparams", "hyperparams_states"})
# Fields in which states add up gradients or updates over several steps.
ACCUMULATORS = frozenset({"acc_grads", "grad_acc"})
# Fields of optax.MultiSteps that mean nothing between two of its steps.
ACCUMULATION = frozenset({"mini_step", "acc_grads", "skip_state"})
# Fields that hold the state of an inner transform.
CONTAINERS = frozenset({"inner_state", "inner_states", "inner_opt_state"})


def accumulates(state: PyTree) -> bool:
    """Whether a state holds a wrapper that applies updates only now and then."""
    holds = lambda node: not ACCUMULATORS.isdisjoint(getattr(node, "_fields", ()))
    return any(map(holds, jax.tree.leaves(state, is_leaf=holds)))
