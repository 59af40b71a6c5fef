"""All that we know of other people's optimizers: the names in their states, and their habits."""

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
