"""Landscapes: train a model over a grid of learning rates and weight decays.

The paper's tool of thought, for any JAX model. The step is compiled once, with the
hyperparameters as arguments, and every cell of the grid runs the same program.

The progress bar and the plot need the extra ``optax-decoupled[sweep]``. This module is
imported when it is first used, and not by ``import optax_decoupled``.
"""

from optax_decoupled.sweep.coupling import Shear, shear
from optax_decoupled.sweep.crossfit import Estimate
from optax_decoupled.sweep.landscape import Best, Landscape
from optax_decoupled.sweep.sweep import run
from optax_decoupled.sweep.task import Task
from optax_decoupled.sweep.tuning import (
    Advantage,
    Basin,
    SequentialCost,
    TuningCost,
    advantage,
    basin,
    tuning_cost,
)
from optax_decoupled.sweep.valley import ValleySlope

__all__ = [
    "Advantage",
    "Basin",
    "Best",
    "Estimate",
    "Landscape",
    "SequentialCost",
    "Shear",
    "Task",
    "TuningCost",
    "ValleySlope",
    "advantage",
    "basin",
    "run",
    "shear",
    "tuning_cost",
]


def __dir__() -> list[str]:
    return sorted(__all__)
