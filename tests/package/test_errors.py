"""Bad input: every message names the argument, its value, the rule and the way out."""

import collections
import functools
import re
import types
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od


def _update(tx):
    return tx.update(jnp.ones(3), tx.init(jnp.ones(3)), jnp.ones(3))


# Updates that move the weights only now and then.
ACCUMULATING = {
    "MultiSteps": lambda: optax.MultiSteps(optax.sgd(0.1), 4),
    "as a transformation": lambda: optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    "behind clipping": lambda: optax.chain(
        optax.clip(1.0), optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation()
    ),
    "apply_every": lambda: optax.chain(optax.sgd(0.1), optax.apply_every(4)),
    "wrapped": lambda: optax.apply_if_finite(
        optax.chain(optax.sgd(0.1), optax.apply_every(4)), max_consecutive_errors=2
    ),
    "partition": lambda: optax.partition(
        {"a": optax.chain(optax.sgd(0.1), optax.apply_every(4))}, "a"
    ),
}


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
    "eps_root": (lambda: od.scale_by_adam(eps_root=-1e-8), ValueError, ["eps_root=-1e-08", ">= 0"]),
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
        lambda: od.schedules.warm_restarts(10, 0.5),
        ValueError,
        ["cycle_mult=0.5", ">= 1", "2 doubles"],
    ),
    "first_cycle_steps": (
        lambda: od.adamwr(0.1, 0.05, first_cycle_steps=0),
        ValueError,
        ["first_cycle_steps=0", "from 1"],
    ),
    "fractional cycle": (
        lambda: od.schedules.warm_restarts(10.5),  # pyright: ignore[reportArgumentType]
        ValueError,
        ["first_cycle_steps=10.5", "whole number"],
    ),
    "traced cycle": (
        lambda: od.schedules.warm_restarts(jnp.array(10)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["first_cycle_steps=", "static", 'static_args=("first_cycle_steps",)'],
    ),
    "traced mult": (
        lambda: od.schedules.warm_restarts(10, jnp.array(2)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["cycle_mult=", "static", "static_args="],
    ),
    "endless cycles": (
        lambda: od.schedules.warm_restarts(1, 1 + 1e-9)(0),
        ValueError,
        ["cycle_mult=1.000000001", "cycles", "cycle_mult=1 "],
    ),
    "eta_min": (
        lambda: od.schedules.warm_restarts(10, eta_min=1.0),
        ValueError,
        ["eta_min=1.0", "[0, 1)"],
    ),
    "float step": (
        lambda: od.schedules.warm_restarts(10)(0.5),
        TypeError,
        ["step", "float32", "integer", "astype"],
    ),
    "norm": (
        lambda: od.convert.from_normalized(-1, batch_size=1, dataset_size=1, epochs=1),
        ValueError,
        ["norm=-1", ">= 0"],
    ),
    "epochs": (
        lambda: od.convert.from_normalized(0.05, batch_size=1, dataset_size=1, epochs=0),
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
        lambda: od.convert.to_pytorch(1e-3, 0.0),
        ValueError,
        ["learning_rate=0.0", "> 0"],
    ),
    "half-life": (lambda: od.convert.from_half_life(0), ValueError, ["steps=0", "> 0"]),
    "cycles of a normalized decay": (
        lambda: od.schedules.normalized_weight_decay(0.05, 0),
        ValueError,
        ["first_cycle_steps=0", "from 1"],
    ),
    "timescale": (lambda: od.convert.from_timescale(0.5), ValueError, ["steps=0.5", ">= 1"]),
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
    "Adam's nesterov": (
        lambda: od.adamw(0.1, 1e-3, nesterov=1),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["nesterov=1", "True or False"],
    ),
    **{
        f"accumulation inside: {name}": (
            lambda make=make: od.decouple(make(), 1e-3).init(jnp.ones(3)),
            TypeError,
            ["inner", "accumulat", "optax.MultiSteps(decouple("],
        )
        for name, make in ACCUMULATING.items()
    },
    "a dtype through inject_hyperparams": (
        lambda: optax.inject_hyperparams(od.adamw)(0.1, 1e-3, mu_dtype=jnp.bfloat16).init(
            jnp.ones(3)
        ),
        TypeError,
        ["mu_dtype=", "dtype", 'static_args=("mu_dtype",)'],
    ),
    "no dtype": (lambda: od.scale_by_adam(nu_dtype=0.5), TypeError, ["nu_dtype=0.5", "dtype"]),
    "all of the weight and more": (
        lambda: od.sgdw(0.1, 1.5),
        ValueError,
        ["weight_decay=1.5", "<= 1", "sign", "weight_decay_from_pytorch"],
    ),
    "injected, all and more": (
        lambda: optax.inject_hyperparams(od.sgdw)(0.1, 1.5).init(jnp.ones(3)),
        ValueError,
        ["weight_decay=", "1.5", "<= 1"],
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
    "a missing scale": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": 1.0}).init(
            {"a": jnp.ones(2), "b": jnp.ones(2)}
        ),
        ValueError,
        ["scale", "lacks ['b']", "besides []"],
    ),
    "a foreign scale": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": 1.0, "b": 1.0}).init({"a": jnp.ones(2)}),
        ValueError,
        ["scale", "lacks []", "besides ['b']"],
    ),
    "scale's shape": (
        lambda: od.scale_adjusted_l2_to_grad(0.1, {"a": jnp.ones(3)}).init({"a": jnp.ones(1)}),
        ValueError,
        ["scale at 'a'", "(3,)", "(1,)"],
    ),
    "a mask as schedule": (
        lambda: od.add_decoupled_weight_decay(1e-4, od.decay_mask),
        TypeError,
        ["schedule=", "is a mask", "function of the step", "mask="],
    ),
    "a mask as decay": (
        lambda: od.decouple(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        TypeError,
        ["weight_decay=", "returns False whatever", "mask="],
    ),
    "a long value": (
        lambda: od.toward_argument({str(i): jnp.ones(20) for i in range(20)}),
        TypeError,
        ["name={'0': Array", "...", "must be a keyword"],
    ),
    "another keyword": (
        lambda: _pulled().update(jnp.ones(2), _pulled().init(jnp.ones(2)), jnp.ones(2), teacher=1),
        ValueError,
        ["reference=None", "got teacher"],
    ),
    "complex moment": (
        lambda: od.scale_by_adam(mu_dtype=jnp.float32).init(jnp.ones(1, complex)),
        ValueError,
        ["mu_dtype", "complex", "None"],
    ),
    "complex moment of real parameters": (
        lambda: od.adamw(0.1, 1e-3, mu_dtype="complex64").init(jnp.ones(1)),
        ValueError,
        ["mu_dtype='complex64'", "real", "None"],
    ),
    **{
        f"{name} of {dtype}": (
            lambda name=name, dtype=dtype: od.adam_l2(0.1, 1e-3, **{name: dtype}),
            ValueError,
            [f"{name}=", "floating dtype of at least 16 bits", "bfloat16"],
        )
        for name in ("mu_dtype", "nu_dtype")
        for dtype in ("int8", "int32", "bool", "uint16", "float8_e5m2", "float8_e4m3fn")
    },
    "complex square": (
        lambda: od.scale_by_adam(nu_dtype=jnp.complex64),
        ValueError,
        ["nu_dtype=", "floating", "None"],
    ),
    "complex rate on a device": (
        lambda: od.adamw(jnp.complex64(0.1), 1e-3),
        TypeError,
        ["learning_rate has dtype complex64", ">= 0"],
    ),
    "bool decay on a device": (
        lambda: od.l2_to_grad(jnp.array(True)),
        TypeError,
        ["l2 has dtype bool", ">= 0"],
    ),
    **{
        f"None for all updates: {name}": (
            lambda make=make: make().update(None, make().init([jnp.ones(2)]), [jnp.ones(2)]),
            ValueError,
            ["updates has the structure PyTreeDef(None)", "params", "None only for single leaves"],
        )
        for name, make in {
            "decay": lambda: od.add_decoupled_weight_decay(1e-4),
            "L2": lambda: od.l2_to_grad(1e-4),
            "pull": lambda: od.add_decoupled_weight_decay(1e-4, toward=od.toward_init()),
        }.items()
    },
    "updates of other parameters": (
        lambda: od.apply_updates_with_stochastic_rounding(
            {"w": jnp.ones(2)}, {"v": jnp.ones(2)}, jax.random.key(0)
        ),
        ValueError,
        ["updates has the structure", "must be that of params", "tx.update"],
    ),
    "no direction": (
        lambda: od.hyperball(optax.identity(), 0.1).update(
            None, od.hyperball(optax.identity(), 0.1).init([jnp.ones(2)]), [jnp.ones(2)]
        ),
        ValueError,
        ["updates has the structure", "direction"],
    ),
    "key as decay": (
        lambda: od.add_decoupled_weight_decay(jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ["weight_decay", "key<"],
    ),
}


def _pulled():
    return od.sgdw(0.1, 1e-4, toward=od.toward_argument())


def test_long_values_are_cut():
    with pytest.raises(TypeError) as caught:
        od.adamw(1e-3, {str(i): jnp.ones(50) for i in range(50)})
    assert len(str(caught.value)) < 700
    with pytest.raises(TypeError) as caught:
        od.toward_argument({str(i): jnp.ones(50) for i in range(50)})
    assert len(str(caught.value)) < 700


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
    with pytest.warns(UserWarning, match=r"weight_decay_from_pytorch\(0.05, learning_rate"):
        od.adamw(1.0, 0.05)  # times 1 is no conversion
    with pytest.warns(UserWarning, match=r"weight_decay_from_pytorch\(0.05, learning_rate"):
        od.adamw(0.0, 0.05)  # nor is times 0, which it refuses
    falling = optax.cosine_decay_schedule(0.003, 100)
    with pytest.warns(UserWarning, match=r"from_pytorch\(0.1, 0.003\) = 0.0003"):
        od.adamw(falling, 0.1, decay_schedule=1.0)
    with pytest.warns(UserWarning, match=r"from_pytorch\(0.1, 0.003\) = 0.0003"):
        od.equilibrium.rms_over_run(falling, 0.1, None, 10, 1.0)
    with pytest.warns(UserWarning, match="weight_decay_from_pytorch") as caught:
        od.decouple(optax.sgd(0.1), 0.01)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="weight_decay_from_pytorch") as caught:
        od.adamw(1e-3, 0.7)  # and looks like a multiplier, too
    assert len(caught) == 1


