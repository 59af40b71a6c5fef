"""JAX's strict modes and x64: every optimizer works wherever the same chain of Optax works.

Optax itself fails under strict dtype promotion in ``scale_by_adam`` (a float to the power of an
int32 count) and in ``cosine_decay_schedule``; tests below show both. Its transforms around a
decay of this package, and the schedules of users, run in the mode that the user chose.
"""

import contextlib
import functools
import gc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES

import optax_decoupled as od

every_case = pytest.mark.parametrize("name", CASES)
SHAPES = {"scalar": (), "one": (1,), "three": (3,), "matrix": (4, 2), "empty": (0,)}
STRICT_MODE = "strict promotion"


@contextlib.contextmanager
def _checking_leaks():
    """Each trace collects garbage: frozen, the objects of earlier tests are not visited."""
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


MODES = {
    STRICT_MODE: lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaNs": lambda: jax.debug_nans(True),
    "infinities": lambda: jax.debug_infs(True),
    "internal checks": lambda: jax.enable_checks(True),
    "tracer leaks": _checking_leaks,
    "no jit": lambda: jax.disable_jit(),
}

NARROW = ["bfloat16", "float32"]
MORE = [pytest.param(x, marks=pytest.mark.slow) for x in ("float16", "complex64")]
# Cases that hold Optax's own Adam.
OPTAX_FAILS = {("decouple", STRICT_MODE)}
NO_PROMOTION = pytest.raises(ValueError, match="no available implicit dtype promotion path")


def _falling(count):
    """A float32 schedule that keeps the rules of strict promotion."""
    return jnp.float32(1) / (jnp.float32(1) + count.astype(jnp.float32))


def _tree(dtype):
    """Every shape that has tripped an array library: no axes, no elements, one, a few."""
    values = {k: np.linspace(0.5, 2.0, int(np.prod(shape))) for k, shape in SHAPES.items()}
    return {k: jnp.asarray(v.reshape(SHAPES[k]), dtype) for k, v in values.items()}


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def _three_steps(tx, params):
    grads = jax.tree.map(lambda p: jnp.asarray(np.cos(p) / 8, p.dtype), params)
    state = jax.jit(tx.init)(params)  # one program, where each shape would have its own

    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return params


def _make(case):
    free = {"schedule"} & set(case.kwargs)
    return case.make(**{case.decay: 5e-3}, **dict.fromkeys(free, _falling))


SOME = ("adamw scheduled", "adamw to the start", "adamwr", "sgdw", "adam_l2", "decouple")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, STRICT_MODE) for name in CASES]
    + [
        pytest.param(name, mode, marks=pytest.mark.slow)
        for name in SOME
        for mode in MODES
        if mode != STRICT_MODE
    ],
)
def test_a_mode_of_jax_changes_nothing(name, mode):
    if (name, mode) in OPTAX_FAILS:
        with MODES[mode](), NO_PROMOTION:
            _three_steps(_make(CASES[name]), _tree("float32"))
        return
    with MODES[mode]():
        found = _three_steps(_make(CASES[name]), _tree("float32"))
    # Steps of 0.1 and decays of 5e-3; without jit, XLA rounds Adam's step elsewhere.
    chex.assert_trees_all_close(found, _without_modes(name, "float32"), rtol=2e-5)


@functools.cache
def _without_modes(name, dtype):
    return _three_steps(_make(CASES[name]), _tree(dtype))


