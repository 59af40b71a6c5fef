"""The contract equation: closed forms, reductions to Optax, dtypes and the state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import STEPS, relative_error, train

import optax_decoupled as od

ETA = optax.cosine_decay_schedule(1.0, STEPS, alpha=0.1)


def _tree(dtype=jnp.float32):
    return {
        "kernel": jnp.linspace(-2.0, 3.0, 6, dtype=dtype).reshape(2, 3),
        "nested": [jnp.full(4, 0.5, dtype), jnp.array(-1.5, dtype)],
    }


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def _decay_only(tx, params, steps):
    grads, state = _zeros(params), tx.init(params)

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), optax.tree.get(state, "decay_rate")

    (params, _), rates = jax.lax.scan(step, (params, state), length=steps)
    return params, rates


@pytest.mark.parametrize("factory", [od.adamw, od.sgdw])
@pytest.mark.parametrize("learning_rate", [0.001, 0.3])
def test_zero_gradients_leave_the_product_of_the_survivals(factory, learning_rate):
    """θ_T = θ_0 ∏(1 − c_t), whatever the learning rate."""
    steps, decay = 300, 4e-3
    params, rates = _decay_only(factory(learning_rate, decay, schedule=ETA), _tree(), steps)
    c = decay * np.asarray([ETA(t) for t in range(steps)], np.float64)
    survival = np.prod(1 - c)
    assert survival < 0.7  # the effect, against a tolerance of 1e-5
    chex.assert_trees_all_close(params, jax.tree.map(lambda p: p * survival, _tree()), rtol=1e-5)
    np.testing.assert_allclose(rates, c, rtol=1e-6)


@settings(max_examples=25)
@given(st.floats(0, 0.0045), st.floats(0, 2), st.floats(0, 3), st.integers(0, 2**31 - 1))
def test_update_law(decay, eta, multiplier, seed):
    """u′ = u − λ η w θ for random u, θ and multipliers."""
    u, theta = jax.random.normal(jax.random.key(seed), (2, 5))
    tx = od.add_decoupled_weight_decay(decay, eta, mask=[multiplier])
    updates, state = tx.update([u], tx.init([theta]), [theta])
    expected = np.float64(u) - decay * eta * multiplier * np.float64(theta)
    np.testing.assert_allclose(updates[0], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state.decay_rate, decay * eta, rtol=1e-6, atol=1e-30)


def test_first_update_sees_count_zero():
    tx = od.add_decoupled_weight_decay(1e-3, lambda count: jnp.where(count == 0, 1.0, 0.0))
    params, rates = _decay_only(optax.chain(optax.sgd(0.1), tx), jnp.ones(2), 3)
    np.testing.assert_allclose(rates, [1e-3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(params, 0.999, rtol=1e-6)


REDUCTIONS = {
    "adamw": (lambda: od.adamw(0.01, 0.0), lambda: optax.adam(0.01)),
    "nadamw": (lambda: od.adamw(0.01, 0.0, nesterov=True), lambda: optax.nadam(0.01)),
    "adamw schedule": (
        lambda: od.adamw(1.0, 0.0, schedule=ETA, eps_root=1e-9),
        lambda: optax.adam(ETA, eps_root=1e-9),
    ),
    "adam_l2": (lambda: od.adam_l2(0.01, 0.0), lambda: optax.adam(0.01)),
    "sgdw": (
        lambda: od.sgdw(0.01, 0.0, scale_before_momentum=False),
        lambda: optax.sgd(0.01, momentum=0.9),
    ),
    "sgdw nesterov": (
        lambda: od.sgdw(0.01, 0.0, scale_before_momentum=False, nesterov=True),
        lambda: optax.sgd(0.01, momentum=0.9, nesterov=True),
    ),
    "sgd_l2": (
        lambda: od.sgd_l2(0.01, 0.0, scale_before_momentum=False),
        lambda: optax.sgd(0.01, momentum=0.9),
    ),
    "decouple": (lambda: od.decouple(optax.rmsprop(0.01), 0.0), lambda: optax.rmsprop(0.01)),
    "scale_by_adam": (
        lambda: optax.chain(od.scale_by_adam(0.8, 0.95, 1e-6), optax.scale(-0.01)),
        lambda: optax.chain(optax.scale_by_adam(0.8, 0.95, 1e-6), optax.scale(-0.01)),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_without_decay_it_is_optax_bit_for_bit(name):
    ours, theirs = REDUCTIONS[name]
    np.testing.assert_array_equal(train(ours(), "float32"), train(theirs(), "float32"))


@pytest.mark.parametrize("learning_rate", [0.01, 0.04])
def test_lr_coupled_decay_is_optax_adamw(learning_rate):
    decay = od.weight_decay_from_pytorch(0.1, learning_rate)
    ours = train(od.adamw(learning_rate, decay), "float32")
    theirs = train(optax.adamw(learning_rate, weight_decay=0.1), "float32")
    assert relative_error(ours, theirs) < 5e-6
    assert relative_error(ours, train(optax.adam(learning_rate), "float32")) > 0.01


def test_corrected_decay_is_a_choice_of_schedules():
    """AdamC (arXiv:2506.02285): λ_PT α η_t², the square in the decay's own schedule."""
    rate, decay = 0.02, od.weight_decay_from_pytorch(0.1, 0.02)
    squared = lambda count: ETA(count) ** 2
    ours = train(od.adamw(rate, decay, schedule=ETA, decay_schedule=squared), "float32")
    coupled = optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_schedule(lambda count: -rate * ETA(count)),
        optax.add_decayed_weights(lambda count: -decay * ETA(count) ** 2),
    )
    assert relative_error(ours, train(coupled, "float32")) < 5e-6
    assert relative_error(ours, train(od.adamw(rate, decay, schedule=ETA), "float32")) > 1e-3


