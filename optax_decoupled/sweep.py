"""Landscapes: train a model over a grid of learning rates and weight decays.

The paper's tool of thought, for any JAX model. The step is compiled once, with the
hyperparameters as arguments, and every cell of the grid runs the same program.

The progress bar and the plot need the extra ``optax-decoupled[sweep]``. This module is
not imported by ``import optax_decoupled``.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from optax_decoupled import _checks
from optax_decoupled._landscape import Best, Landscape, ValleySlope, import_extra
from optax_decoupled._sweep_engine import Cell, Group, MakeOptimizer, make_trainer, trace_cell
from optax_decoupled._sweep_store import CellStore, from_first_process, versions

__all__ = ["Best", "Landscape", "Task", "ValleySlope", "run"]


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

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    batches: Callable[[int], Iterable[Any]]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]
    steps: int
    _compiled: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("init", "loss", "batches", "evaluate"):
            value = getattr(self, name)
            if not callable(value):
                raise TypeError(
                    f"{name}={value!r} must be a function; Task's docstring has its form."
                )
        _checks.check_whole("steps", self.steps, "It is the number of optimizer steps per cell.")

    def _jitted(
        self, function: Callable[..., Any], compile: Callable[[Any], Any], *key: Any
    ) -> Callable[..., Any]:
        """``compile(partial(function, self))``, once for all the sweeps of this task."""
        key = (function, *key)
        if key not in self._compiled:
            self._compiled[key] = compile(functools.partial(function, self))
        return self._compiled[key]


def run(
    task: Task,
    make_optimizer: MakeOptimizer,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    directory: str | os.PathLike[str] | None = None,
    vectorize: int | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[int, int], None] = True,
) -> Landscape:
    """Trains every (learning rate, weight decay, seed) of a grid, with one compilation.

    A cell depends on its learning rate, decay and seed alone. ``task.init`` gets the first
    half of ``jax.random.split(jax.random.key(seed))``, the loss at step t the second half
    with t folded in.

    Args:
      task: what to train, see :class:`Task`.
      make_optimizer: ``(learning_rate, weight_decay) -> optimizer``, called while tracing:
        its arguments are float32 tracers.
      learning_rates: positive, increasing.
      weight_decays: positive, increasing. L2 coefficients, if ``make_optimizer`` takes those.
      seeds: distinct integers; without x64 also modulo 2³².
      directory: where finished cells are kept as they finish. A sweep that was killed goes
        on from there when it is run again, and ends with the same numbers. Another sweep is
        told by its grid, versions, compiled program, the arrays that this holds, and the
        first 4 MiB of each seed's batches. Under ``jax.distributed`` only process 0 uses it.
      vectorize: cells that are trained at a time, on all devices together, in one vmapped
        step. None: one for each device on CPU, where more gain little (about 10 % for a
        small MLP) and a cell is the program that a hand-written loop runs; elsewhere as many
        cells of a seed as fit into memory. Memory is bounded by it (without a mesh, on CPU,
        times the number of cores), not by the grid.
      mesh: devices to split the cells over, whatever its axes are; None for the default
        device. Under ``jax.distributed`` a mesh over all processes, each of which runs
        this function with the same arguments.
      progress: whether to show a bar; or a function of (cells done, cells in all).

    Returns:
      The :class:`Landscape` of the metrics that ``task.evaluate`` returns. A cell whose
      loss or metrics were not finite has diverged: its metrics are NaN.

    Raises:
      TypeError, ValueError: for a grid that is not positive and increasing, repeated
        seeds, batches that end early or change shape, metrics that are not scalars, and a
        ``directory`` that holds another sweep (of another grid, task or version).
      OSError: if the ``directory`` cannot be written or its disk is full. Like the others
        it is raised before anything is trained.

    Examples:
      The best rate of a quadratic whose minimum lies at 1:

      >>> import jax, jax.numpy as jnp, optax_decoupled as od
      >>> from optax_decoupled import sweep
      >>> task = sweep.Task(
      ...     init=lambda key: (jax.random.normal(key, (3,)), ()),
      ...     loss=lambda params, state, batch, key: (jnp.sum((params - batch) ** 2), state),
      ...     batches=lambda seed: [jnp.ones(3)] * 20,
      ...     evaluate=lambda params, state: {"error": jnp.sum((params - 1) ** 2)},
      ...     steps=20,
      ... )
      >>> landscape = sweep.run(
      ...     task, od.adamw, learning_rates=[0.001, 0.2, 9.0], weight_decays=[1e-4, 1e-3],
      ...     seeds=[0, 1], progress=False,
      ... )
      >>> assert landscape.metrics["error"].shape == (3, 2, 2)
      >>> assert landscape.best().learning_rate == 0.2
    """
    rates = _grid("learning_rates", learning_rates)
    decays = _grid("weight_decays", weight_decays)
    seeds = _distinct(seeds)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh={mesh!r} must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('x',))."
        )
    if vectorize is not None:
        _checks.check_whole("vectorize", vectorize, "It is a number of cells; None chooses one.")
    cell = trace_cell(task, make_optimizer, seeds[0])
    results = _Results(rates, decays, seeds)
    if directory is not None:
        results.resume(directory, {"task": cell.fingerprint(seeds), "steps": task.steps})
    trained = contextlib.closing(_train(cell, results, vectorize, mesh))
    with _reporter(progress, results) as report, trained as finished:
        for group, (metrics, diverged) in finished:
            results.add(group, metrics, diverged)
            report(results.done)
    return Landscape(rates, decays, np.array(seeds), results.metrics, results.diverged)


class _Results:
    """The cells that are done, in memory and, on process 0, in the directory if there is one."""

    def __init__(self, rates: np.ndarray, decays: np.ndarray, seeds: list[int]):
        self.rates, self.decays, self.seeds = rates, decays, seeds
        self.finished = np.zeros((len(rates), len(decays), len(seeds)), bool)
        self.diverged = np.full(self.finished.shape, -1)
        self.metrics: dict[str, np.ndarray] = {}
        self.store: CellStore | None = None

    @property
    def done(self) -> int:
        return int(self.finished.sum())

    def resume(self, directory: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        """Opens the directory of the same sweep and takes over the cells that it keeps."""
        manifest = {
            "learning_rates": self.rates.tolist(),
            "weight_decays": self.decays.tolist(),
            "seeds": self.seeds,
            "versions": versions(),
            **identity,
        }

        def kept() -> list[Any]:
            self.store = CellStore(directory, manifest, self.finished.shape)
            return list(self.store.kept())

        for index, metrics, diverged in from_first_process(kept):
            self._set(tuple(index), metrics, diverged)

    def add(self, group: Group, metrics: dict[str, np.ndarray], diverged: np.ndarray) -> None:
        for n, (i, j, s) in enumerate(zip(*group.cells, strict=True)):
            values = {name: float(column[n]) for name, column in metrics.items()}
            self._set((i, j, s), values, int(diverged[n]))
            if self.store is not None:
                cell = {
                    "learning_rate": float(self.rates[i]),
                    "weight_decay": float(self.decays[j]),
                    "seed": self.seeds[s],
                }
                self.store.keep((int(i), int(j), int(s)), cell, values, int(diverged[n]))

    def groups(self, width: int) -> list[Group]:
        """The cells that are not done, in groups of one seed and at most so many cells."""
        groups = []
        for s, seed in enumerate(self.seeds):
            i, j = np.nonzero(~self.finished[:, :, s])
            for first in range(0, len(i), width):
                a, b = i[first : first + width], j[first : first + width]
                groups.append(
                    Group(seed, self.rates[a], self.decays[b], (a, b, np.full_like(a, s)))
                )
        return groups

    def _set(self, index: tuple[int, int, int], metrics: dict[str, float], diverged: int) -> None:
        for name, value in metrics.items():
            empty = np.full(self.finished.shape, np.nan)
            self.metrics.setdefault(name, empty)[index] = value
        self.diverged[index] = diverged
        self.finished[index] = True


def _train(
    cell: Cell, results: _Results, vectorize: int | None, mesh: Mesh | None
) -> Generator[tuple[Group, tuple[dict[str, np.ndarray], np.ndarray]], None, None]:
    """Trains what is not done; where `vectorize` is None, as many cells at a time as fit."""
    devices = mesh.size if mesh else 1
    whole_seed = len(results.rates) * len(results.decays)
    default = devices if jax.default_backend() == "cpu" else whole_seed
    width = -(-min(vectorize or default, whole_seed) // devices) * devices
    while groups := results.groups(width):
        trainer = make_trainer(cell, width, mesh)
        try:
            first = trainer.train(groups[0])  # alone, so that only one thread compiles
        except jax.errors.JaxRuntimeError as error:
            if vectorize or width <= devices or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            width = max(1, width // devices // 2) * devices
            continue
        yield groups[0], first
        yield from trainer.train_all(groups[1:])
        return


@contextlib.contextmanager
def _reporter(
    progress: bool | Callable[[int, int], None], results: _Results
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of cells that are done."""
    total = results.finished.size
    if not progress or jax.process_index() != 0:
        yield lambda done: None
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        rich = import_extra("rich.progress")
        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn())
        with rich.Progress(*columns, rich.TimeRemainingColumn()) as bar:
            row = bar.add_task("Training cells", total=total, completed=results.done)
            yield lambda done: bar.update(row, completed=done)


