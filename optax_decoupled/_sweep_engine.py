"""How a sweep trains: one cell as a function, compiled once for a group of cells.

All arrays of a group have a leading axis of `width` cells. On each device a group of one
cell runs without `vmap`, so that it does what a hand-written loop does; larger ones run
under `vmap`, and a mesh splits the axis over its devices under `shard_map`.
"""

import concurrent.futures
import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from optax_decoupled.sweep import Task

# The step of a small network takes less time than a call from Python: a call makes up to
# so many steps, of batches that take up to so many bytes.
_STEPS_PER_CALL = 50
_BYTES_PER_CALL = 64 * 2**20
# Of the batches of a seed, so many tell one sweep from another.
_BYTES_OF_FINGERPRINT = 4 * 2**20

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]
Results = tuple[dict[str, np.ndarray], np.ndarray]


class Group(NamedTuple):
    """Cells of one seed that are trained together, and their indices in [L, W, S]."""

    seed: int
    learning_rates: np.ndarray
    weight_decays: np.ndarray
    cells: tuple[np.ndarray, np.ndarray, np.ndarray]


class Carry(NamedTuple):
    """What a step changes. `diverged`: the first step whose loss was not finite, or -1."""

    params: Any
    model_state: Any
    opt_state: Any
    diverged: jax.Array


@dataclass(frozen=True)
class Cell:
    """One cell as pure functions, and what tracing them told.

    Attributes:
      task: what is trained.
      start: (params, model state, learning rate, weight decay) -> carry.
      step: (carry, batch, t, key data, learning rate, weight decay) -> carry.
      batch: the first batch.
      traced: a whole cell of one step, a closed jaxpr.
    """

    task: "Task"
    start: Callable[..., Carry]
    step: Callable[..., Carry]
    batch: Any
    traced: Any

    @property
    def convolves(self) -> bool:
        return "conv_general_dilated" in str(self.traced)

    def fingerprint(self, seeds: Sequence[int]) -> str:
        """Of the computation, the arrays it holds and the batches; the same in every process."""
        text = re.sub(r"0x[0-9a-f]+", "", str(self.traced))  # without addresses of functions
        streams = [_first_batches(self.task, seed) for seed in seeds]
        return _digest(text, itertools.chain(_constants(self.traced), *streams))


def trace_cell(task: "Task", make_optimizer: MakeOptimizer, seed: int) -> Cell:
    """Traces a whole cell without compiling, which refuses tasks that do not fit together."""

    def start(params: Any, model_state: Any, learning_rate: Any, weight_decay: Any) -> Carry:
        opt_state = make_optimizer(learning_rate, weight_decay).init(params)
        return _strongly_typed(Carry(params, model_state, opt_state, jnp.int32(-1)))

    def step(
        carry: Carry, batch: Any, t: Any, key_data: Any, learning_rate: Any, weight_decay: Any
    ) -> Carry:
        params, model_state, opt_state, diverged = carry
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), t)
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
        (loss, model_state), grads = value_and_grad(params, model_state, batch, key)
        optimizer = make_optimizer(learning_rate, weight_decay)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        diverged = jnp.where((diverged < 0) & ~jnp.isfinite(loss), t, diverged)
        return _strongly_typed(Carry(params, model_state, opt_state, diverged))

    def cell(key_data: Any, batch: Any, learning_rate: Any, weight_decay: Any) -> Any:
        params, model_state = _init(task, key_data)
        carry = start(params, model_state, learning_rate, weight_decay)
        carry = step(carry, batch, 0, key_data, learning_rate, weight_decay)
        return _checked(task.evaluate(carry.params, carry.model_state))

    batch = _first_batch(task, seed)
    traced = jax.make_jaxpr(cell)(_keys(seed)[0], batch, np.float32(1), np.float32(1))
    return Cell(task, start, step, batch, traced)


