"""How a sweep trains: a cell's functions, compiled once for a group of cells, and their loop.

All arrays of a group have a leading axis of `width` cells. On each device a group of one
cell runs without `vmap`, so that it does what a hand-written loop does; larger ones run
under `vmap`, and a mesh splits the axis over its devices under `shard_map`.
"""

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_decoupled._types import Scalar
from optax_decoupled.sweep import batches
from optax_decoupled.sweep.answers import checked_metrics
from optax_decoupled.sweep.cell import Carry, Cell, KeyData, initial, seed_keys
from optax_decoupled.sweep.grid import Finished, Grid, Index, Results
from optax_decoupled.sweep.task import Batch, Metrics, ModelState, Task
from optax_decoupled.sweep.threads import cores, in_threads, settings_reach_threads

# The step of a small network takes less time than a call from Python: a call makes up to
# so many steps, of batches that take up to so many bytes.
_STEPS_PER_CALL = 50
_BYTES_PER_CALL = 64 * 2**20

_Function = TypeVar("_Function", bound=Callable[..., Any])

# id of a task -> what was compiled for all its sweeps, while the task lives. By identity,
# because what a task holds may have no hash; the values hold its functions and not itself.
_COMPILED: dict[int, dict[Any, Callable[..., Any]]] = {}