def _grid(name: str, values: Sequence[float]) -> np.ndarray:
    grid = np.asarray(values)
    numeric = np.issubdtype(grid.dtype, np.number) and not np.iscomplexobj(grid)
    if grid.ndim != 1 or not grid.size or not numeric:
        raise ValueError(f"{name}={values!r} must be a non-empty sequence of numbers, e.g. [1e-3].")
    grid = grid.astype(np.float64)
    if not (np.all(np.isfinite(grid)) and grid[0] > 0 and np.all(np.diff(grid) > 0)):
        raise ValueError(
            f"{name}={values!r} must be finite, positive and increasing: the landscape's axes are "
            "logarithmic. Sort them; instead of 0 take a value too small to matter."
        )
    return grid


def _distinct(seeds: Sequence[int]) -> list[int]:
    values = list(np.ravel(np.asarray(seeds)))
    whole = all(isinstance(seed, np.integer) for seed in values)
    if np.ndim(seeds) != 1 or not values or not whole:
        raise ValueError(f"seeds={seeds!r} must be distinct integers, e.g. range(5).")
    integers = [int(seed) for seed in values]
    keys = {np.asarray(jax.random.key_data(jax.random.key(x))).tobytes() for x in integers}
    if len(keys) < len(integers):
        raise ValueError(
            f"seeds={seeds!r} must be distinct integers, also as JAX's keys, which without x64 "
            "see 32 bits, e.g. range(5)."
        )
    return integers