def test_injected_decays_of_pytorchs_size_warn_too():
    with pytest.warns(UserWarning, match=r"weight_decay=0\.1.* removes 0\.1 ") as caught:
        optax.inject_hyperparams(od.adamw)(0.003, 0.1).init(jnp.ones(3))
    assert caught[0].filename == __file__


def test_a_small_multiplier_makes_a_large_decay_small():
    """PyTorch's value with the schedule of the rate: the convention of Optax, by hand."""
    rate = optax.cosine_decay_schedule(3e-4, 1000)
    od.add_decoupled_weight_decay(0.1, rate)
    od.decouple(optax.sgd(rate), 0.1, rate)
    od.adamw(rate, 0.1, decay_schedule=rate)


RATE = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 1000, 100_000)
MISTAKEN = {
    "adamw": (lambda: od.adamw(3e-4, 1e-4, schedule=RATE), ["0.0003", "multiplier", "split_sche"]),
    "sgdw": (
        lambda: od.sgdw(0.1, 1e-4, schedule=optax.exponential_decay(0.1, 100, 0.9)),
        ["0.1 at most", "multiplier", "split_schedule"],
    ),
    "adam_l2": (lambda: od.adam_l2(3e-4, 1e-4, schedule=RATE), ["0.0003", "split_schedule"]),
    "decouple": (
        lambda: od.decouple(optax.sgd(0.1), 1e-4, RATE),
        ["0.0003", "weight_decay=0.0001", "3e-08", "multiplier"],
    ),
    "one function twice": (
        lambda: od.adamw(ONES, 1e-4, schedule=ONES),
        ["move alike", "twice", "split_schedule"],
    ),
    "a rate and its shape": (
        lambda: od.sgdw(RATE, 1e-4, schedule=od.split_schedule(RATE, 3e-4)[1]),
        ["move alike", "twice", "split_schedule"],
    ),
    "too small a peak": (
        lambda: od.split_schedule(optax.constant_schedule(1e-3), peak=1e-4),
        ["peak=0.0001", "about 0.001", "reach 10", "own peak"],
    ),
    "too large a peak": (
        lambda: od.split_schedule(RATE, peak=3e-3),
        ["peak=0.003", "about 0.0003", "instead of 1"],
    ),
}
ONES = optax.cosine_decay_schedule(1.0, 100)
MISTAKEN["rate and multiplier swapped"] = (
    lambda: od.adamw(ONES, 1e-4, schedule=1e-3),
    ["0.001 at most", "multiplier", "split_schedule"],
)
MISTAKEN["a large rate and multiplier swapped"] = (
    lambda: od.sgdw(ONES, 1e-4, schedule=0.5),
    ["reaches 1", "constant 0.5", "swapped", "split_schedule"],
)
MISTAKEN["swapped after a warmup, both functions"] = (
    lambda: od.adam_l2(WARMED, 1e-4, schedule=optax.constant_schedule(3.0)),
    ["reaches 1", "constant 3", "swapped", "split_schedule"],
)
WARMED = optax.warmup_cosine_decay_schedule(0.0, 1.0, 700, 100_000)


