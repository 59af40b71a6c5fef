"""Which optimizers do the figures compare, over which grids? Trains their landscapes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import optax

import optax_decoupled as od
from benchmarks.lib.progress import bar
from benchmarks.lib.sizes import Size
from optax_decoupled.sweep import Landscape, Task, run


class Contestant(NamedTuple):
    """An optimizer, its grid as exponents of 2, and what its decay is called."""

    factory: Callable[..., Any]
    peak: float
    rates: range
    decays: range
    decay_name: str = "weight decay λ"


CONTESTANTS = {
    "SGD+L2": Contestant(od.sgd_l2, 0.1, range(-5, 4), range(-13, 1), "L2 coefficient λ′"),
    "SGDW": Contestant(od.sgdw, 0.1, range(-5, 4), range(-15, -1)),
    "Adam+L2": Contestant(od.adam_l2, 0.002, range(-4, 5), range(-14, 0), "L2 coefficient λ′"),
    "AdamW": Contestant(od.adamw, 0.002, range(-4, 5), range(-14, 0)),
}

Landscapes = dict[str, dict[str, Landscape]]


class Job(NamedTuple):
    """One sweep: the arguments of `optax_decoupled.sweep.run`."""

    task: Task
    make_optimizer: Callable[[Any, Any], optax.GradientTransformation]
    learning_rates: list[float]
    weight_decays: list[float]
    seeds: int

    @property
    def cells(self) -> int:
        return len(self.learning_rates) * len(self.weight_decays) * self.seeds


def landscape_job(
    task: Task,
    name: str,
    size: Size,
    schedule: optax.Schedule,
    contestants: Mapping[str, Contestant] = MappingProxyType(CONTESTANTS),
) -> Job:
    """A contestant over its grid, η_t given, decay on kernels only."""
    contestant = contestants[name]
    rates = contestant.rates[:: size.rate_stride]
    decays = contestant.decays[:: size.decay_stride]

    def make_optimizer(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
        return contestant.factory(learning_rate, decay, schedule=schedule, mask=od.decay_mask)

    return Job(
        task,
        make_optimizer,
        [contestant.peak * 2.0**k for k in rates],
        [2.0 ** (k + size.decay_shift) for k in decays],
        size.seeds,
    )


def train(jobs: dict[tuple[str, str], Job], directory: Path | None = None) -> Landscapes:
    """Runs the jobs, named (row, column), under one progress bar.

    With a directory each job keeps its finished cells in a folder of its own, and goes on
    from there when it is run again.
    """
    landscapes: Landscapes = {}
    before, every = 0, sum(job.cells for job in jobs.values())
    with bar() as shown:
        row = shown.add_task("", total=every)
        for (group, name), job in jobs.items():
            shown.update(row, description=f"{name}, {group}")
            landscapes.setdefault(group, {})[name] = run(
                **job._replace(seeds=range(job.seeds))._asdict(),
                directory=directory and directory / re.sub(r"[^\w+.]+", "-", f"{group} {name}"),
                progress=lambda done, total, before=before: shown.update(
                    row, completed=before + done
                ),
            )
            before += job.cells
    return landscapes
