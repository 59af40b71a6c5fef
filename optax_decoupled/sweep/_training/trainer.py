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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_decoupled.sweep._training.cell import Cell, initial, seed_keys
from optax_decoupled.sweep._training.threads import cores, in_threads, settings_reach_threads
from optax_decoupled.sweep.grid import Finished, Grid, Index, Results
from optax_decoupled.sweep.task import Batch, Task

_Function = Callable[..., Any]

# The step of a small network takes less time than a call from Python: a call makes up to
# so many steps, of batches that take up to so many bytes.
_STEPS_PER_CALL = 50
_BYTES_PER_CALL = 64 * 2**20

# id of a task -> what was compiled for all its sweeps, while the task lives. By identity,
# because what a task holds may have no hash; the values hold its functions and not itself.
_COMPILED: dict[int, dict[object, _Function]] = {}


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
        trainer = _Trainer(cell, results.grid, width, mesh)
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


class _Trainer:
    """The compiled functions of a sweep, and the loop that feeds them.

    A group has `width` cells, a multiple of the number of the mesh's devices, which share it.
    """

    def __init__(self, cell: Cell, grid: Grid, width: int, mesh: Mesh | None):
        task = cell.task
        self.task, self.grid, self.width = task, grid, width
        # Threads, each of which drives a group of its own until it is told to give up.
        threaded = jax.default_backend() == "cpu" and cell.looped and mesh is None
        self.workers = cores() if threaded else 1
        self.stop = threading.Event()
        self.steps_per_call = _steps_per_call(cell)
        self.kind = _kind(jax.tree.map(lambda x: np.stack([x] * self.steps_per_call), cell.batch))
        over = functools.partial(_over_cells, width=width, mesh=mesh)
        self.split = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None
        self.whole = NamedSharding(mesh, PartitionSpec()) if mesh else None  # on every process
        init = functools.partial(initial, task.init)
        self.init = _jit_once(task, ("init", mesh), init, self.whole)
        self.start = jax.jit(over(cell.start))
        self.advance = jax.jit(over(cell.steps), donate_argnums=0)
        evaluate = task.evaluate
        measure = over(lambda own: evaluate(*own))
        self.evaluate = _jit_once(task, ("evaluate", width, mesh), measure, self.whole)

    def train_all(self, groups: Sequence[list[Index]]) -> Iterator[list[Finished]]:
        """Trains groups and yields each as it finishes."""
        if self.workers == 1 or not settings_reach_threads():
            yield from map(self.train, groups)  # in order, as all processes of a mesh must
        else:
            yield from in_threads(self.train, groups, self.workers, self.stop)

    def train(self, group: list[Index]) -> list[Finished]:
        filled = group + group[-1:] * (self.width - len(group))
        i, j, (s, *_) = np.transpose(filled)
        rates, decays = self.grid.learning_rates[i], self.grid.weight_decays[j]
        hyper = jax.device_put((rates.astype(np.float32), decays.astype(np.float32)), self.split)
        seed = self.grid.seeds[s]
        init_key, loss_key = seed_keys(seed)
        carry = self.start(hyper, self.init(init_key))
        for first, count, stacked in self._calls(seed):
            if self.stop.is_set():
                raise InterruptedError("the sweep was closed")  # which nobody waits to hear
            carry = self.advance(carry, (stacked, count, first, loss_key))
        diverged = jax.device_put(carry.diverged, self.whole)
        measured = self.evaluate((carry.params, carry.model_state), ())
        metrics, diverged = jax.device_get((measured, diverged))
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
            if _kind(stacked) == self.kind:
                return stacked
        except ValueError:
            pass  # other shapes or another structure
        raise ValueError(
            f"A batch of task.batches({seed}), one of {first} to {first + len(chunk) - 1}, differs "
            "from the first batch in structure, shape or dtype; all must be alike. Drop or pad an "
            "incomplete batch."
        )


def _steps_per_call(cell: Cell) -> int:
    size = sum(np.asarray(x).nbytes for x in jax.tree.leaves(cell.batch))
    fit = max(1, min(_STEPS_PER_CALL, cell.task.steps, _BYTES_PER_CALL // max(1, size)))
    return fit if cell.looped else 1


def _kind(batch: Batch) -> tuple[Any, Any]:
    """Shapes and dtypes of the leaves, and their structure."""
    return jax.tree.flatten(jax.tree.map(jax.typeof, batch))


def _jit_once(
    task: Task, key: object, function: _Function, sharding: NamedSharding | None
) -> _Function:
    """`function` compiled once for all the sweeps of a task; it must not hold the task."""
    if id(task) not in _COMPILED:
        _COMPILED[id(task)] = {}
        weakref.finalize(task, _COMPILED.pop, id(task))
    return _COMPILED[id(task)].setdefault(key, jax.jit(function, out_shardings=sharding))


def _over_cells(function: _Function, width: int, mesh: Mesh | None) -> _Function:
    """`function(own, *shared)` of one cell as one of `width` cells, split over the mesh.

    It is called with `(own, shared)`: the cells' own, stacked as its results are, and a tuple.
    """

    def mapped(own: Any, shared: tuple[Any, ...]) -> Any:
        if width > (mesh.size if mesh else 1):
            return jax.vmap(lambda own: function(own, *shared))(own)
        result = function(jax.tree.map(lambda x: x[0], own), *shared)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)

    if mesh is None:
        return mapped
    cells = PartitionSpec(mesh.axis_names)
    specs = cells, PartitionSpec()
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=cells, check_vma=False)