@chex.variants(with_jit=True, without_jit=True)
class CompiledOrNot(chex.TestCase):
    def test_update_is_the_same(self):
        params = _tree()
        grads = jax.tree.map(jnp.sin, params)
        tx = od.adamw(0.01, 1e-3, schedule=ETA, mask=od.decay_rules(("kernel", 0.5), default=0.0))
        updates, state = self.variant(tx.update)(grads, tx.init(params), params)
        expected = optax.adam(0.01)
        without, _ = expected.update(grads, expected.init(params), params)
        removed = jax.tree.map(jnp.subtract, without, updates)
        np.testing.assert_allclose(removed["kernel"], 5e-4 * params["kernel"], atol=1e-8)
        chex.assert_trees_all_equal(removed["nested"], _zeros(params["nested"]))
        assert int(optax.tree.get(state, "count", filtering=_of_decay)) == 1


def _of_decay(path, _):
    return getattr(path[-1], "tuple_name", "") == "DecoupledWeightDecayState"


@pytest.mark.parametrize("sign", [1, -1])
def test_cautious_decay_spares_weights_that_the_step_grows(sign):
    params = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    updates = sign * jnp.array([0.1, -0.1, 0.0, 0.1, -0.1, 0.1])
    tx = od.add_decoupled_weight_decay(1e-3, cautious=True)
    decayed, _ = tx.update(updates, tx.init(params), params)
    expected = np.where(np.asarray(updates * params) <= 0, 1e-3 * np.asarray(params), 0)
    np.testing.assert_allclose(updates - decayed, expected, atol=1e-8)
    assert 0 < np.count_nonzero(expected) < 5


def test_cautious_sees_the_signs_of_tiny_numbers():
    """1e-30 · 1e-30 underflows to 0 in float32, yet the signs agree."""
    tx = od.add_decoupled_weight_decay(0.009, cautious=True)
    tiny = jnp.array([1e-30])
    updates, _ = tx.update(tiny, tx.init(tiny), tiny)
    np.testing.assert_array_equal(updates, tiny)


