"""One cell of a sweep as pure functions."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.types import Scalar
from optax_decoupled.sweep._training import task_checks
from optax_decoupled.sweep._training.batches import batch_digests, first_batch
from optax_decoupled.sweep.task import Batch, MakeOptimizer, Metrics, ModelState, Task

# The data of a random key, as a NumPy array uint32[n].
KeyData = Any
# (learning rate, weight decay)
Hyper = tuple[Scalar, Scalar]

_Tree = TypeVar("_Tree")


class Carry(NamedTuple):
    """A cell between two steps. `diverged`: the first step whose loss was not finite, or -1."""

    hyper: Hyper
    params: optax.Params
    model_state: ModelState
    opt_state: optax.OptState
    diverged: jax.Array


# The fields of a carry that a step must not change in form, by their names in errors.
_UNCHANGED = {
    "The parameters that the optimizer updates": "params",
    "The model_state that task.loss returns": "model_state",
    "The optimizer's state": "opt_state",
}


@dataclass(frozen=True, eq=False)
class Cell:
    """Functions of a cell's hyperparameters, so that all cells run one compiled program."""

    task: Task
    make_optimizer: MakeOptimizer
    batch: Batch  # any one, for its shapes

    def start(self, hyper: Hyper, params: optax.Params, model_state: ModelState) -> Carry:
        opt_state = self._optimizer(hyper).init(params)
        return _strongly_typed(Carry(hyper, params, model_state, opt_state, jnp.int32(-1)))

    def step(self, carry: Carry, batch: Batch, t: Scalar, key_data: KeyData) -> Carry:
        hyper, params, model_state, opt_state, diverged = carry
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), t)
        checked_loss = lambda *arguments: task_checks.checked_loss(self.task.loss(*arguments))
        value_and_grad = jax.value_and_grad(checked_loss, has_aux=True)
        (loss, model_state), grads = value_and_grad(params, model_state, batch, key)
        update = self._optimizer(hyper).update
        updates, opt_state = update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        diverged = jnp.where((diverged < 0) & ~jnp.isfinite(loss), t, diverged)
        return _strongly_typed(Carry(hyper, params, model_state, opt_state, diverged))

    def steps(
        self, carry: Carry, stacked: Batch, count: Scalar, first: Scalar, key_data: KeyData
    ) -> Carry:
        """Steps on the first `count` of the stacked batches; one program serves every count."""

        def body(i: Scalar, carry: Carry) -> Carry:
            batch = jax.tree.map(lambda x: x[i], stacked)
            return self.step(carry, batch, first + i, key_data)

        return jax.lax.fori_loop(0, count, body, carry) if self.looped else body(0, carry)

    @functools.cached_property
    def program(self) -> str:
        """The text of a cell of one step. Tracing it checks the task and the optimizer."""
        key_data, one = seed_keys(0)[0], np.float32(1)
        return jax.jit(self._metrics).lower(key_data, self.batch, (one, one)).as_text()

    @property
    def looped(self) -> bool:
        """Whether `steps` loops over the stacked batches, or takes one step."""
        # On CPU, XLA runs a convolution inside a loop about ten times slower than outside.
        return jax.default_backend() != "cpu" or "stablehlo.convolution" not in self.program

    def fingerprint(self, seeds: Sequence[int]) -> str:
        """SHA-256 of the program with its constants, and of the batches.

        It is the same in every process. Python code that the program calls back is not covered.
        """
        digests = [digest for seed in seeds for digest in batch_digests(self.task, seed)]
        return hashlib.sha256("".join([self.program, *digests]).encode()).hexdigest()

    def _metrics(self, key_data: KeyData, batch: Batch, hyper: Hyper) -> Metrics:
        before = self.start(hyper, *initial_values(self.task.init, key_data))
        after = self.step(before, batch, 0, key_data)
        for name, field in _UNCHANGED.items():
            task_checks.check_unchanged(name, getattr(before, field), getattr(after, field))
        return task_checks.checked_metrics(self.task.evaluate(after.params, after.model_state))

    def _optimizer(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        return task_checks.checked_optimizer(self.make_optimizer(*hyper))


def trace_cell(task: Task, make_optimizer: MakeOptimizer, seed: int) -> Cell:
    """Checks the task and the optimizer by tracing a cell, without compiling it."""
    task_checks.check_make_optimizer(make_optimizer)
    cell = Cell(task, make_optimizer, first_batch(task, seed))
    _ = cell.program
    return cell


def initial_values(init: Callable[..., Any], key_data: KeyData) -> tuple[optax.Params, ModelState]:
    """Calls `init` with the key of these data."""
    return _strongly_typed(task_checks.checked_init(init(jax.random.wrap_key_data(key_data))))


def seed_keys(seed: int) -> np.ndarray:
    """The data of the keys of init and loss. Every process may pass NumPy arrays to `jit`."""
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed))))


def _strongly_typed(tree: _Tree) -> _Tree:
    """Removes weak types, because of which the second call would compile another program."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)
