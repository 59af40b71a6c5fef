"""Landscapes: train a model over a grid of learning rates and weight decays.

As in the paper's Figures 1 and 2, for any JAX model. The step is compiled once: the
hyperparameters are its arguments, and every cell of the grid runs the same program.

The progress bar and the plot need the extra ``optax-decoupled[sweep]``. The module is
imported at its first use, not by ``import optax_decoupled``.
"""

from optax_decoupled.sweep._landscape.coupling import Shear, shear
from optax_decoupled.sweep._landscape.crossfit import Estimate
from optax_decoupled.sweep._landscape.landscape import Best, Landscape
from optax_decoupled.sweep._landscape.tuning import (
    Advantage,
    Basin,
    SequentialCost,
    TuningCost,
    advantage,
    basin,
    tuning_cost,
)
from optax_decoupled.sweep._landscape.valley import ValleySlope
from optax_decoupled.sweep.sweep import run
from optax_decoupled.sweep.task import Task

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
