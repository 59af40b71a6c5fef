"""States and results of this package, for annotations and `isinstance`."""

from optax_decoupled._explain.report import DecayReport, DecayRow
from optax_decoupled._plan.report import DecayPlan, PlanRow
from optax_decoupled._transforms.decay import DecoupledWeightDecayState, PulledWeightDecayState
from optax_decoupled._transforms.norms import HyperballState
from optax_decoupled._transforms.toward import Toward
from optax_decoupled._watch.dynamics import WeightDynamics, WeightForces
from optax_decoupled._watch.history import WeightHistory
from optax_decoupled._watch.recorder import WeightHistoryState
from optax_decoupled._watch.row import WeightHistoryRow
from optax_decoupled.equilibrium import Equilibrium

__all__ = [
    "DecayPlan",
    "DecayReport",
    "DecayRow",
    "DecoupledWeightDecayState",
    "Equilibrium",
    "HyperballState",
    "PlanRow",
    "PulledWeightDecayState",
    "Toward",
    "WeightDynamics",
    "WeightForces",
    "WeightHistory",
    "WeightHistoryRow",
    "WeightHistoryState",
]


def __dir__() -> list[str]:
    return __all__
