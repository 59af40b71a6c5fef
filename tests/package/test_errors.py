"""Bad input: every message names the argument, its value, the rule and the way out."""

import re
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od


def _update(tx):
    return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


# (call, exception, what the message must contain, in this order)
REFUSED = {
    "negative decay": (
        lambda: od.adamw(0.1, -1e-3),
        ValueError,
        ["weight_decay=-0.001", ">= 0", "e.g. 1e-4"],
    ),
    "NaN decay": (lambda: od.sgdw(0.1, np.nan), ValueError, ["weight_decay=nan", ">= 0"]),
    "infinite decay": (lambda: od.decouple(optax.sgd(1), np.inf), ValueError, ["weight_decay=inf"]),
    "decay as text": (
        lambda: od.add_decoupled_weight_decay("1e-3"),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["weight_decay='1e-3'", "str", ">= 0", "e.g. 1e-4"],
    ),
    "decay as bool": (
        lambda: od.add_decoupled_weight_decay(True),
        TypeError,
        ["weight_decay=True", "bool"],
    ),
    "decay as vector": (
        lambda: od.adamw(0.1, jnp.ones(3)),
        ValueError,
        ["weight_decay", "(3,)", "scalar", "jax.vmap"],
    ),
    "NumPy decay": (lambda: od.adamw(0.1, np.float32(-1)), ValueError, ["weight_decay", "-1.0"]),
    "negative rate": (
        lambda: od.adamw(-0.1, 1e-3),
        ValueError,
        ["learning_rate=-0.1", ">= 0", "positive step size"],
    ),
    "b1": (lambda: od.adamw(0.1, 1e-3, b1=1.0), ValueError, ["b1=1.0", "[0, 1)"]),
    "b2": (lambda: od.adam_l2(0.1, 1e-3, b2=-0.1), ValueError, ["b2=-0.1", "[0, 1)"]),
    "eps": (lambda: od.scale_by_adam(eps=-1e-8), ValueError, ["eps=-1e-08", ">= 0"]),
    "momentum": (lambda: od.sgdw(0.1, 1e-3, momentum=1.5), ValueError, ["momentum=1.5", "[0, 1)"]),
    "l2": (lambda: od.sgd_l2(0.1, -1.0), ValueError, ["l2=-1.0", ">= 0"]),
    "schedule": (
        lambda: od.adamw(0.1, 1e-3, schedule=-1.0),
        ValueError,
        ["schedule=-1.0", ">= 0", "None for 1"],
    ),
    "callable rate alone": (
        lambda: od.adamw(optax.constant_schedule(0.1), 1e-3),
        ValueError,
        ["learning_rate=", "(1)", "split_schedule", "(2)", "decay_schedule=", "(3)"],
    ),
    "callable rate alone, SGD": (
        lambda: od.sgdw(optax.constant_schedule(0.1), 1e-3),
        ValueError,
        ["learning_rate=", "split_schedule"],
    ),
    "cycle_mult": (
        lambda: od.warm_restarts(10, 0.5),
        ValueError,
        ["cycle_mult=0.5", ">= 1", "2 doubles"],
    ),
    "first_cycle_steps": (
        lambda: od.adamwr(0.1, 0.05, first_cycle_steps=0),
        ValueError,
        ["first_cycle_steps=0", "from 1"],
    ),
    "fractional cycle": (
        lambda: od.warm_restarts(10.5),  # pyright: ignore[reportArgumentType]
        ValueError,
        ["first_cycle_steps=10.5", "whole number"],
    ),
    "traced cycle": (
        lambda: od.warm_restarts(jnp.array(10)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["first_cycle_steps=", "static", 'static_args=("first_cycle_steps",)'],
    ),
    "traced mult": (
        lambda: od.warm_restarts(10, jnp.array(2)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["cycle_mult=", "static", "static_args="],
    ),
    "endless cycles": (
        lambda: od.warm_restarts(1, 1 + 1e-9)(0),
        ValueError,
        ["cycle_mult=1.000000001", "cycles", "cycle_mult=1 "],
    ),
    "eta_min": (lambda: od.warm_restarts(10, eta_min=1.0), ValueError, ["eta_min=1.0", "[0, 1)"]),
    "float step": (
        lambda: od.warm_restarts(10)(0.5),
        TypeError,
        ["step", "float32", "integer", "astype"],
    ),
    "norm": (
        lambda: od.normalized_weight_decay(-1, batch_size=1, dataset_size=1, epochs=1),
        ValueError,
        ["norm=-1", ">= 0"],
    ),
    "epochs": (
        lambda: od.normalized_weight_decay(0.05, batch_size=1, dataset_size=1, epochs=0),
        ValueError,
        ["epochs=0", "> 0"],
    ),
    "split": (
        lambda: od.split_schedule(0.1, 0.1),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["learning_rate_schedule=0.1", "schedule", "learning_rate"],
    ),
    "peak": (
        lambda: od.split_schedule(optax.constant_schedule(0.1), 0.0),
        ValueError,
        ["peak=0.0", "> 0"],
    ),
    "conversion": (
        lambda: od.weight_decay_to_pytorch(1e-3, 0.0),
        ValueError,
        ["learning_rate=0.0", "> 0"],
    ),
    "half-life": (lambda: od.weight_decay_from_half_life(0), ValueError, ["steps=0", "> 0"]),
    "timescale": (lambda: od.weight_decay_from_timescale(0.5), ValueError, ["steps=0.5", ">= 1"]),
    "cautious": (
        lambda: od.adamw(0.1, 1e-3, cautious=1),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["cautious=1", "True or False"],
    ),
    "nesterov": (
        lambda: od.sgdw(0.1, 1e-3, nesterov="yes"),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["nesterov='yes'", "True or False"],
    ),
    "accumulation inside": (
        lambda: od.decouple(optax.MultiSteps(optax.sgd(0.1), 4), 1e-3),
        TypeError,
        ["inner=", "accumulat", "optax.MultiSteps(decouple("],
    ),
    "accumulation inside, as a transformation": (
        lambda: od.decouple(optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(), 1e-3),
        TypeError,
        ["inner=", "accumulat", "optax.MultiSteps(decouple("],
    ),
    "a number that is no array's": (
        lambda: od.adamw(Decimal("0.1"), 1e-3),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["learning_rate=Decimal('0.1')", "a Decimal", ">= 0"],
    ),
    "a schedule of vectors": (
        lambda: _update(od.adamw(0.1, 1e-3, decay_schedule=lambda _: jnp.ones(3))),
        ValueError,
        ["weight_decay times schedule", "(3,)", "scalars", "mask"],
    ),
    "an array of scales": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": np.array([1.0, -1.0])}),
        ValueError,
        ["scale at 'a'", "-1.0", "> 0"],
    ),
    "inner": (
        lambda: od.decouple(optax.sgd, 1e-3),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["inner=", "GradientTransformation", "factory"],
    ),
    "scale": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": -1.0}),
        ValueError,
        ["scale at 'a'", "-1.0", "> 0"],
    ),
    "scale's structure": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": 1.0}).init({"b": jnp.ones(2)}),
        ValueError,
        ["scale", "parameters", "lacks", "'b'", "besides", "'a'", "jax.tree.map"],
    ),
    "scale's shape": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": jnp.ones(3)}).init({"a": jnp.ones(1)}),
        ValueError,
        ["scale at 'a'", "(3,)", "(1,)"],
    ),
    "complex moment": (
        lambda: od.scale_by_adam(mu_dtype=jnp.float32).init(jnp.ones(1, complex)),
        ValueError,
        ["mu_dtype", "complex", "None"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, exception, parts = REFUSED[name]
    with pytest.raises(exception) as caught:
        call()
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value), re.DOTALL), caught.value