@dataclass(frozen=True)
class Trainer:
    """The compiled functions of a sweep, and the loop that feeds them.

    Attributes:
      task: what is trained.
      init: key data -> (params, model state), the same for every cell.
      start: (params, model state, learning rates, weight decays) -> carry.
      advance: (carry, batches, how many, first step, key data, learning rates, decays)
        -> carry.
      finish: (params, model state, diverged) -> (metrics, diverged), whole on every process.
      per_cell: puts a host array of one value per cell on the devices.
      width: cells per group.
      steps_per_call: the length of the stacked batches that `advance` takes.
      workers: threads, each of which drives a group of its own.
      signature: structure, shapes and dtypes of the stacked batches.
    """

    task: "Task"
    init: Callable[..., Any]
    start: Callable[..., Carry]
    advance: Callable[..., Carry]
    finish: Callable[..., Any]
    per_cell: Callable[[np.ndarray], Any]
    width: int
    steps_per_call: int
    workers: int
    signature: Any

    def train_all(self, groups: Sequence[Group]) -> Iterator[tuple[Group, Results]]:
        """Trains groups and yields each as it finishes. Close it to cancel the rest."""
        if self.workers == 1:  # in order, as all processes of a mesh must
            yield from ((group, self.train(group)) for group in groups)
            return
        pool = concurrent.futures.ThreadPoolExecutor(self.workers)
        if pool.submit(_settings).result() != _settings():  # `with jax.enable_x64(True)`, say
            pool.shutdown()
            yield from replace(self, workers=1).train_all(groups)
            return
        try:
            pending = {pool.submit(self.train, group): group for group in groups}
            for future in concurrent.futures.as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def train(self, group: Group) -> Results:
        """Metrics and the step of divergence (or -1) of each cell of a group."""
        missing = (0, self.width - len(group.learning_rates))  # filled with the last cell
        rates, decays = (
            self.per_cell(np.pad(values.astype(np.float32), missing, "edge"))
            for values in (group.learning_rates, group.weight_decays)
        )
        init_key, loss_key = _keys(group.seed)
        carry = self.start(*self.init(init_key), rates, decays)
        for first, count, batches in self._calls(group.seed):
            carry = self.advance(carry, batches, count, first, loss_key, rates, decays)
        metrics, diverged = jax.device_get(
            self.finish(carry.params, carry.model_state, carry.diverged)
        )
        finite = np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        diverged = np.where((diverged < 0) & ~finite, self.task.steps, diverged)
        metrics = {name: np.where(diverged < 0, x, np.nan) for name, x in metrics.items()}
        cells = slice(len(group.learning_rates))
        return {name: values[cells] for name, values in metrics.items()}, diverged[cells]

    def _calls(self, seed: int) -> Iterator[tuple[int, int, Any]]:
        """(first step, number of steps, stacked batches) for each call of `advance`."""
        stream = itertools.islice(self.task.batches(seed), self.task.steps)
        first = 0
        while chunk := list(itertools.islice(stream, self.steps_per_call)):
            yield first, len(chunk), self._stack(chunk, seed, first)
            first += len(chunk)
        if first < self.task.steps:
            raise ValueError(
                f"task.batches({seed}) ended after {first} batches; it must yield one for each of "
                f"the steps={self.task.steps}. Repeat the data over epochs, or lower steps."
            )

    def _stack(self, chunk: list[Any], seed: int, first: int) -> Any:
        filled = chunk + chunk[-1:] * (self.steps_per_call - len(chunk))
        try:
            batches = jax.tree.map(lambda *x: np.stack(x), *filled)
            if _signature(batches) == self.signature:
                return batches
        except ValueError:
            pass  # other shapes or another structure
        raise ValueError(
            f"A batch of task.batches({seed}), one of {first} to {first + len(chunk) - 1}, differs "
            "from the first batch in structure, shape or dtype; all must be alike. Drop or pad an "
            "incomplete batch."
        )


