"""What a sweep trains: a record of functions, and the names of what they pass around."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import shown
from optax_decoupled._common.types import Scalar

# A tree of arrays that the forward pass updates, such as batch statistics, or ().
ModelState = Any
# A tree of arrays of numbers.
Batch = Any
# name -> a real number, of which less is better.
Metrics = dict[str, jax.Array]
# (learning rate, weight decay) -> optimizer; both are float32 tracers.
MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]


@dataclass(frozen=True)
class Task:
    """What is trained and measured; a sweep adds the optimizer.

    Attributes:
      init: ``key -> (params, model_state)``; ``model_state`` is what the forward pass
        updates, such as batch statistics, or ``()``.
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
                    f"{name}={shown(value)} must be a function; Task's docstring has its form."
                )
        checks.check_whole("steps", self.steps, "It is the number of optimizer steps per cell.")