ALL, ONES = dict.fromkeys(SHAPES, True), dict.fromkeys(SHAPES, 1.0)
STRICT = {
    "a schedule": lambda: od.sgdw(0.1, 1e-3, schedule=_falling),
    "a schedule of the decay": lambda: od.sgdw(0.1, lambda t: jnp.float32(1e-3) * _falling(t)),
    "an array": lambda: od.sgdw(jnp.float32(0.1), jnp.float32(1e-3), momentum=jnp.float32(0.9)),
    "Lion": lambda: od.decouple(optax.lion(0.1, weight_decay=0.0), 1e-3, _falling),
    "Adam": lambda: od.adamw(jnp.float32(0.1), 1e-3, schedule=_falling, b1=jnp.float32(0.9)),
    "restarts": lambda: od.adamwr(0.1, 0.01, first_cycle_steps=2),
    "a mask of arrays": lambda: od.sgdw(
        0.1, jnp.float32(1e-3), mask={**ALL, "matrix": jnp.array(True), "three": jnp.int32(0)}
    ),
    "a mask of numbers": lambda: od.sgdw(
        0.1, 1e-3, schedule=_falling, mask={**ALL, "matrix": 0.5, "three": 1}
    ),
    "hyperball": lambda: od.hyperball(optax.trace(0.9), _falling),
    "toward an rms": lambda: od.sgdw(0.1, 1e-3, toward=od.toward_rms(jnp.float32(1.0))),
    "L2": lambda: od.sgd_l2(0.1, jnp.float32(1e-3)),
    "scale-adjusted L2": lambda: optax.chain(
        od.scale_adjusted_l2_to_grad(jnp.float32(1e-3), {**ONES, "three": jnp.float32(2)}),
        optax.sgd(0.1),
    ),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", MORE[1]])
@pytest.mark.parametrize("make", STRICT.values(), ids=STRICT)
def test_arrays_schedules_and_masks_under_strict_promotion(make, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = _tree(dtype)
        expected = _three_steps(make(), params)
        with jax.numpy_dtype_promotion("strict"):
            found = _three_steps(make(), params)
        chex.assert_trees_all_close(found, expected, rtol=1e-12 if dtype == "float64" else 1e-6)
        moved = np.asarray(found["matrix"]) - np.asarray(params["matrix"])
        assert float(np.max(np.abs(moved))) > 1e-3


@pytest.mark.parametrize(
    "tx",
    [optax.adam(0.1), optax.sgd(optax.cosine_decay_schedule(0.1, 10))],
    ids=["adam", "cosine"],
)
def test_where_optax_itself_fails_under_strict_promotion(tx):
    with jax.numpy_dtype_promotion("strict"), NO_PROMOTION:
        _three_steps(tx, _tree("float32"))


@every_case
@pytest.mark.parametrize("dtype", NARROW + MORE)
def test_x64_changes_no_parameter_of_32_bits_or_fewer(name, dtype):
    params = _tree(dtype)
    with jax.enable_x64(True):
        found = _three_steps(_make(CASES[name]), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
    # Adam's 1 - b2**t is more precise under x64 (Optax computes it in the default float dtype).
    chex.assert_trees_all_close(
        found, _without_modes(name, dtype), rtol=max(1.5 * eps(dtype), 2e-5)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_stochastic_rounding_is_the_same_under_x64(dtype):
    params = {**_tree(dtype), "many": jnp.linspace(0.5, 2.0, 1000).astype(dtype)}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, -1e-3, jnp.float32), params)
    key = jax.random.key(3)
    expected = jax.jit(od.apply_updates_with_stochastic_rounding)(params, updates, key)
    with jax.enable_x64(True):
        found = jax.jit(od.apply_updates_with_stochastic_rounding)(params, updates, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, params)
    chex.assert_trees_all_equal(found, expected)


def test_stochastic_rounding_leaves_float64_to_optax():
    with jax.enable_x64(True):
        params = _tree("float64")
        updates = jax.tree.map(lambda p: -1e-3 * p, params)
        found = od.apply_updates_with_stochastic_rounding(params, updates, jax.random.key(0))
        chex.assert_trees_all_equal(found, optax.apply_updates(params, updates))


@pytest.mark.parametrize(("size", "step"), [(1.0, 0.5), (0.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("mode", MODES)
def test_weight_dynamics_in_every_mode(mode, size, step):
    """Also of a weight that is 0, whose growth is infinite if it moves."""
    theta, update = jnp.full(3, size, jnp.float32), jnp.full(3, step, jnp.float32)
    expected = od.weight_dynamics(theta, update)
    if mode == "infinities" and size == 0.0 and step != 0.0:
        with MODES[mode](), pytest.raises(FloatingPointError):
            od.weight_dynamics(theta, update)
        return
    with MODES[mode]():
        found = od.weight_dynamics(theta, update)
    chex.assert_trees_all_close(found, expected)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")  # of the step without x64
def test_float64_is_kept_after_a_step_without_x64():
    """The dtype of the arithmetic is cached; the flag is part of the key."""
    tx = od.add_decoupled_weight_decay(1e-3)
    with jax.enable_x64(True):
        params, zero = jnp.ones(3, jnp.float64), jnp.zeros(3, jnp.float64)
        state = tx.init(params)
    tx.update(zero, state, params)
    with jax.enable_x64(True):
        updates, _ = tx.update(zero, state, params)
        assert updates.dtype == jnp.float64
        np.testing.assert_allclose(updates, -1e-3, rtol=1e-15)