def make_trainer(cell: Cell, width: int, mesh: Mesh | None) -> Trainer:
    """Chooses how a group is driven on this backend; it compiles when it is first called.

    Args:
      cell: what is trained.
      width: cells per group, a multiple of the number of devices of the mesh.
      mesh: the devices that share a group, or None for the default device.
    """
    on_cpu = jax.default_backend() == "cpu"
    # On CPU, XLA runs a convolution inside a loop about ten times slower than outside.
    looped = not (on_cpu and cell.convolves)
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(cell.batch))
    fitting = min(_STEPS_PER_CALL, cell.task.steps, _BYTES_PER_CALL // max(1, size))
    steps_per_call = max(1, fitting) if looped else 1
    advance = _many(cell.step) if looped else _one(cell.step)

    over = functools.partial(_over_cells, width=width, mesh=mesh)
    replicated, per_cell = _placements(mesh)
    return Trainer(
        task=cell.task,
        init=cell.task._jitted(_init, lambda f: jax.jit(f, out_shardings=replicated), mesh),
        start=jax.jit(over(cell.start, (None, None, 0, 0))),
        advance=jax.jit(over(advance, (0, None, None, None, None, 0, 0)), donate_argnums=0),
        finish=cell.task._jitted(
            _finish, lambda f: jax.jit(over(f, (0, 0, 0)), out_shardings=replicated), width, mesh
        ),
        per_cell=per_cell,
        width=width,
        steps_per_call=steps_per_call,
        workers=_cores() if on_cpu and looped and mesh is None else 1,
        signature=_signature(jax.tree.map(lambda x: np.stack([x] * steps_per_call), cell.batch)),
    )


def _over_cells(
    function: Callable[..., Any], axes: tuple[int | None, ...], *, width: int, mesh: Mesh | None
) -> Callable[..., Any]:
    """`function` of one cell as one of `width` cells, split over the mesh.

    Args:
      function: its results are per cell.
      axes: for each argument 0 if it has a value per cell, None if cells share it.
      width: cells.
      mesh: devices, or None.
    """
    if width > (mesh.size if mesh else 1):
        mapped = jax.vmap(function, in_axes=axes)
    else:

        def mapped(*arguments: Any) -> Any:
            own = [
                x if axis is None else jax.tree.map(lambda a: a[0], x)
                for x, axis in zip(arguments, axes, strict=True)
            ]
            return jax.tree.map(lambda a: jnp.asarray(a)[None], function(*own))

    if mesh is None:
        return mapped
    cells = PartitionSpec(mesh.axis_names)
    specs = tuple(PartitionSpec() if axis is None else cells for axis in axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=cells, check_vma=False)


def _placements(mesh: Mesh | None) -> tuple[Any, Callable[[np.ndarray], Any]]:
    """The sharding of what all cells share, and a function that distributes values per cell."""
    if mesh is None:
        return None, lambda values: values
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def per_cell(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return NamedSharding(mesh, PartitionSpec()), per_cell


def _many(step: Callable[..., Carry]) -> Callable[..., Carry]:
    """`step` over the first `count` of the stacked batches; any count runs the same program."""

    def advance(carry: Carry, batches: Any, count: Any, first: Any, *rest: Any) -> Carry:
        def body(i: Any, carry: Carry) -> Carry:
            batch = jax.tree.map(lambda x: x[i], batches)
            return step(carry, batch, first + i, *rest)

        return jax.lax.fori_loop(0, count, body, carry)

    return advance


def _one(step: Callable[..., Carry]) -> Callable[..., Carry]:
    """`step` on a stack of one batch, without a loop."""

    def advance(carry: Carry, batches: Any, count: Any, first: Any, *rest: Any) -> Carry:
        del count  # 1
        return step(carry, jax.tree.map(lambda x: x[0], batches), first, *rest)

    return advance


def _init(task: "Task", key_data: Any) -> Any:
    params, model_state = task.init(jax.random.wrap_key_data(key_data))
    return _strongly_typed((params, model_state))


def _finish(task: "Task", params: Any, model_state: Any, diverged: Any) -> Any:
    return _checked(task.evaluate(params, model_state)), diverged


def _keys(seed: int) -> np.ndarray:
    """The key data of init and loss, as host arrays, which every process may pass to `jit`."""
    return np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed))))


def _strongly_typed(tree: Any) -> Any:
    """Without weak types, which would compile a second program for the second call."""

    def strong(x: Any) -> Any:
        x = jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x

    return jax.tree.map(strong, tree)


def _settings() -> tuple[Any, ...]:
    """What JAX does in this thread: contexts do not reach other threads."""
    values = tuple(getattr(jax.config, name, None) for name in jax.config.values)
    return (*values, jax.sharding.get_abstract_mesh())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_batch(task: "Task", seed: int) -> Any:
    """A seed's first batch, of numbers and the same at every call."""
    missing = object()
    batch, again = (next(iter(task.batches(seed)), missing) for _ in range(2))
    if batch is missing:
        raise ValueError(
            f"task.batches({seed}) is empty; it must yield one batch for each of the "
            f"steps={task.steps}."
        )
    if any(jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended) for x in jax.tree.leaves(batch)):
        raise ValueError(
            f"A batch of task.batches({seed}) holds random keys; it must hold arrays of numbers. "
            "loss gets a new key at every step."
        )
    if again is missing or _digest("", [batch]) != _digest("", [again]):
        raise ValueError(
            f"task.batches({seed}) gave another first batch when it was called again; every cell "
            "of a seed must see the same batches. Return a new iterable at each call, and make "
            "its random generator from the seed."
        )
    return batch


def _first_batches(task: "Task", seed: int) -> Iterator[Any]:
    """A seed's batches, at least one and no more than some bytes of them."""
    left = _BYTES_OF_FINGERPRINT
    for batch in itertools.islice(task.batches(seed), task.steps):
        yield batch
        left -= sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
        if left <= 0:
            return


def _constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays that a jaxpr and those within it hold."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (x.val for x in equation.invars if isinstance(x, core.Literal))
        for x in jax.tree.leaves(list(equation.params.values())):
            if hasattr(x, "eqns"):
                yield from _constants(x)


def _signature(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(x), str(jnp.result_type(x))) for x in leaves]


def _checked(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, dict) or not metrics:
        raise TypeError(
            f"task.evaluate returned {metrics!r}; it must return a dict of scalars, e.g. "
            '{"error": ...}.'
        )
    for name, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"task.evaluate returned {name!r} of shape {jnp.shape(value)}; a metric must be a "
                "scalar. Take its mean over the data."
            )
    return metrics


def _digest(text: str, trees: Iterable[Any]) -> str:
    """SHA-256 of a text and of the values in trees of arrays."""
    digest = hashlib.sha256(text.encode())
    for leaf in itertools.chain.from_iterable(map(jax.tree.leaves, trees)):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