def train(
    cell: Cell, results: Results, vectorize: int | None, mesh: Mesh | None
) -> Generator[list[Finished]]:
    """Trains what is not done; where `vectorize` is None, as many cells at a time as fit.

    Close it to cancel the rest.
    """
    devices = mesh.size if mesh else 1
    whole_seed = results.grid.shape[0] * results.grid.shape[1]
    default = devices if jax.default_backend() == "cpu" else whole_seed
    width = -(-min(vectorize or default, whole_seed) // devices) * devices
    while groups := results.groups(width):
        trainer = _make_trainer(cell, results.grid, width, mesh)
        try:
            first = trainer.train(groups[0])  # alone, so that only one thread compiles
        except jax.errors.JaxRuntimeError as error:
            if vectorize or width <= devices or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            width = max(1, width // devices // 2) * devices
            continue
        yield first
        yield from trainer.train_all(groups[1:])
        return


@dataclass(frozen=True)
class _Trainer:
    """The compiled functions of a sweep, and the loop that feeds them."""

    task: Task
    grid: Grid
    # key data -> params and model state, the same for every cell
    init: Callable[..., tuple[optax.Params, ModelState]]
    # params, model state, learning rates, weight decays -> carry
    start: Callable[..., Carry]
    # carry, batches, how many, first step, key data, learning rates, decays -> carry
    advance: Callable[..., Carry]
    # params, model state, diverged -> metrics and diverged, whole on every process
    finish: Callable[..., tuple[Metrics, jax.Array]]
    per_cell: Callable[[np.ndarray], Any]  # puts one value per cell on the devices
    width: int  # cells per group
    steps_per_call: int  # the length of the stacked batches that `advance` takes
    workers: int  # threads, each of which drives a group of its own
    kind: tuple[Any, Any]  # structure, shapes and dtypes of the stacked batches
    stop: threading.Event = field(default_factory=threading.Event)  # threads are to give up

    def train_all(self, groups: Sequence[list[Index]]) -> Iterator[list[Finished]]:
        """Trains groups and yields each as it finishes."""
        if self.workers == 1 or not settings_reach_threads():
            yield from map(self.train, groups)  # in order, as all processes of a mesh must
        else:
            yield from in_threads(self.train, groups, self.workers, self.stop)

    def train(self, group: list[Index]) -> list[Finished]:
        filled = group + group[-1:] * (self.width - len(group))
        i, j, (s, *_) = np.transpose(filled)
        rates, decays = (
            self.per_cell(values.astype(np.float32))
            for values in (self.grid.learning_rates[i], self.grid.weight_decays[j])
        )
        seed = self.grid.seeds[s]
        init_key, loss_key = seed_keys(seed)
        carry = self.start(*self.init(init_key), rates, decays)
        for first, count, stacked in self._calls(seed):
            if self.stop.is_set():
                raise InterruptedError("the sweep was closed")  # which nobody waits to hear
            carry = self.advance(carry, stacked, count, first, loss_key, rates, decays)
        metrics, diverged = jax.device_get(
            self.finish(carry.params, carry.model_state, carry.diverged)
        )
        finite = np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        diverged = np.where((diverged < 0) & ~finite, self.task.steps, diverged)
        columns = {name: np.where(diverged < 0, x, np.nan) for name, x in metrics.items()}
        return [
            Finished(index, {name: float(x[n]) for name, x in columns.items()}, int(diverged[n]))
            for n, index in enumerate(group)
        ]

    def _calls(self, seed: int) -> Iterator[tuple[int, int, Batch]]:
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

    def _stack(self, chunk: list[Batch], seed: int, first: int) -> Batch:
        filled = chunk + chunk[-1:] * (self.steps_per_call - len(chunk))
        try:
            stacked = jax.tree.map(lambda *x: np.stack(x), *filled)
            if batches.kind(stacked) == self.kind:
                return stacked
        except ValueError:
            pass  # other shapes or another structure
        raise ValueError(
            f"A batch of task.batches({seed}), one of {first} to {first + len(chunk) - 1}, differs "
            "from the first batch in structure, shape or dtype; all must be alike. Drop or pad an "
            "incomplete batch."
        )


def _make_trainer(cell: Cell, grid: Grid, width: int, mesh: Mesh | None) -> _Trainer:
    """Chooses how a group is driven on this backend; it compiles when it is first called.

    Args:
      cell: what is trained.
      grid: the cells' hyperparameters.
      width: cells per group, a multiple of the number of devices of the mesh.
      mesh: the devices that share a group, or None for the default device.
    """
    on_cpu = jax.default_backend() == "cpu"
    # On CPU, XLA runs a convolution inside a loop about ten times slower than outside.
    looped = not (on_cpu and cell.convolves)
    task, steps_per_call = cell.task, _steps_per_call(cell) if looped else 1
    advance = _many(cell.step) if looped else _one(cell.step)

    over = functools.partial(_over_cells, width=width, mesh=mesh)
    replicated, per_cell = _placements(mesh)
    init = lambda: jax.jit(functools.partial(initial, task.init), out_shardings=replicated)
    finish = lambda: jax.jit(over(_finish(task.evaluate), (0, 0, 0)), out_shardings=replicated)
    return _Trainer(
        task=task,
        grid=grid,
        init=_compiled_once(task, ("init", mesh), init),
        start=jax.jit(over(cell.start, (None, None, 0, 0))),
        advance=jax.jit(over(advance, (0, None, None, None, None, 0, 0)), donate_argnums=0),
        finish=_compiled_once(task, ("finish", width, mesh), finish),
        per_cell=per_cell,
        width=width,
        steps_per_call=steps_per_call,
        workers=cores() if on_cpu and looped and mesh is None else 1,
        kind=batches.kind(jax.tree.map(lambda x: np.stack([x] * steps_per_call), cell.batch)),
    )


def _steps_per_call(cell: Cell) -> int:
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(cell.batch))
    return max(1, min(_STEPS_PER_CALL, cell.task.steps, _BYTES_PER_CALL // max(1, size)))


def _compiled_once(task: Task, key: tuple[object, ...], jit: Callable[[], _Function]) -> _Function:
    """What `jit` returns, once for all the sweeps of a task; it must not hold the task."""
    if id(task) not in _COMPILED:
        _COMPILED[id(task)] = {}
        weakref.finalize(task, _COMPILED.pop, id(task))
    compiled: dict[Any, Any] = _COMPILED[id(task)]
    if key not in compiled:
        compiled[key] = jit()
    return compiled[key]


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


def _placements(mesh: Mesh | None) -> tuple[NamedSharding | None, Callable[[np.ndarray], Any]]:
    """The sharding of what all cells share, and a function that distributes values per cell."""
    if mesh is None:
        return None, lambda values: values
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def per_cell(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return NamedSharding(mesh, PartitionSpec()), per_cell


def _many(step: Callable[..., Carry]) -> Callable[..., Carry]:
    """`step` over the first `count` of the stacked batches; any count runs the same program."""

    def advance(
        carry: Carry, stacked: Batch, count: Scalar, first: Scalar, *rest: KeyData | Scalar
    ) -> Carry:
        def body(i: Scalar, carry: Carry) -> Carry:
            return step(carry, jax.tree.map(lambda x: x[i], stacked), first + i, *rest)

        return jax.lax.fori_loop(0, count, body, carry)

    return advance


def _one(step: Callable[..., Carry]) -> Callable[..., Carry]:
    """`step` on a stack of one batch, without a loop."""

    def advance(
        carry: Carry, stacked: Batch, count: Scalar, first: Scalar, *rest: KeyData | Scalar
    ) -> Carry:
        del count  # 1
        return step(carry, jax.tree.map(lambda x: x[0], stacked), first, *rest)

    return advance


def _finish(
    evaluate: Callable[[optax.Params, ModelState], Metrics],
) -> Callable[..., tuple[Metrics, jax.Array]]:
    def finish(
        params: optax.Params, model_state: ModelState, diverged: jax.Array
    ) -> tuple[Metrics, jax.Array]:
        return checked_metrics(evaluate(params, model_state)), diverged

    return finish
