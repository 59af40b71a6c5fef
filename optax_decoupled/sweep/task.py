"""A task: the functions that a sweep trains, and the types of their arguments."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.types import Scalar

# A tree of arrays that the forward pass updates, such as batch statistics; or ().
ModelState = Any
# A tree of arrays of numbers.
Batch = Any
# Maps names to real scalars; lower is better.
Metrics = dict[str, jax.Array]
# (learning rate, weight decay) -> optimizer; both are float32 tracers.
MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Task:
    """A model, its data and its metrics; ``sweep.run`` adds the optimizer.

    Attributes:
      init: ``key -> (params, model_state)``. The forward pass updates ``model_state``, such
        as batch statistics; without any it is ``()``.
      loss: ``(params, model_state, batch, key) -> (scalar, model_state)``. The key is new
        at every step, for dropout and the like.
      batches: ``seed -> iterable`` of at least ``steps`` batches: trees of arrays, all of
        the same shapes. Every cell of a seed sees the same batches. Indices into data that
        ``loss`` holds are the cheapest batches.
      evaluate: ``(params, model_state) -> {"error": scalar, ...}``, after the last step.
      steps: optimizer steps per cell.
    """

    init: Callable[[jax.Array], tuple[Any, ModelState]]
    loss: Callable[[Any, ModelState, Batch, jax.Array], tuple[Scalar, ModelState]]
    batches: Callable[[int], Iterable[Batch]]
    evaluate: Callable[[Any, ModelState], dict[str, Any]]
    steps: int

    def __post_init__(self) -> None:
        for name in ("init", "loss", "batches", "evaluate"):
            value = getattr(self, name)
            if not callable(value):
                raise TypeError(
                    f"{name}={brief(value)} must be a function, as in Task's docstring."
                )
        checks.check_whole("steps", self.steps, "It is the number of optimizer steps per cell.")
