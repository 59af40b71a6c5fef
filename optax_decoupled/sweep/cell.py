"""One cell of a sweep as pure functions, traced before anything is compiled or trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from optax_decoupled._types import Scalar
from optax_decoupled.sweep import answers
from optax_decoupled.sweep.batches import fingerprints, first_batch
from optax_decoupled.sweep.jaxprs import describe, primitives
from optax_decoupled.sweep.task import Batch, MakeOptimizer, Metrics, ModelState, Task

# The data of a random key: uint32[n], on the host.
KeyData = Any
Init = Callable[[jax.Array], tuple[optax.Params, ModelState]]

_Tree = TypeVar("_Tree")


class Carry(NamedTuple):
    """What a step changes. `diverged`: the first step whose loss was not finite, or -1."""

    params: optax.Params
    model_state: ModelState
    opt_state: optax.OptState
    diverged: jax.Array


@dataclass(frozen=True)
class Cell:
    """One cell as pure functions, and what tracing them told.

    Attributes:
      task: what is trained.
      start: (params, model state, learning rate, weight decay) -> carry.
      step: (carry, batch, t, key data, learning rate, weight decay) -> carry.
      batch: the first batch.
      traced: a whole cell of one step.
    """

    task: Task
    start: Callable[..., Carry]
    step: Callable[..., Carry]
    batch: Batch
    traced: core.Jaxpr

    @property
    def convolves(self) -> bool:
        return "conv_general_dilated" in primitives(self.traced)

    def fingerprint(self, seeds: Sequence[int]) -> str:
        """Of the computation, the arrays it holds and the batches; the same in every process."""
        streams = [list(fingerprints(self.task, seed)) for seed in seeds]
        return describe([self.traced, streams])


def trace_cell(task: Task, make_optimizer: MakeOptimizer, seed: int) -> Cell:
    """Traces a whole cell without compiling, which refuses tasks that do not fit together."""
    answers.check_factory(make_optimizer)

    def start(
        params: optax.Params, model_state: ModelState, learning_rate: Scalar, weight_decay: Scalar
    ) -> Carry:
        optimizer = answers.checked_optimizer(make_optimizer(learning_rate, weight_decay))
        return _strongly_typed(Carry(params, model_state, optimizer.init(params), jnp.int32(-1)))

    def loss_of(*arguments: Any) -> tuple[jax.Array, ModelState]:
        return answers.checked_loss(task.loss(*arguments))

    def step(
        carry: Carry,
        batch: Batch,
        t: Scalar,
        key_data: KeyData,
        learning_rate: Scalar,
        weight_decay: Scalar,
    ) -> Carry:
        params, model_state, opt_state, diverged = carry
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), t)
        value_and_grad = jax.value_and_grad(loss_of, has_aux=True)
        (loss, model_state), grads = value_and_grad(params, model_state, batch, key)
        optimizer = answers.checked_optimizer(make_optimizer(learning_rate, weight_decay))
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        diverged = jnp.where((diverged < 0) & ~jnp.isfinite(loss), t, diverged)
        return _strongly_typed(Carry(params, model_state, opt_state, diverged))

    def cell(
        key_data: KeyData, batch: Batch, learning_rate: Scalar, weight_decay: Scalar
    ) -> Metrics:
        params, model_state = initial(task.init, key_data)
        before = start(params, model_state, learning_rate, weight_decay)
        after = step(before, batch, 0, key_data, learning_rate, weight_decay)
        answers.check_unchanged(_called(before), _called(after))
        return answers.checked_metrics(task.evaluate(after.params, after.model_state))

    batch = first_batch(task, seed)
    traced = jax.make_jaxpr(cell)(seed_keys(seed)[0], batch, np.float32(1), np.float32(1))
    return Cell(task, start, step, batch, traced)


def initial(init: Init, key_data: KeyData) -> tuple[optax.Params, ModelState]:
    """What `init` returns, from the data of a key."""
    return _strongly_typed(answers.checked_init(init(jax.random.wrap_key_data(key_data))))


def seed_keys(seed: int) -> np.ndarray:
    """The key data of init and loss, as host arrays, which every process may pass to `jit`."""
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed))))


def _called(carry: Carry) -> dict[str, Any]:
    """The trees of a carry, as messages call them."""
    return {
        "The parameters that the optimizer updates": carry.params,
        "The model_state that task.loss returns": carry.model_state,
        "The optimizer's state": carry.opt_state,
    }


def _strongly_typed(tree: _Tree) -> _Tree:
    """Without weak types, which would compile a second program for the second call."""

    def strong(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x

    return jax.tree.map(strong, tree)
