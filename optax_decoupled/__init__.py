"""Decoupled weight decay for Optax, as Loshchilov & Hutter define it."""

import importlib
import types

from optax_decoupled._adam import scale_by_adam
from optax_decoupled._budget import (
    normalized_weight_decay,
    transfer_weight_decay,
    weight_decay_to_normalized,
)
from optax_decoupled._convert import (
    l2_from_weight_decay,
    weight_decay_from_half_life,
    weight_decay_from_pytorch,
    weight_decay_from_timescale,
    weight_decay_to_half_life,
    weight_decay_to_pytorch,
    weight_decay_to_timescale,
)
from optax_decoupled._decay import (
    DecoupledWeightDecayState,
    PulledWeightDecayState,
    add_decoupled_weight_decay,
)
from optax_decoupled._decouple import decouple
from optax_decoupled._dynamics import WeightDynamics, weight_dynamics
from optax_decoupled._equilibrium import (
    Equilibrium,
    equilibrium_adamw,
    equilibrium_lion,
    equilibrium_sgd_l2,
    equilibrium_sgdw,
    rms_over_run,
)
from optax_decoupled._explain import DecayReport, DecayRow, explain_weight_decay
from optax_decoupled._hyperball import HyperballState, hyperball
from optax_decoupled._l2 import adam_l2, l2_to_grad, scale_adjusted_l2_to_grad, sgd_l2
from optax_decoupled._masks import decay_mask
from optax_decoupled._migrate import migrate_opt_state
from optax_decoupled._optimizers import adamc, adamw, sgdw
from optax_decoupled._plan import plan_weight_decay
from optax_decoupled._plan_report import DecayPlan, PlanRow
from optax_decoupled._restarts import adamwr, sgdwr
from optax_decoupled._rounding import apply_updates_with_stochastic_rounding
from optax_decoupled._rules import decay_rules
from optax_decoupled._schedules import (
    log_time_weight_decay,
    normalized_weight_decay_schedule,
    split_schedule,
    warm_restart_position,
    warm_restarts,
)
from optax_decoupled._shardings import opt_state_shardings
from optax_decoupled._toward import Toward, toward_argument, toward_init, toward_rms
from optax_decoupled._version import __version__

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
    "__version__",
    "adam_l2",
    "adamc",
    "adamw",
    "adamwr",
    "add_decoupled_weight_decay",
    "apply_updates_with_stochastic_rounding",
    "decay_mask",
    "decay_rules",
    "decouple",
    "equilibrium_adamw",
    "equilibrium_lion",
    "equilibrium_sgd_l2",
    "equilibrium_sgdw",
    "explain_weight_decay",
    "hyperball",
    "l2_from_weight_decay",
    "l2_to_grad",
    "log_time_weight_decay",
    "migrate_opt_state",
    "normalized_weight_decay",
    "normalized_weight_decay_schedule",
    "opt_state_shardings",
    "plan_weight_decay",
    "rms_over_run",
    "scale_adjusted_l2_to_grad",
    "scale_by_adam",
    "sgd_l2",
    "sgdw",
    "sgdwr",
    "split_schedule",
    "toward_argument",
    "toward_init",
    "toward_rms",
    "transfer_weight_decay",
    "warm_restart_position",
    "warm_restarts",
    "weight_decay_from_half_life",
    "weight_decay_from_pytorch",
    "weight_decay_from_timescale",
    "weight_decay_to_half_life",
    "weight_decay_to_normalized",
    "weight_decay_to_pytorch",
    "weight_decay_to_timescale",
    "weight_dynamics",
]


def __getattr__(name: str) -> types.ModuleType:
    """Imports `sweep` when it is first used."""
    if name == "sweep":
        return importlib.import_module("optax_decoupled.sweep")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "sweep"])
