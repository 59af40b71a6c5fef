"""One cell of a sweep as pure functions, traced before anything is compiled or trained."""

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
from optax_decoupled.sweep._training import answers
from optax_decoupled.sweep._training.batches import fingerprints, first_batch
from optax_decoupled.sweep.task import Batch, MakeOptimizer, Metrics, ModelState, Task

# The data of a random key: uint32[n], on the host.
KeyData = Any
# Learning rate and weight decay.
Hyper = tuple[Scalar, Scalar]

_Tree = TypeVar("_Tree")


class Carry(NamedTuple):
    """A cell between two steps. `diverged`: the first one whose loss was not finite, or -1."""

    hyper: Hyper
    params: optax.Params
    model_state: ModelState
    opt_state: optax.OptState
    diverged: jax.Array


# The trees of a carry, as messages call them.
_CALLED = {
    "The parameters that the optimizer updates": "params",
    "The model_state that task.loss returns": "model_state",
    "The optimizer's state": "opt_state",
}


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell as pure functions; its hyperparameters are arguments."""

    task: Task
    make_optimizer: MakeOptimizer
    seed: int  # the first one
    batch: Batch  # its first batch

    def start(self, hyper: Hyper, params: optax.Params, model_state: ModelState) -> Carry:
        opt_state = self._optimizer(hyper).init(params)
        return _strongly_typed(Carry(hyper, params, model_state, opt_state, jnp.int32(-1)))

    def step(self, carry: Carry, batch: Batch, t: Scalar, key_data: KeyData) -> Carry:
        hyper, params, model_state, opt_state, diverged = carry
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), t)
        checked = lambda *arguments: answers.checked_loss(self.task.loss(*arguments))
        value_and_grad = jax.value_and_grad(checked, has_aux=True)
        (loss, model_state), grads = value_and_grad(params, model_state, batch, key)
        update = self._optimizer(hyper).update
        updates, opt_state = update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        diverged = jnp.where((diverged < 0) & ~jnp.isfinite(loss), t, diverged)
        return _strongly_typed(Carry(hyper, params, model_state, opt_state, diverged))

    def steps(
        self, carry: Carry, stacked: Batch, count: Scalar, first: Scalar, key_data: KeyData
    ) -> Carry:
        """The first `count` of the stacked batches; any count runs the same program."""

        def body(i: Scalar, carry: Carry) -> Carry:
            batch = jax.tree.map(lambda x: x[i], stacked)
            return self.step(carry, batch, first + i, key_data)

        return jax.lax.fori_loop(0, count, body, carry) if self.looped else body(0, carry)

    @functools.cached_property
    def program(self) -> str:
        """A whole cell of one step, as text. Tasks that do not fit together are refused here."""
        key_data, one = seed_keys(self.seed)[0], np.float32(1)
        return jax.jit(self._whole).lower(key_data, self.batch, (one, one)).as_text()

    @property
    def looped(self) -> bool:
        """Whether a call makes many steps, or one."""
        # On CPU, XLA runs a convolution inside a loop about ten times slower than outside.
        return jax.default_backend() != "cpu" or "stablehlo.convolution" not in self.program

    def fingerprint(self, seeds: Sequence[int]) -> str:
        """Of the program, the arrays it holds and the batches; the same in every process.

        What Python does in a callback from the program does not count.
        """
        streams = [fingerprint for seed in seeds for fingerprint in fingerprints(self.task, seed)]
        return hashlib.sha256("".join([self.program, *streams]).encode()).hexdigest()

    def _whole(self, key_data: KeyData, batch: Batch, hyper: Hyper) -> Metrics:
        before = self.start(hyper, *initial(self.task.init, key_data))
        after = self.step(before, batch, 0, key_data)
        for name, field in _CALLED.items():
            answers.check_unchanged(name, getattr(before, field), getattr(after, field))
        return answers.checked_metrics(self.task.evaluate(after.params, after.model_state))

    def _optimizer(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        return answers.checked_optimizer(self.make_optimizer(*hyper))


def trace_cell(task: Task, make_optimizer: MakeOptimizer, seed: int) -> Cell:
    """A cell that was traced without compiling, which refuses what does not fit together."""
    answers.check_factory(make_optimizer)
    cell = Cell(task, make_optimizer, seed, first_batch(task, seed))
    _ = cell.program
    return cell


def initial(init: Callable[..., Any], key_data: KeyData) -> tuple[optax.Params, ModelState]:
    """What `init` returns, from the data of a key."""
    return _strongly_typed(answers.checked_init(init(jax.random.wrap_key_data(key_data))))


def seed_keys(seed: int) -> np.ndarray:
    """The key data of init and loss, as host arrays, which every process may pass to `jit`."""
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed))))


def _strongly_typed(tree: _Tree) -> _Tree:
    """Without weak types, which would compile a second program for the second call."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tree)