def test_a_multiplier_with_a_long_warmup_warns_too():
    with pytest.warns(UserWarning, match="weight_decay reaches"):
        od.adamw(1e-3, optax.linear_schedule(0.0, 1.0, 30_000))


def test_a_pull_may_be_strong_now_and_then():
    every_fifth = lambda step: jnp.where(step % 5 == 4, 0.5, 0.0)
    od.add_decoupled_weight_decay(every_fifth, toward=od.toward_argument())
    with pytest.warns(UserWarning, match="weight_decay reaches"):
        od.add_decoupled_weight_decay(every_fifth)


def test_a_schedule_may_be_a_comparison():
    tx = od.add_decoupled_weight_decay(1e-3, lambda step: step < 1)
    params = jnp.ones(2)
    state = tx.init(params)
    first, state = tx.update(jnp.zeros(2), state, params)
    second, _ = tx.update(jnp.zeros(2), state, params)
    np.testing.assert_allclose(first, -1e-3, rtol=1e-6)
    np.testing.assert_array_equal(second, 0)


# Masks of this package, and functions of a user's that return bools.
MASKS = {
    "decay_mask": od.decay_mask,
    "decay_rules": od.decay_rules(("a", 0.5), default=0.0),
    "decay_rules, unused": od.decay_rules(("a", 0.5), default=0.5, unused="ignore"),
    "decay_rules, decay_mask": od.decay_rules(("a", 0.5), default=od.decay_mask, unused="ignore"),
    "part of decay_rules": functools.partial(od.decay_rules(("a", 0.5), default=0.0)),
    "bools": lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
}
ARGUMENTS = {
    "schedule": [
        lambda mask: od.adamw(1e-3, 1e-4, schedule=mask),
        lambda mask: od.add_decoupled_weight_decay(1e-4, schedule=mask),
        lambda mask: od.decouple(optax.sgd(0.1), 1e-4, schedule=mask),
        lambda mask: od.sgd_l2(0.1, 1e-4, schedule=mask),
    ],
    "weight_decay": [
        lambda mask: od.adamw(1e-3, mask),
        lambda mask: od.add_decoupled_weight_decay(mask),
        lambda mask: od.decouple(optax.sgd(0.1), mask),
    ],
    "decay_schedule": [
        lambda mask: od.adamw(1e-3, 1e-4, decay_schedule=mask),
        lambda mask: od.sgdw(0.1, 1e-4, decay_schedule=mask),
    ],
    "learning_rate": [
        lambda mask: od.adamw(mask, 1e-4, decay_schedule=1.0),
        lambda mask: od.hyperball(optax.scale_by_adam(), mask),
    ],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_mask_in_the_place_of_a_schedule_is_refused(argument, mask):
    for make in ARGUMENTS[argument]:
        with pytest.raises(TypeError, match=rf"^{argument}=.* is a mask.*mask="):
            make(mask)


class _Anything:
    """A schedule that has every attribute, as a proxy or a recorder of calls may have."""

    def __getattr__(self, name):
        return self

    def __call__(self, step):
        return 1.0


def test_an_object_with_every_attribute_is_no_mask():
    od.adamw(1e-3, 1e-4, schedule=_Anything())
    od.adamw(1e-3, 1e-4, schedule=functools.partial(lambda scale, step: scale, 1.0))


@pytest.mark.parametrize(
    "number", [np.str_("1e-4"), np.array("1e-4"), np.array(True), np.array(None), np.bytes_(b"0")]
)
def test_text_bools_and_objects_of_numpy_are_no_numbers(number):
    with pytest.raises(TypeError, match=r"^l2 has dtype .* >= 0"):
        od.l2_to_grad(number)


def test_a_rate_and_a_constant_schedule_are_seldom_swapped():
    od.sgdw(ONES, 1e-4, schedule=1.0)
    od.sgdw(lambda step: 2 * ONES(step), 1e-4, schedule=0.5)  # reaches 2: no multiplier
    od.sgdw(lambda step: 0.5 * ONES(step), 1e-4, schedule=0.5)
    od.sgdw(optax.constant_schedule(1.0), 1e-4, schedule=0.5)
    od.sgdw(1.0, 1e-4, schedule=0.5)
    od.sgdw(ONES, 1e-4, schedule=0.0)
    od.sgdw(ONES, 1e-4, schedule=jnp.float32(0.5))  # as inject_hyperparams passes it
    od.sgdw(ONES, 1e-4, schedule=WARMED)


def test_a_rate_and_a_schedule_of_other_shapes_are_meant():
    od.adamw(RATE, 1e-4, schedule=ONES)
    od.adamw(optax.constant_schedule(1e-3), 1e-4, schedule=optax.constant_schedule(1.0))
    drops = [optax.piecewise_constant_schedule(1.0, {step: 0.1}) for step in (6000, 8000)]
    od.adamw(drops[0], 1e-4, schedule=drops[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda decay: od.adamw(1e-3, decay),
        lambda decay: od.sgdw(0.1, decay, schedule=ONES),
        lambda decay: od.decouple(optax.sgd(0.1), decay),
        od.add_decoupled_weight_decay,
    ],
)
def test_a_multiplier_where_a_decay_belongs_warns(make):
    with pytest.warns(UserWarning, match=r"weight_decay reaches 1: .* goes in as schedule") as told:
        make(ONES)
    assert len(told) == 1
    assert told[0].filename == __file__
    make(lambda step: 1e-4 * ONES(step))
    make(od.schedules.log_time_weight_decay(100))  # removes 0.4 at first, and means it
    make(lambda step: 1e-6 * step)  # no run is so long that this would matter


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"width": (1, 2), "exponent": 0.5}, "exponent=0.5 does nothing without steps="),
        ({"steps": (1, 2), "width_exponent": 0.5}, "width_exponent=0.5 .* without width="),
    ],
)
def test_an_exponent_of_what_does_not_change_warns(kwargs, says):
    with pytest.warns(UserWarning, match=says) as told:
        od.convert.transfer(1e-4, **kwargs)
    assert told[0].filename == __file__