@pytest.mark.parametrize(
    ("tx", "name"),
    [
        (od.add_decoupled_weight_decay(1e-3), "add_decoupled_weight_decay"),
        (od.adamw(0.1, 1e-3), "add_decoupled_weight_decay"),
        (od.l2_to_grad(1e-3), "l2_to_grad"),
        (od.scale_adjusted_l2_to_grad(1e-3, jnp.ones(2)), "scale_adjusted_l2_to_grad"),
    ],
)
def test_missing_params_name_the_transform(tx, name):
    state = tx.init(jnp.ones(2))
    with pytest.raises(
        ValueError, match=rf"params=None in {name}.*tx.update\(grads, state, params"
    ):
        tx.update(jnp.ones(2), state)


def test_a_decay_of_pytorchs_size_warns_with_the_converted_value():
    with pytest.warns(UserWarning, match=r"weight_decay=0.1 .*\(0.1, 0.003\) = 0.0003") as caught:
        od.adamw(0.003, 0.1)
    assert caught[0].filename == __file__  # it points at the user's line
    with pytest.warns(UserWarning, match=r"weight_decay_from_pytorch\(weight_decay, lear"):
        od.adamw(1.0, 0.05)  # times 1 is no conversion
    with pytest.warns(UserWarning, match="weight_decay_from_pytorch") as caught:
        od.decouple(optax.sgd(0.1), 0.01)
    assert caught[0].filename == __file__
    assert len(caught) == 1


def test_decays_of_the_papers_size_do_not_warn():
    od.adamw(0.003, 0.0099)
    od.adamw(0.003, jnp.asarray(0.1))  # arrays are never looked at
