"""One table of the package's optimizers: what the contract tests run on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

import optax_decoupled as od


class Case(NamedTuple):
    """An optimizer, its arguments and what it can do.

    Attributes:
      factory: the function under test.
      kwargs: arguments that solve the test problems, with a negligible decay.
      static_args: arguments that optax.inject_hyperparams must leave alone.
      decay: the argument that turns the decay on.
      decoupled: zero gradients leave θ(1 − c).
      preconditioned: L2 passes through a preconditioner.
      pulled: the decay is 0 at the initial weights, not at 0.
      strict: it works under strict dtype promotion; False where Optax's part does not.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: dict[str, Any]
    static_args: tuple[str, ...] = ()
    decay: str = "weight_decay"
    decoupled: bool = True
    preconditioned: bool = False
    pulled: bool = False
    strict: bool = True

    def make(self, **overrides: Any) -> optax.GradientTransformationExtraArgs:
        return self.factory(**{**self.kwargs, **overrides})


def _decoupled_adam(weight_decay, schedule=None, mask=None):
    return od.decouple(optax.adam(0.1), weight_decay, schedule, mask=mask)


def _braked_adamw(learning_rate, weight_decay, outward):
    return optax.chain(od.adamw(learning_rate, weight_decay), od.norm_change(outward=outward))


ADAM = dict(learning_rate=0.1, weight_decay=1e-7)
SGD = dict(learning_rate=1e-3, weight_decay=1e-7)
CYCLES = dict(first_cycle_steps=500, normalized_weight_decay=1e-6)
STATIC_CYCLES = ("first_cycle_steps", "cycle_mult")
SLOW = optax.linear_schedule(1.0, 0.2, 10_000)

CASES = {
    "adamw": Case(od.adamw, ADAM),
    "adamw nesterov": Case(od.adamw, {**ADAM, "learning_rate": 0.01, "nesterov": True}),
    "adamw scheduled": Case(od.adamw, {**ADAM, "schedule": SLOW}),
    "adamw cautious": Case(od.adamw, {**ADAM, "cautious": True}),
    "adamw to the start": Case(
        od.adamw, {**ADAM, "toward": od.toward_init()}, ("toward",), pulled=True
    ),
    "adamw with a radial brake": Case(_braked_adamw, {**ADAM, "outward": 0.5}),
    "adamc": Case(od.adamc, {**ADAM, "schedule": SLOW}, static_args=("normalized",)),
    "sgdw": Case(od.sgdw, SGD),
    "sgdw nesterov": Case(
        od.sgdw, {**SGD, "learning_rate": 5e-4, "momentum": 0.95, "nesterov": True}
    ),
    "sgdw of PyTorch": Case(od.sgdw, {**SGD, "scale_before_momentum": False}),
    "sgdw scheduled": Case(od.sgdw, {**SGD, "schedule": SLOW}),
    "adam_l2": Case(
        od.adam_l2,
        dict(learning_rate=0.1, l2=1e-6),
        decay="l2",
        decoupled=False,
        preconditioned=True,
    ),
    "sgd_l2": Case(od.sgd_l2, dict(learning_rate=1e-3, l2=1e-6), decay="l2", decoupled=False),
    "adamwr": Case(
        od.adamwr,
        dict(learning_rate=0.1, **CYCLES),
        static_args=STATIC_CYCLES,
        decay="normalized_weight_decay",
    ),
    "sgdwr": Case(
        od.sgdwr,
        dict(learning_rate=1e-3, **CYCLES),
        static_args=STATIC_CYCLES,
        decay="normalized_weight_decay",
    ),
    "decouple": Case(_decoupled_adam, dict(weight_decay=1e-7), strict=False),
}