def test_cautious_sees_the_directions_of_tiny_complex_numbers():
    tx = od.add_decoupled_weight_decay(0.009, cautious=True)
    tiny = jnp.array([1e-30 + 1e-30j])
    updates, _ = tx.update(tiny, tx.init(tiny), tiny)
    np.testing.assert_array_equal(updates, tiny)
    updates, _ = tx.update(-tiny, tx.init(tiny), tiny)
    assert updates[0] != -tiny[0]


def test_cautious_compares_complex_numbers_as_vectors():
    """The same, an orthogonal and an opposite direction: only the first one is spared."""
    params, steps = jnp.array([1 + 3j, 1.0, 1.0]), jnp.array([1 + 3j, 1j, -1 + 2j])
    tx = od.add_decoupled_weight_decay(0.009, cautious=True)
    updates, _ = tx.update(steps, tx.init(params), params)
    expected = steps - 0.009 * jnp.array([0, 1, 1]) * params
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_wider_parameters_are_not_rounded_to_the_updates_dtype():
    """The difference of two numbers that agree in float32 is that of float64."""
    with jax.enable_x64(True):
        params, updates = jnp.array([1 / 3], jnp.float64), jnp.array([0.009 / 3], jnp.float32)
        tx = od.add_decoupled_weight_decay(0.009)
        new, _ = tx.update(updates, tx.init(params), params)
        assert new.dtype == jnp.float32
        expected = np.float64(updates) - 0.009 / 3  # 3e-11, a rounding of float32
        np.testing.assert_allclose(new, expected, rtol=1e-4)


