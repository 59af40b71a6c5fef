"""Hyperparameters as numbers, arrays and tracers; jit and vmap over all of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import train

import optax_decoupled as od

VALUES = {
    "adamw": (od.adamw, dict(learning_rate=0.01, weight_decay=2e-3, b1=0.8, b2=0.99, eps=1e-7)),
    "sgdw": (od.sgdw, dict(learning_rate=0.01, weight_decay=2e-3, momentum=0.8)),
    "adam_l2": (od.adam_l2, dict(learning_rate=0.01, l2=0.05, b1=0.8, b2=0.99, eps_root=1e-9)),
    "sgd_l2": (od.sgd_l2, dict(learning_rate=0.01, l2=0.05, momentum=0.8)),
    "adamwr": (
        lambda **kwargs: od.adamwr(first_cycle_steps=20, **kwargs),
        dict(learning_rate=0.01, normalized_weight_decay=0.02, eta_min=0.1, b1=0.8, b2=0.99),
    ),
    "sgdwr": (
        lambda **kwargs: od.sgdwr(first_cycle_steps=20, **kwargs),
        dict(learning_rate=0.01, normalized_weight_decay=0.02, eta_min=0.1, momentum=0.8),
    ),
    "decouple": (
        lambda **kwargs: od.decouple(optax.adam(0.01), **kwargs),
        dict(weight_decay=2e-3, schedule=0.5),
    ),
}
STEPS = 30


def _path(factory, values):
    return train(factory(**values), "float32", STEPS)


@pytest.mark.parametrize("name", VALUES)
def test_arrays_give_the_steps_of_numbers(name):
    factory, values = VALUES[name]
    arrays = {key: jnp.asarray(value) for key, value in values.items()}
    # 1 − b2 of a float32 b2 is off by up to 5e-5, relative
    np.testing.assert_allclose(_path(factory, arrays), _path(factory, values), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_vmap_over_every_hyperparameter(name):
    factory, values = VALUES[name]
    params, grads = jnp.linspace(-1, 1, 5), jnp.linspace(2, 3, 5)

    def two_steps(hyperparameters):
        tx = factory(**hyperparameters)
        _, state = tx.update(grads, tx.init(params), params)
        return tx.update(grads, state, params)[0]

    scales = jnp.array([0.5, 0.7, 1.0])
    stacked = {key: value * scales for key, value in values.items()}
    batched = jax.jit(jax.vmap(two_steps))(stacked)
    assert batched.shape == (3, 5)
    for i in range(3):
        one = two_steps({key: value[i] for key, value in stacked.items()})
        np.testing.assert_allclose(batched[i], one, rtol=1e-4, atol=1e-8)
    assert np.max(np.abs(batched[0] - batched[2])) > 1e-4


@pytest.mark.parametrize("name", VALUES)
def test_one_trace_for_all_values(name):
    factory, values = VALUES[name]
    params = jnp.linspace(-1, 1, 5)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(hyperparameters):
        tx = factory(**hyperparameters)
        return tx.update(params, tx.init(params), params)[0]

    for scale in (0.0, 0.5, 1.0):
        step({key: jnp.asarray(value * scale) for key, value in values.items()})


@pytest.mark.parametrize("name", VALUES)
def test_values_that_would_be_refused_as_numbers_are_not_looked_at_when_traced(name):
    """Nothing may branch on a traced value: NaN in, NaN or number out, no error."""
    factory, values = VALUES[name]
    params = jnp.ones(2)

    def step(bad):
        tx = factory(**dict.fromkeys(values, bad))
        return tx.update(params, tx.init(params), params)[0]

    assert jax.jit(step)(jnp.nan).shape == (2,)


INJECTED = {name: VALUES[name] for name in ("adamw", "sgdw", "adam_l2", "sgd_l2")}


@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name):
    factory, values = INJECTED[name]
    params = [jnp.full((2, 3), -1.0), jnp.ones((2, 5, 2))]
    grads = jax.tree.map(jnp.negative, params)
    plain, injected = factory(**values), optax.inject_hyperparams(factory)(**values)
    updates, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    injected_updates, state = jax.jit(injected.update)(grads, injected.init(params), params)
    chex.assert_trees_all_close(injected_updates, updates, rtol=1e-3)
    assert set(values) <= set(state.hyperparams)


def test_injected_decay_can_be_changed_between_steps():
    tx = optax.inject_hyperparams(od.adamw)(learning_rate=0.01, weight_decay=1e-3)
    params, grads = jnp.ones(2), jnp.zeros(2)
    state = tx.init(params)
    state.hyperparams["weight_decay"] = jnp.asarray(5e-3)
    updates, _ = jax.jit(tx.update)(grads, state, params)
    np.testing.assert_allclose(updates, -5e-3, rtol=1e-6)


def test_injected_schedules_arrive_as_numbers():
    tx = optax.inject_hyperparams(od.adamw)(
        learning_rate=0.01, weight_decay=1e-3, schedule=optax.linear_schedule(1.0, 0.0, 10)
    )
    params, grads = jnp.ones(2), jnp.zeros(2)
    state = tx.init(params)
    for t in range(5):
        updates, state = jax.jit(tx.update)(grads, state, params)
        np.testing.assert_allclose(updates, -1e-3 * (1 - t / 10), rtol=1e-5)


def test_restarts_inject_with_static_cycles():
    tx = optax.inject_hyperparams(od.adamwr, static_args=("first_cycle_steps", "cycle_mult"))(
        0.01, 0.02, first_cycle_steps=4
    )
    params, grads = jnp.ones(2), jnp.zeros(2)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, -0.01, rtol=1e-5)
