"""The function that runs a sweep."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.extras import import_extra
from optax_decoupled._common.progress import in_terminal
from optax_decoupled.sweep._landscape.landscape import Landscape
from optax_decoupled.sweep._training.cell import trace_cell
from optax_decoupled.sweep._training.interrupt import keyboard_interrupts
from optax_decoupled.sweep._training.trainer import train
from optax_decoupled.sweep.grid import Grid, Results, checked_axis, checked_seeds
from optax_decoupled.sweep.store import Directory, resume
from optax_decoupled.sweep.task import MakeOptimizer, Task


def run(
    task: Task,
    make_optimizer: MakeOptimizer,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    directory: Directory | None = None,
    vectorize: int | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[int, int], None] = True,
) -> Landscape:
    """Trains every (learning rate, weight decay, seed) of a grid, with one compilation.

    A cell depends on its learning rate, decay and seed alone. ``task.init`` gets the first
    half of ``jax.random.split(jax.random.key(seed))``, the loss at step t the second half
    with t folded in.

    Args:
      task: the model, its data and its metrics.
      make_optimizer: ``(learning_rate, weight_decay) -> optimizer``, called while tracing:
        its arguments are float32 tracers. The optimizer's ``update`` gets ``value=loss``, if
        it takes that, as :func:`optax.contrib.reduce_on_plateau` does.
      learning_rates: positive, increasing.
      weight_decays: positive, increasing. They may be L2 coefficients: ``make_optimizer``
        decides.
      seeds: distinct integers; without x64 also modulo 2³².
      directory: keeps each cell as it finishes. A sweep that was killed goes on from there
        when it is run again, and ends with the same numbers. A directory of another sweep is
        refused: one with another grid, versions, compiled program or constants in it, or
        first 4 MiB of each seed's batches. One sweep at a time uses a directory; under
        ``jax.distributed`` only process 0 does.
      vectorize: number of cells that are trained in one vmapped step, on all devices
        together. It bounds the memory (without a mesh, on CPU, times the number of cores).
        None: on CPU one for each device, which runs the program of a hand-written loop and
        is about 10 % slower for a small MLP; elsewhere as many of a seed as fit into memory.
      mesh: devices to split the cells over, along all axes; None for the default device.
        Under ``jax.distributed`` a mesh over all processes, each of which runs this function
        with the same arguments.
      progress: whether to show a bar on stderr if that is a terminal; or a function of
        (cells done, all cells).

    Returns:
      The :class:`Landscape` of the metrics that ``task.evaluate`` returns. A cell whose
      loss or metrics were not finite has diverged: its metrics are NaN.

    Raises:
      TypeError, ValueError: for a grid that is not positive and increasing, repeated
        seeds, batches that end early or change shape, an optimizer in place of
        ``make_optimizer``, functions of the task that return something else, and a
        ``directory`` that is in use or holds other files: another sweep, or a cell that this
        sweep did not write. All are raised before anything is trained, except for batches.
      OSError: if the ``directory`` cannot be written or its disk is full. It says how many
        cells are kept, as a KeyboardInterrupt does.

    Examples:
      The best learning rate of a quadratic with its minimum at 1:

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
    grid = Grid(
        checked_axis("learning_rates", learning_rates),
        checked_axis("weight_decays", weight_decays),
        checked_seeds(seeds),
    )
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh={brief(mesh)} must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('x',))."
        )
    if vectorize is not None:
        checks.check_whole("vectorize", vectorize, "It is a number of cells; None chooses one.")
    results = Results(grid)
    with keyboard_interrupts(results, directory) as interrupts, contextlib.ExitStack() as stack:
        cell = trace_cell(task, make_optimizer, grid.seeds[0])
        if directory is not None:
            resume(results, directory, cell.fingerprint(grid.seeds), task.steps, stack)
        report = stack.enter_context(_reporter(progress, results))
        groups = stack.enter_context(contextlib.closing(train(cell, results, vectorize, mesh)))
        for group in groups:
            results.finish(group)
            report(results.done)
            if interrupts:  # and Python dropped the exception
                raise KeyboardInterrupt
    axes = grid.learning_rates, grid.weight_decays, np.array(grid.seeds)
    return Landscape(*axes, results.metrics, results.diverged)


@contextlib.contextmanager
def _reporter(
    progress: bool | Callable[[int, int], None], results: Results
) -> Iterator[Callable[[int], None]]:
    """Yields a function that shows how many cells are done."""
    total = results.finished.size
    if not progress or jax.process_index() != 0:
        yield lambda done: None
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        rich, console = import_extra("rich.progress"), import_extra("rich.console")
        columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn())
        where = dict(console=console.Console(stderr=True), disable=not in_terminal())
        with rich.Progress(*columns, rich.TimeRemainingColumn(), **where) as bar:
            row = bar.add_task("Training cells", total=total, completed=results.done)
            yield lambda done: bar.update(row, completed=done)
