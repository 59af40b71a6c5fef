"""Algorithms 1 and 2 of the paper, against NumPy float64 references."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from problems import STEPS, THETA, gradient, relative_error, train

import optax_decoupled as od

DECAY = 2e-3
L2 = 0.05
# (dtype, tolerance): rounding only. Every effect tested is at least 100 times larger.
PRECISIONS = {"float64": 1e-10, "float32": 2e-5}


def _cosine(t, xp):
    return 0.5 * (1 + xp.cos(np.pi * t / STEPS))


def _drops(t, xp):
    return xp.where(t < 80, 1.0, xp.where(t < 160, 0.1, 0.01))


def _constant(t, xp):
    return 1.0 + 0.0 * t


SCHEDULES = {"constant": _constant, "cosine": _cosine, "drops": _drops}


def _both(name):
    """A schedule for the package and its values for the reference."""
    values = [float(SCHEDULES[name](t, np)) for t in range(STEPS)]
    return (lambda count: SCHEDULES[name](count.astype(float), jnp)), values


def _assert_equal(tx_factory, expected, dtype):
    with jax.enable_x64(dtype == "float64"):
        actual = train(tx_factory(), dtype)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) < PRECISIONS[dtype]


COMMON = [
    # The second peak rate in float32 adds time rather than evidence: it is run by the gate.
    pytest.param(*case, marks=[pytest.mark.slow] * (case[0] == "float32" and case[2] == 0.04))
    for case in itertools.product(PRECISIONS, SCHEDULES, (0.01, 0.04))
]


@pytest.mark.parametrize("scale_before_momentum", [True, False])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize(("dtype", "schedule", "alpha"), COMMON)
def test_sgdw_is_algorithm_1(dtype, schedule, alpha, momentum, nesterov, scale_before_momentum):
    eta, values = _both(schedule)
    options = dict(
        momentum=momentum, nesterov=nesterov, scale_before_momentum=scale_before_momentum
    )
    decay = [DECAY * e for e in values]
    expected = reference.sgd(THETA, gradient, values, alpha, decay=decay, **options)
    _assert_equal(lambda: od.sgdw(alpha, DECAY, schedule=eta, **options), expected, dtype)


@pytest.mark.parametrize("scale_before_momentum", [True, False])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("dtype", "schedule", "alpha"), COMMON)
def test_sgd_l2_is_algorithm_1_with_l2(dtype, schedule, alpha, nesterov, scale_before_momentum):
    eta, values = _both(schedule)
    options = dict(momentum=0.9, nesterov=nesterov, scale_before_momentum=scale_before_momentum)
    expected = reference.sgd(THETA, gradient, values, alpha, l2=L2, **options)
    _assert_equal(lambda: od.sgd_l2(alpha, L2, schedule=eta, **options), expected, dtype)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("dtype", "schedule", "alpha"), COMMON)
def test_adamw_is_algorithm_2(dtype, schedule, alpha, nesterov):
    eta, values = _both(schedule)
    decay = [DECAY * e for e in values]
    expected = reference.adam(THETA, gradient, values, alpha, decay=decay, nesterov=nesterov)
    _assert_equal(lambda: od.adamw(alpha, DECAY, schedule=eta, nesterov=nesterov), expected, dtype)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("dtype", "schedule", "alpha"), COMMON)
def test_adam_l2_is_algorithm_2_with_l2(dtype, schedule, alpha, nesterov):
    eta, values = _both(schedule)
    expected = reference.adam(THETA, gradient, values, alpha, l2=L2, nesterov=nesterov)
    _assert_equal(lambda: od.adam_l2(alpha, L2, schedule=eta, nesterov=nesterov), expected, dtype)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("mult", [1, 2, 1.5])
def test_adamwr_and_sgdwr_follow_appendix_b(dtype, mult):
    first, norm, eta_min = 20, 0.05, 0.1
    eta = reference.warm_restarts(first, mult, eta_min, STEPS)
    lambdas = reference.normalized_decay(norm, first, mult, STEPS)
    decay = [e * c for e, c in zip(eta, lambdas, strict=True)]
    cycles = dict(first_cycle_steps=first, cycle_mult=mult, eta_min=eta_min)
    expected = reference.adam(THETA, gradient, eta, 0.01, decay=decay)
    _assert_equal(lambda: od.adamwr(0.01, norm, **cycles), expected, dtype)
    expected = reference.sgd(THETA, gradient, eta, 0.01, decay=decay)
    _assert_equal(lambda: od.sgdwr(0.01, norm, **cycles), expected, dtype)


ADAM_OPTIONS = dict(b1=0.7, b2=0.95, eps=1e-3, nesterov=True)
SGD_OPTIONS = dict(momentum=0.7, nesterov=True, scale_before_momentum=False)
FORWARDED = {
    "adamw": (od.adamw, "adam", dict(weight_decay=DECAY), ADAM_OPTIONS),
    "adam_l2": (od.adam_l2, "adam", dict(l2=L2), ADAM_OPTIONS),
    "adamwr": (
        od.adamwr,
        "adam",
        dict(normalized_weight_decay=DECAY * STEPS**0.5, first_cycle_steps=STEPS, cycle_mult=1),
        ADAM_OPTIONS,
    ),
    "sgdw": (od.sgdw, "sgd", dict(weight_decay=DECAY), SGD_OPTIONS),
    "sgd_l2": (od.sgd_l2, "sgd", dict(l2=L2), SGD_OPTIONS),
    "sgdwr": (
        od.sgdwr,
        "sgd",
        dict(normalized_weight_decay=DECAY * STEPS**0.5, first_cycle_steps=STEPS, cycle_mult=1),
        SGD_OPTIONS,
    ),
}


@pytest.mark.parametrize("name", FORWARDED)
def test_every_option_reaches_the_algorithm(name):
    factory, algorithm, arguments, options = FORWARDED[name]
    eta = (
        reference.warm_restarts(STEPS, 1, 0.0, STEPS)
        if "first" in str(arguments)
        else [1.0] * STEPS
    )
    coupled = {"l2": L2} if "l2" in arguments else {"decay": [DECAY * e for e in eta]}
    run = getattr(reference, algorithm)
    expected = run(THETA, gradient, eta, 0.02, **coupled, **options)
    _assert_equal(lambda: factory(0.02, **arguments, **options), expected, "float64")
    for option in options:  # each of them matters
        others = {key: value for key, value in options.items() if key != option}
        if not (option == "scale_before_momentum" and set(eta) == {1.0}):
            without = run(THETA, gradient, eta, 0.02, **coupled, **others)
            assert relative_error(without, expected) > 1e-6, option


# As the paper and, where it has the option, `optax.adamw`.
ADAM_DEFAULTS = dict(b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, mu_dtype=None, nesterov=False)
DEFAULTS = ADAM_DEFAULTS | dict(
    **dict(nu_dtype=None, momentum=0.9, scale_before_momentum=True),
    **dict(schedule=None, decay_schedule=None, cycle_mult=2, eta_min=0.0),
    **dict(mask=None, cautious=False, toward=None),
)
FACTORIES = [od.scale_by_adam, od.adamc, *(factory for factory, *_ in FORWARDED.values())]


def _defaults(function):
    options = inspect.signature(function).parameters.values()
    return {x.name: x.default for x in options if x.default is not inspect.Parameter.empty}


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_options_that_are_left_out(factory):
    ours = _defaults(factory)
    ours.pop("normalized", None)
    assert ours == {name: DEFAULTS[name] for name in ours}


def test_options_that_are_left_out_are_those_of_optax():
    theirs = _defaults(optax.adamw)
    assert {name: theirs[name] for name in ADAM_DEFAULTS} == ADAM_DEFAULTS


def test_eps_root_dtypes_and_caution_reach_the_transforms():
    params, grads = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
    make = {
        "adamw": lambda **kw: od.adamw(0.1, DECAY, **kw),
        "adamwr": lambda **kw: od.adamwr(0.1, DECAY, first_cycle_steps=1, **kw),
        "adam_l2": lambda **kw: od.adam_l2(0.1, 1e-9, **kw),
    }
    for name, factory in make.items():
        tx = factory(eps_root=0.75, mu_dtype=jnp.bfloat16, nu_dtype=jnp.float16)
        updates, state = tx.update(grads, tx.init(params), params)
        np.testing.assert_allclose(updates, -0.1 * 0.5, atol=2 * DECAY, err_msg=name)
        assert optax.tree.get(state, "mu").dtype == jnp.bfloat16
        assert optax.tree.get(state, "nu").dtype == jnp.float16
    for factory in (
        make["adamw"],
        make["adamwr"],
        lambda **kw: od.sgdw(0.1, DECAY, **kw),
        lambda **kw: od.sgdwr(0.1, DECAY, first_cycle_steps=1, **kw),
    ):
        bold, careful = (
            tx.update(grads, tx.init(params), params)[0]
            for tx in (factory(), factory(cautious=True))
        )
        np.testing.assert_allclose(careful - bold, [0.0, -DECAY], atol=1e-7)


@pytest.mark.parametrize("factory", [od.adamwr, od.sgdwr])
def test_cycles_masks_and_toward_reach_the_decay_of_restarts(factory):
    """The second cycle is three steps long; zero gradients leave the decay alone."""
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def second(**options):
        tx = factory(0.1, DECAY, first_cycle_steps=1, cycle_mult=3, **options)
        _, state = tx.update(zeros, tx.init(params), params)
        return tx.update(zeros, state, params)[0]

    c = DECAY / 3**0.5
    np.testing.assert_allclose(second()["w"], -c, rtol=1e-5)
    masked = second(mask={"w": True, "b": False})
    np.testing.assert_allclose([masked["w"][0], masked["b"][0]], [-c, 0.0], rtol=1e-5)
    np.testing.assert_array_equal(second(toward=od.toward_init())["w"], 0.0)


def test_decay_schedule_replaces_the_schedule_for_the_decay_alone():
    eta, values = _both("cosine")
    expected = reference.adam(THETA, gradient, values, 0.01, decay=[DECAY] * STEPS)
    _assert_equal(
        lambda: od.adamw(0.01, DECAY, schedule=eta, decay_schedule=1.0), expected, "float64"
    )


def test_a_learning_rate_schedule_and_a_split_one_take_the_same_steps():
    with jax.enable_x64(True):
        rate = lambda count: 0.02 * _cosine(count.astype(float), jnp)
        alpha, eta = od.split_schedule(rate, peak=0.02)
        split = train(od.adamw(alpha, DECAY, schedule=eta), "float64")
        whole = train(od.adamw(rate, DECAY, decay_schedule=eta), "float64")
    assert relative_error(split, whole) < 1e-12


def test_a_decay_schedule_in_the_weight_decay_argument():
    eta, values = _both("drops")
    expected = reference.adam(
        THETA, gradient, [1.0] * STEPS, 0.01, decay=[DECAY * e for e in values]
    )
    _assert_equal(lambda: od.adamw(0.01, lambda count: DECAY * eta(count)), expected, "float64")