def test_what_a_mask_function_raises_says_that_it_is_the_mask():
    tx = od.adamw(1e-3, 1e-4, mask=lambda path, leaf: True)
    with pytest.raises(TypeError) as caught:
        tx.init({"a": jnp.ones(2)})
    assert "is called with the tree of parameters" in "".join(caught.value.__notes__)
    with pytest.raises(ValueError, match="matches no parameter") as caught:
        od.adamw(1e-3, 1e-4, mask=od.decay_rules(("b", 1.0), default=0.0)).init({"a": jnp.ones(2)})
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_learning_rate_where_a_multiplier_belongs_warns(name):
    make, parts = MISTAKEN[name]
    with pytest.warns(UserWarning, match="split_schedule|own peak") as caught:
        make()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert re.search(".*".join(map(re.escape, parts)), text), text


MULTIPLIERS = {
    "warmup": lambda: optax.warmup_cosine_decay_schedule(0.0, 1.0, 10_000, 1_000_000),
    "long warmup": lambda: optax.linear_schedule(0.0, 1.0, 3_000_000),
    "short run": lambda: optax.cosine_onecycle_schedule(7, 1.0),
    "one step": lambda: lambda step: jnp.where(step == 0, 1.0, 0.0),
    "restarts": lambda: od.schedules.warm_restarts(50, 2),
    "drops": lambda: optax.piecewise_constant_schedule(1.0, {10: 0.1, 20: 0.1}),
    "Python's branches": lambda: lambda step: 1e-4 if step < 10 else 1e-5,
    "split": lambda: od.split_schedule(RATE, 3e-4)[1],
}


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_multipliers_do_not_warn(name):
    schedule = MULTIPLIERS[name]()
    od.adamw(3e-4, 1e-4, schedule=schedule)
    od.adamw(RATE, 1e-4, decay_schedule=schedule)
    od.decouple(optax.sgd(0.1), 1e-4, schedule)


