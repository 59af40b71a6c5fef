"""Decoupled weight decay for Optax, as Loshchilov & Hutter define it."""

import importlib
from types import ModuleType

from optax_decoupled import convert, equilibrium, schedules, types
from optax_decoupled._explain import explain_weight_decay
from optax_decoupled._optimizers.coupled import adam_l2, sgd_l2
from optax_decoupled._optimizers.decouple import decouple
from optax_decoupled._optimizers.decoupled import adamc, adamw, sgdw
from optax_decoupled._optimizers.restarts import adamwr, sgdwr
from optax_decoupled._plan.plan import plan_weight_decay
from optax_decoupled._select.masks import decay_mask
from optax_decoupled._select.rules import decay_rules
from optax_decoupled._state.migrate import migrate_opt_state
from optax_decoupled._state.shardings import opt_state_shardings
from optax_decoupled._transforms.adam import scale_by_adam
from optax_decoupled._transforms.decay import add_decoupled_weight_decay
from optax_decoupled._transforms.l2 import l2_to_grad, scale_adjusted_l2_to_grad
from optax_decoupled._transforms.norms import hyperball, norm_change
from optax_decoupled._transforms.rounding import apply_updates_with_stochastic_rounding
from optax_decoupled._transforms.toward import toward_argument, toward_init, toward_rms
from optax_decoupled._version import __version__
from optax_decoupled._watch.dynamics import weight_dynamics
from optax_decoupled._watch.history import recorded_weight_dynamics
from optax_decoupled._watch.recorder import record_weight_dynamics
from optax_decoupled.convert import from_pytorch as weight_decay_from_pytorch
from optax_decoupled.schedules import split_schedule

__all__ = [
    "__version__",
    "adam_l2",
    "adamc",
    "adamw",
    "adamwr",
    "add_decoupled_weight_decay",
    "apply_updates_with_stochastic_rounding",
    "convert",
    "decay_mask",
    "decay_rules",
    "decouple",
    "equilibrium",
    "explain_weight_decay",
    "hyperball",
    "l2_to_grad",
    "migrate_opt_state",
    "norm_change",
    "opt_state_shardings",
    "plan_weight_decay",
    "record_weight_dynamics",
    "recorded_weight_dynamics",
    "scale_adjusted_l2_to_grad",
    "scale_by_adam",
    "schedules",
    "sgd_l2",
    "sgdw",
    "sgdwr",
    "split_schedule",
    "toward_argument",
    "toward_init",
    "toward_rms",
    "types",
    "weight_decay_from_pytorch",
    "weight_dynamics",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `sweep` when it is first used."""
    if name == "sweep":
        return importlib.import_module("optax_decoupled.sweep")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "sweep"])
