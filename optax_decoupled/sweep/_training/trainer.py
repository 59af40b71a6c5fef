"""The training loop: cells are trained in groups, by functions that are compiled once.

All arrays of a group have a leading axis of `width` cells, which a mesh splits over its
devices by `shard_map`. Several cells on one device run under `vmap`. A single cell runs
without it, as the program of a hand-written loop.
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

from optax_decoupled.sweep._training.cell import Cell, initial_values, seed_keys
from optax_decoupled.sweep._training.threads import available_cores, in_threads, same_settings
from optax_decoupled.sweep.grid import Finished, Grid, Index, Results
from optax_decoupled.sweep.task import Batch, Task

_Function = Callable[..., Any]

# The step of a small network takes less time than a call from Python, so a call takes up to
# 50 steps, of batches of up to 64 MiB together.
_STEPS_PER_CALL = 50
_BYTES_PER_CALL = 64 * 2**20

# Maps a task's id to functions that were compiled for all its sweeps, until the task is
# collected. The id is the key because a task need not be hashable.
_COMPILED: dict[int, dict[object, _Function]] = {}


def train(
    cell: Cell, results: Results, vectorize: int | None, mesh: Mesh | None
) -> Generator[list[Finished]]:
    """Trains the unfinished cells and yields them in groups, until it is closed.

    If `vectorize` is None, the groups shrink until they fit into memory.
    """
    devices = mesh.size if mesh else 1
    whole_seed = results.grid.shape[0] * results.grid.shape[1]
    default = devices if jax.default_backend() == "cpu" else whole_seed
    width = -(-min(vectorize or default, whole_seed) // devices) * devices
    while groups := results.groups(width):
        trainer = _Trainer(cell, results.grid, width, mesh)
        try:
            first = trainer.train(
                groups[0]
            )  # before the threads start, of which each would compile
        except jax.errors.JaxRuntimeError as error:
            if vectorize or width <= devices or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            width = max(1, width // devices // 2) * devices
            continue
        yield first
        yield from trainer.train_all(groups[1:])
        return


class _Trainer:
    """The compiled functions for groups of `width` cells, and their loop.

    The devices of the mesh share a group, so `width` is a multiple of their number.
    """

    def __init__(self, cell: Cell, grid: Grid, width: int, mesh: Mesh | None):
        task = cell.task
        self.task, self.grid, self.width = task, grid, width
        # Each thread trains a group of its own, until `stop` is set.
        threaded = jax.default_backend() == "cpu" and cell.looped and mesh is None
        self.workers = available_cores() if threaded else 1
        self.stop = threading.Event()
        self.steps_per_call = _steps_per_call(cell)
        copies = lambda x: np.stack([x] * self.steps_per_call)
        self.expected = _structure_and_types(jax.tree.map(copies, cell.batch))
        over = functools.partial(_over_cells, width=width, mesh=mesh)
        self.split = NamedSharding(mesh, PartitionSpec(mesh.axis_names)) if mesh else None
        self.replicated = NamedSharding(mesh, PartitionSpec()) if mesh else None
        init = functools.partial(initial_values, task.init)
        self.init = _jit_once(task, ("init", mesh), init, self.replicated)
        self.start = jax.jit(over(cell.start))
        self.advance = jax.jit(over(cell.steps), donate_argnums=0)
        evaluate = task.evaluate
        measure = over(lambda own: evaluate(*own))
        self.evaluate = _jit_once(task, ("evaluate", width, mesh), measure, self.replicated)

    def train_all(self, groups: Sequence[list[Index]]) -> Iterator[list[Finished]]:
        """Yields the groups as they finish."""
        if self.workers == 1 or not same_settings():
            yield from map(self.train, groups)  # in one order, the same on all processes
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
                raise InterruptedError("the sweep was closed")  # nobody waits for this thread
            carry = self.advance(carry, (stacked, count, first, loss_key))
        diverged = jax.device_put(carry.diverged, self.replicated)
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
            if _structure_and_types(stacked) == self.expected:
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


def _structure_and_types(batch: Batch) -> tuple[Any, Any]:
    return jax.tree.flatten(jax.tree.map(jax.typeof, batch))


def _jit_once(
    task: Task, key: object, function: _Function, sharding: NamedSharding | None
) -> _Function:
    """Compiles a function once for all sweeps of a task; it must not refer to the task."""
    if id(task) not in _COMPILED:
        _COMPILED[id(task)] = {}
        weakref.finalize(task, _COMPILED.pop, id(task))
    return _COMPILED[id(task)].setdefault(key, jax.jit(function, out_shardings=sharding))


def _over_cells(function: _Function, width: int, mesh: Mesh | None) -> _Function:
    """Turns `function(own, *shared)` of one cell into a function of `width` cells.

    That one takes `(own, shared)`: the stacked arguments of the cells, and a tuple of the
    arguments that all cells share. It returns stacked results.
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
