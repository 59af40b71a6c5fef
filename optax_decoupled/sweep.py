"""Landscapes: train a model over a grid of learning rates and weight decays.

The paper's tool of thought, for any JAX model. The step is compiled once, with the
hyperparameters as arguments, and every cell of the grid runs the same program.

The progress bar and the plot need the extra ``optax-decoupled[sweep]``. This module is
not imported by ``import optax_decoupled``.
"""

import concurrent.futures
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled import _checks
from optax_decoupled._landscape import Best, Landscape, ValleySlope, import_extra

__all__ = ["Best", "Landscape", "Task", "ValleySlope", "run"]

# The step of a small network takes less time than a call from Python: a call makes up to
# so many steps, of batches that take up to so many bytes.
_STEPS_PER_CALL = 50
_BYTES_PER_CALL = 64 * 2**20

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

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
    batches: Callable[[int], Iterable[Any]]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]
    steps: int

    def __post_init__(self) -> None:
        for name in ("init", "loss", "batches", "evaluate"):
            value = getattr(self, name)
            if not callable(value):
                raise TypeError(
                    f"{name}={value!r} must be a function; Task's docstring has its form."
                )
        _checks.check_whole("steps", self.steps, "It is the number of optimizer steps per cell.")


def run(
    task: Task,
    make_optimizer: MakeOptimizer,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    vectorize: int | None = None,
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
      seeds: distinct integers.
      vectorize: cells that one vmapped step trains at a time. None: 1 on CPU, where
        batched small matrix products gain nothing; elsewhere all the cells of a seed.
        Memory is bounded by it (on CPU times the number of cores), not by the grid.
      progress: whether to show a bar; or a function of (cells done, cells in all).

    Returns:
      The :class:`Landscape` of the metrics that ``task.evaluate`` returns. A cell whose
      loss or metrics were not finite has diverged: its metrics are NaN.

    Raises:
      TypeError, ValueError: for a grid that is not positive and increasing, repeated
        seeds, batches that end early or change shape, metrics that are not scalars.

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
    trainer = _trainer(task, make_optimizer, seeds[0], vectorize, len(rates) * len(decays))
    shape = (len(rates), len(decays), len(seeds))
    metrics: dict[str, np.ndarray] = {}
    diverged = np.full(shape, -1)
    groups = list(_groups(rates, decays, seeds, trainer.width))
    with _reporter(progress, diverged.size) as report, trainer.results(groups) as results:
        for group, values, stopped in results:
            diverged[group.cells] = stopped
            for name, value in values.items():
                metrics.setdefault(name, np.full(shape, np.nan))[group.cells] = value
            report(len(stopped))
    return Landscape(rates, decays, np.array(seeds), metrics, diverged)


class _Group(NamedTuple):
    """Cells of one seed that are trained together, and their indices in [L, W, S]."""

    seed: int
    learning_rates: np.ndarray
    weight_decays: np.ndarray
    cells: tuple[np.ndarray, np.ndarray, np.ndarray]


def _groups(
    rates: np.ndarray, decays: np.ndarray, seeds: Sequence[int], width: int
) -> Iterator[_Group]:
    count = len(rates) * len(decays)
    for s, seed in enumerate(seeds):
        for first in range(0, count, width):
            i, j = np.divmod(np.arange(first, min(first + width, count)), len(decays))
            yield _Group(seed, rates[i], decays[j], (i, j, np.full_like(i, s)))


class _Carry(NamedTuple):
    """What a step changes. `diverged`: the first step whose loss was not finite, or -1."""

    params: Any
    model_state: Any
    opt_state: Any
    diverged: jax.Array


@dataclass(frozen=True)
class _Trainer:
    """The compiled functions of a sweep, and the loop that feeds them.

    Attributes:
      task: what is trained.
      init: key -> (params, model state), for one cell.
      start: (params, model state, learning rates, weight decays) -> carry.
      advance: (carry, batches, how many, first step, key, learning rates, decays) -> carry.
      evaluate: (params, model state) -> metrics.
      width: cells per group.
      steps_per_call: the length of the stacked batches that `advance` takes.
      workers: threads, each of which drives a group of its own.
      signature: structure, shapes and dtypes of the stacked batches.
    """

    task: Task
    init: Callable[..., Any]
    start: Callable[..., _Carry]
    advance: Callable[..., _Carry]
    evaluate: Callable[..., Any]
    width: int
    steps_per_call: int
    workers: int
    signature: Any

    @contextlib.contextmanager
    def results(self, groups: Sequence[_Group]) -> Iterator[Iterator[tuple[_Group, Any, Any]]]:
        """Trains the groups; yields an iterator of (group, metrics, diverged) as they finish."""
        pool = concurrent.futures.ThreadPoolExecutor(self.workers)

        def finished() -> Iterator[tuple[_Group, Any, Any]]:
            yield groups[0], *self.train(groups[0])  # alone, so that only one thread compiles
            pending = {pool.submit(self.train, group): group for group in groups[1:]}
            for future in concurrent.futures.as_completed(pending):
                yield pending[future], *future.result()

        try:
            yield finished()
        finally:
            pool.shutdown(cancel_futures=True)

    def train(self, group: _Group) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Metrics and the step of divergence (or -1) of each cell of a group."""
        cells = len(group.learning_rates)
        rates, decays = (self._per_cell(x) for x in (group.learning_rates, group.weight_decays))
        init_key, loss_key = jax.random.split(jax.random.key(group.seed))
        carry = self.start(*self.init(init_key), rates, decays)
        for first, count, batches in self._calls(group.seed):
            carry = self.advance(carry, batches, count, first, loss_key, rates, decays)
        metrics = _check_metrics(self.evaluate(carry.params, carry.model_state), self.width)
        metrics, diverged = jax.tree.map(np.atleast_1d, jax.device_get((metrics, carry.diverged)))
        finite = np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        diverged = np.where((diverged < 0) & ~finite, self.task.steps, diverged)[:cells]
        return {
            name: np.where(diverged < 0, values[:cells], np.nan) for name, values in metrics.items()
        }, diverged

    def _per_cell(self, values: np.ndarray) -> np.ndarray:
        """float32, of shape [] or [width]; a short group repeats its last cell."""
        padded = np.pad(values.astype(np.float32), (0, self.width - len(values)), "edge")
        return padded[0] if self.width == 1 else padded

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


def _trainer(
    task: Task, make_optimizer: MakeOptimizer, seed: int, vectorize: int | None, cells: int
) -> _Trainer:
    """Chooses how the cells are driven on this backend and compiles nothing yet."""
    if vectorize is not None:
        _checks.check_whole("vectorize", vectorize, "It is a number of cells; None chooses one.")
    on_cpu = jax.default_backend() == "cpu"
    width = min(cells, vectorize or (1 if on_cpu else cells))
    start, step = _cell_functions(task, make_optimizer)
    batch = _first_batch(task, seed)
    # On CPU, XLA runs a convolution inside a loop about ten times slower than outside.
    looped = not (on_cpu and _convolves(task, start, step, batch))
    fitting = _BYTES_PER_CALL // max(1, sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch)))
    steps_per_call = max(1, min(_STEPS_PER_CALL, task.steps, fitting)) if looped else 1
    evaluate = task.evaluate
    if width > 1:
        start = jax.vmap(start, in_axes=(None, None, 0, 0))
        step = jax.vmap(step, in_axes=(0, None, None, None, 0, 0))
        evaluate = jax.vmap(evaluate)
    return _Trainer(
        task=task,
        init=jax.jit(task.init),
        start=jax.jit(start),
        advance=jax.jit(_many(step) if looped else _one(step), donate_argnums=0),
        evaluate=jax.jit(evaluate),
        width=width,
        steps_per_call=steps_per_call,
        workers=_cores() if on_cpu and looped else 1,
        signature=_signature(jax.tree.map(lambda x: np.stack([x] * steps_per_call), batch)),
    )


def _cell_functions(task: Task, make_optimizer: MakeOptimizer) -> tuple[Any, Any]:
    """`start` and one step for a single cell."""

    def start(params: Any, model_state: Any, learning_rate: Any, weight_decay: Any) -> _Carry:
        opt_state = make_optimizer(learning_rate, weight_decay).init(params)
        return _strongly_typed(_Carry(params, model_state, opt_state, jnp.int32(-1)))

    def step(
        carry: _Carry, batch: Any, t: Any, key: Any, learning_rate: Any, weight_decay: Any
    ) -> _Carry:
        params, model_state, opt_state, diverged = carry
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)
        step_key = jax.random.fold_in(key, t)
        (loss, model_state), grads = value_and_grad(params, model_state, batch, step_key)
        optimizer = make_optimizer(learning_rate, weight_decay)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        diverged = jnp.where((diverged < 0) & ~jnp.isfinite(loss), t, diverged)
        return _strongly_typed(_Carry(params, model_state, opt_state, diverged))

    return start, step


def _many(step: Callable[..., _Carry]) -> Callable[..., _Carry]:
    """`step` over the first `count` of the stacked batches; any count runs the same program."""

    def advance(carry: _Carry, batches: Any, count: Any, first: Any, *rest: Any) -> _Carry:
        def body(i: Any, carry: _Carry) -> _Carry:
            batch = jax.tree.map(lambda x: x[i], batches)
            return step(carry, batch, first + i, *rest)

        return jax.lax.fori_loop(0, count, body, carry)

    return advance


def _one(step: Callable[..., _Carry]) -> Callable[..., _Carry]:
    """`step` on a stack of one batch, without a loop."""

    def advance(carry: _Carry, batches: Any, count: Any, first: Any, *rest: Any) -> _Carry:
        del count  # 1
        return step(carry, jax.tree.map(lambda x: x[0], batches), first, *rest)

    return advance


def _convolves(task: Task, start: Callable[..., _Carry], step: Any, batch: Any) -> bool:
    key, scalar = jax.eval_shape(lambda: (jax.random.key(0), jnp.float32(0)))
    carry = jax.eval_shape(lambda key, x: start(*task.init(key), x, x), key, scalar)
    jaxpr = jax.make_jaxpr(step)(carry, batch, 0, key, scalar, scalar)
    return "conv_general_dilated" in str(jaxpr)


def _strongly_typed(tree: Any) -> Any:
    """Without weak types, which would compile a second program for the second call."""

    def strong(x: Any) -> Any:
        x = jnp.asarray(x)
        return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x

    return jax.tree.map(strong, tree)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _reporter(
    progress: bool | Callable[[int, int], None], total: int
) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of cells that have just finished."""
    if callable(progress):
        counts = [0]

        def tell(cells: int) -> None:
            counts[0] += cells
            progress(counts[0], total)

        yield tell
    elif not progress:
        yield lambda cells: None
    else:
        rich = import_extra("rich.progress")
        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn())
        with rich.Progress(*columns, rich.TimeRemainingColumn()) as bar:
            row = bar.add_task("Training cells", total=total)
            yield lambda cells: bar.advance(row, cells)


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
    if np.ndim(seeds) != 1 or not values or not whole or len(set(values)) < len(values):
        raise ValueError(f"seeds={seeds!r} must be distinct integers, e.g. range(5).")
    return [int(seed) for seed in values]


def _first_batch(task: Task, seed: int) -> Any:
    for batch in task.batches(seed):
        return batch
    raise ValueError(
        f"task.batches({seed}) is empty; it must yield one batch for each of the "
        f"steps={task.steps}. If it is a generator that was used up, return a new one at each call."
    )


def _signature(batch: Any) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(x), str(jnp.result_type(x))) for x in leaves]


def _check_metrics(metrics: Any, width: int) -> dict[str, jax.Array]:
    if not isinstance(metrics, dict) or not metrics:
        raise TypeError(
            f"task.evaluate returned {metrics!r}; it must return a dict of scalars, e.g. "
            '{"error": ...}.'
        )
    for name, value in metrics.items():
        if jnp.ndim(value) != (width > 1):
            raise ValueError(
                f"task.evaluate returned a {name!r} that is no scalar: for {width} cells its shape "
                f"is {jnp.shape(value)}. Take its mean over the data."
            )
    return metrics