def test_complex_parameters_decay_towards_zero():
    params = jnp.array([1.0 + 2.0j, -3.0j])
    tx = od.decouple(optax.sgd(0.1), 1e-3)
    updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    np.testing.assert_allclose(updates, -1e-3 * params, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("decay", [1e-3, lambda _: jnp.float32(1e-3)], ids=["number", "schedule"])
def test_updates_keep_the_gradients_dtype(dtype, decay):
    params = _tree(dtype)
    tx = od.add_decoupled_weight_decay(decay, ETA)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert state.decay_rate.dtype == jnp.float32


def test_decay_of_narrow_parameters_is_computed_in_float32():
    """In bfloat16 itself, 1e-3 · p would be off by up to 0.4 %."""
    params = jnp.linspace(1, 2, 999, dtype=jnp.bfloat16)
    tx = od.add_decoupled_weight_decay(1e-3)
    updates, _ = tx.update(jnp.zeros(999, jnp.float32), tx.init(params), params)
    np.testing.assert_allclose(updates, -1e-3 * params.astype(jnp.float32), rtol=1e-6)


TENTH = jnp.float16(0.1)
NARROW_FACTORS = {
    "multiplier": lambda: od.add_decoupled_weight_decay(1e-6, mask={"w": TENTH}),
    "schedule": lambda: od.add_decoupled_weight_decay(1e-5, lambda _: TENTH),
    "both": lambda: od.add_decoupled_weight_decay(TENTH, jnp.float16(1e-6)),
    "L2": lambda: od.l2_to_grad(jnp.float16(1e-6), mask={"w": TENTH}),
}


@pytest.mark.parametrize("name", NARROW_FACTORS)
def test_narrow_factors_are_multiplied_in_float32(name):
    """In float16 the product would be 19 % off, or 1 %."""
    tx, params = NARROW_FACTORS[name](), {"w": jnp.ones(2)}
    updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    small = {"multiplier": 1e-6, "schedule": 1e-5}.get(name, float(jnp.float16(1e-6)))
    np.testing.assert_allclose(jnp.abs(updates["w"]), small * float(TENTH), rtol=1e-6)


def test_strict_dtype_promotion():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    tx = od.sgdw(0.1, 1e-3)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(np.float32(updates["w"]), -0.101, rtol=4e-3)


def test_the_applied_decay_is_float64_under_x64():
    with jax.enable_x64(True):
        tx = od.add_decoupled_weight_decay(1e-3 / 3)
        updates, state = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
        assert float(updates[0]) == -1e-3 / 3
        assert state.decay_rate.dtype == jnp.float32


OPTIONS = {
    "constant": {},
    "scheduled decay": {"weight_decay": lambda count: 1e-3 * ETA(count)},
    "schedule": {"schedule": ETA},
    "number as schedule": {"schedule": 0.5},
    "decay schedule": {"decay_schedule": ETA},
    "rate schedule": {"learning_rate": ETA, "decay_schedule": 1.0},
    "mask": {"mask": {"kernel": True, "nested": False}},
    "mask function": {"mask": od.decay_mask},
    "cautious": {"cautious": True},
}


@pytest.mark.parametrize("factory", [od.adamw, od.sgdw])
def test_the_states_tree_is_the_same_for_all_options(factory):
    params = _tree()
    make = lambda options: factory(**{"learning_rate": 0.1, "weight_decay": 1e-3, **options})
    plain = jax.tree.structure(make({}).init(params))
    for name, options in OPTIONS.items():
        tx = make(options)
        state = tx.init(params)
        assert jax.tree.structure(state) == plain, name
        _, state = tx.update(params, state, params)
        assert jax.tree.structure(state) == plain, name


def test_counter_stays_at_the_last_int32():
    tx = od.add_decoupled_weight_decay(1e-3, od.schedules.warm_restarts(10))
    last = tx.init(jnp.ones(1))._replace(count=jnp.int32(2**31 - 1))
    _, state = tx.update(jnp.zeros(1), last, jnp.ones(1))
    assert int(state.count) == 2**31 - 1


def test_leaves_that_cannot_decay_pass_through():
    params = {
        "w": jnp.ones(2),
        "steps": jnp.array([3, 4]),
        "flag": jnp.array(True),
        "none": None,
        "masked": optax.MaskedNode(),
        "empty": {},
    }
    float0 = np.zeros(2, jax.dtypes.float0)
    grads = {**params, "w": jnp.zeros(2), "steps": float0}
    for tx in (od.add_decoupled_weight_decay(1e-3), od.l2_to_grad(0.5)):
        updates, _ = tx.update(grads, tx.init(params), params)
        assert float(updates["w"][0]) != 0.0
        assert updates["steps"] is float0
        assert updates["flag"] is grads["flag"]
        assert updates["none"] is None
    assert od.add_decoupled_weight_decay(1e-3).init({}) is not None


def test_missing_updates_stay_missing():
    """None in place of an update: a parameter that this step leaves alone."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = od.add_decoupled_weight_decay(1e-3)
    updates, _ = tx.update({"a": None, "b": jnp.zeros(2)}, tx.init(params), params)
    assert updates["a"] is None
    np.testing.assert_allclose(updates["b"], -1e-3)


def test_momentum_of_missing_gradients_stays():
    """Where Optax drops the buffer, and with it the structure of the state."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = od.sgdw(0.1, 0.0)
    _, state = tx.update(params, tx.init(params), params)
    _, after = tx.update({"a": None, "b": jnp.ones(2)}, state, params)
    chex.assert_trees_all_equal_structs(after, state)
    np.testing.assert_allclose(after[1].trace["a"], 0.1)
    np.testing.assert_allclose(after[1].trace["b"], 0.19)


def test_the_states_tree_is_the_same_when_hyperparameters_are_injected():
    params = _tree()
    plain = jax.tree.structure(od.adamw(0.1, 1e-3).init(params))
    for options in ({}, {"schedule": ETA}, {"mask": od.decay_mask}, {"decay_schedule": 1.0}):
        injected = optax.inject_hyperparams(od.adamw, static_args=("mask",))(0.1, 1e-3, **options)
        assert jax.tree.structure(injected.init(params).inner_state) == plain
