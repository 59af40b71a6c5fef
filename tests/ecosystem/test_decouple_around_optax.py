"""`decouple` around every optimizer of Optax, and the table of the page "Any optimizer"."""

import functools
import inspect
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import PAGES
from test_every_optimizer_of_optax import ARGUMENTS, FACTORIES

import optax_decoupled as od

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Optax's arguments
WEIGHTS = np.random.default_rng(0).normal(size=(8, 4)) + 3.0
GRADIENT = 0.1 * np.cos(7 * WEIGHTS)
DECAYS = ("weight_decay", "weight_decay_rate", "adam_weight_decay")
# Parts of optimizers, and wrappers of them.
NO_OPTIMIZERS = {"scale_by_learning_rate", "scale_by_madgrad", "scale_by_rprop", "schedule_free"}
WITHOUT_RATE = {"lbfgs", "polyak_sgd"}
NAMES = sorted(
    {
        name
        for name, factory in FACTORIES.items()
        if "learning_rate" in inspect.signature(factory).parameters
    }
    - NO_OPTIMIZERS
    | WITHOUT_RATE
)


def loss(params):
    return jnp.sum(params["kernel"] ** 2) + 1.0


NEEDS = {  # what `update` needs besides
    "lbfgs": ("`value=`, `grad=`, `value_fn=`", ("value", "grad", "value_fn")),
    "momo": ("`value=`", ("value",)),
    "momo_adam": ("`value=`", ("value",)),
    "polyak_sgd": ("`value=`", ("value",)),
    "sophia": ("`obj_fn=`", ("obj_fn",)),
    "dpsgd": ("a gradient per example", ()),
}
# What no argument turns off.
FIXED = {"fromage": ("1 - 1/√(1 + rate²)", "cannot be")}


def decays_of(name):
    return [x for x in DECAYS if x in inspect.signature(FACTORIES[name]).parameters]


def make(name, rate=0.1, **options):
    known = inspect.signature(FACTORIES[name]).parameters
    given = {**ARGUMENTS.get(name, {}), "learning_rate": rate, **options}
    return FACTORIES[name](**{key: x for key, x in given.items() if key in known})


def off(name):
    value = lambda argument: None if argument == "weight_decay_rate" else 0.0
    return {x: value(x) for x in decays_of(name)}


def steps(tx, name, n=3):
    """The updates of some steps at fixed weights and gradients."""
    params = {"kernel": jnp.asarray(WEIGHTS, jnp.float32)}
    grads = {"kernel": jnp.asarray(GRADIENT, jnp.float32)}
    at = dict(value=loss(params), grad=grads, value_fn=loss, obj_fn=loss)
    extra = {key: at[key] for key in NEEDS.get(name, ("", ()))[1]}
    if name == "dpsgd":
        grads = {"kernel": jnp.stack([grads["kernel"]] * 2)}
    state, path = tx.init(params), []
    for _ in range(n):
        updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
        path.append(np.asarray(updates["kernel"], float))
    return np.stack(path)


def removed(name, rate, argument, v=1e-2):
    """The part of each weight that its own decay removes at the third step, divided by v."""
    with_decay = make(name, rate, **{**off(name), argument: v})
    without = make(name, rate, **off(name))
    return (steps(without, name) - steps(with_decay, name))[-1] / WEIGHTS / v


@functools.cache
def convention(name):
    """The convention of its own decay, as measured at two learning rates."""
    if name in FIXED:
        return FIXED[name][0]
    if not decays_of(name):
        return "none"
    at, half = (removed(name, rate, decays_of(name)[0]) for rate in (0.1, 0.05))
    if np.ptp(at) > 1e-2 * np.max(np.abs(at)):
        return "passes through the step"
    if np.allclose(at, 1.0, rtol=1e-2):
        return "`v`"
    if np.allclose(at, 0.1, rtol=1e-2) and np.allclose(half, 0.05, rtol=1e-2):
        return "`v` times the rate"
    assert np.allclose(at, 2 * half, rtol=1e-2), name
    return "`v` times the rate, and a factor of the optimizer"


def row(name):
    needs = NEEDS.get(name, ("",))[0]
    works = f"yes, with {needs}" if needs else "yes"
    switch = ", ".join(f"`{key}={value}`" for key, value in off(name).items()) or "nothing"
    switch = FIXED[name][1] if name in FIXED else switch
    return f"| `{name}` | {works} | {convention(name)} | {switch} |"


@pytest.mark.parametrize("name", NAMES)
def test_decouple_adds_its_decay_to_the_steps(name):
    weights = {"kernel": jnp.asarray(WEIGHTS, jnp.float32)}
    inner = make(name, **off(name))
    around = od.decouple(inner, 1e-3)
    if name in FIXED:
        with pytest.warns(UserWarning, match="by itself"):
            around.init(weights)
    # Each of the steps is taken from the same weights, so each removes the same.
    added = steps(around, name) - steps(inner, name)
    np.testing.assert_allclose(added, np.stack([-1e-3 * WEIGHTS] * len(added)), atol=2e-6)


def test_decouple_warns_if_a_decay_of_the_weights_is_on():
    for name in NAMES:
        if convention(name) in ("`v`", "`v` times the rate") and name not in NEEDS:
            inner = make(name, **{**off(name), decays_of(name)[0]: 0.1})
            with pytest.warns(UserWarning, match="by itself"):
                od.decouple(inner, 1e-3).init({"kernel": jnp.asarray(WEIGHTS, jnp.float32)})


def test_the_table_of_the_page_is_measured():
    table = re.findall(r"^\| `.*\|$", PAGES["any_optimizer"].read_text(), re.MULTILINE)
    assert table == [row(name) for name in NAMES]