def test_traced_schedules_are_not_looked_at():
    @jax.jit
    def steps(scale):
        schedule = lambda count: scale * jnp.cos(count)
        return _update(od.adamw(0.1, 1e-4, schedule=schedule))[0]

    assert jnp.isfinite(steps(1e-4)).all()


def test_decays_of_the_papers_size_do_not_warn():
    od.adamw(0.003, 0.0099)
    od.adamw(0.003, jnp.asarray(0.0099))


LAYERS = {f"layer_{i}": {"kernel": jnp.ones(2), "bias": jnp.ones(2)} for i in range(200)}


@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({**LAYERS, "layer_77": {"kernel": jnp.ones(2)}}, ["It lacks 'layer_77/bias'."]),
        ({**LAYERS, "head": jnp.ones(2)}, ["It has besides 'head'."]),
        (LAYERS["layer_0"], ["It lacks 'layer_0/bias'", "395 more", "besides 'bias', 'kernel'"]),
        (types.MappingProxyType(LAYERS), ["It lacks", "besides ''"]),
        (collections.OrderedDict(LAYERS), ["Expected dict, got OrderedDict"]),
    ],
    ids=["one less", "one more", "a layer alone", "no tree", "another container"],
)
def test_updates_of_another_structure_are_named_by_path_and_not_printed(updates, words):
    tx = od.add_decoupled_weight_decay(1e-4)
    with pytest.raises(ValueError, match="updates has the structure") as caught:
        tx.update(updates, tx.init(LAYERS), LAYERS)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 600
    assert caught.value.__suppress_context__  # JAX's own error prints the arrays
