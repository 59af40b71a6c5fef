"""Why normalization decides which coefficient stays put as the learning rate moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

pytestmark = pytest.mark.usefixtures("optimized")  # they train

DIM, STEPS, DECAY = 200, 2000, 5e-3


def turn_per_step(tx):
    """The mean of ‖u‖/‖θ‖ in the end, for a random loss that does not see the size of θ."""

    def step(carry, key):
        theta, state = carry
        size = jnp.linalg.norm(theta)
        noise = jax.random.normal(key, (DIM,))
        # The gradient of a scale-invariant loss: orthogonal to θ, proportional to 1/‖θ‖.
        gradient = (noise - theta * (theta @ noise) / size**2) / size
        updates, state = tx.update(gradient, state, theta)
        across = updates - theta * (theta @ updates) / size**2  # without the decay itself
        return (optax.apply_updates(theta, updates), state), jnp.linalg.norm(across) / size

    theta = jnp.ones(DIM)
    keys = jax.random.split(jax.random.key(0), STEPS)
    turns = jax.lax.scan(step, (theta, tx.init(theta)), keys)[1]
    return float(turns[STEPS // 2 :].mean())


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_with_normalization_decoupled_decay_alone_sets_the_turn(alpha):
    turn = turn_per_step(od.sgdw(alpha, DECAY, momentum=0.0))
    np.testing.assert_allclose(turn, np.sqrt(2 * DECAY), rtol=0.02)


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_with_normalization_the_product_of_rate_and_l2_sets_the_turn(alpha):
    turn = turn_per_step(od.sgd_l2(alpha, 0.02, momentum=0.0))
    np.testing.assert_allclose(turn, np.sqrt(2 * alpha * 0.02), rtol=0.02)


def test_with_normalization_adamw_turns_alike_at_every_rate():
    slow, fast = (turn_per_step(od.adamw(alpha, DECAY, b1=0.0)) for alpha in (0.01, 0.04))
    np.testing.assert_allclose([slow, fast], np.sqrt(2 * DECAY), rtol=0.05)


def test_without_normalization_l2_keeps_the_minimum_and_decay_moves_it():
    def minimum(tx):
        """Of ½‖θ − 1‖², where the penalty lets it rest."""

        def step(carry, _):
            theta, state = carry
            updates, state = tx.update(theta - 1, state, theta)
            return (optax.apply_updates(theta, updates), state), None

        theta = jnp.zeros(1)
        return jax.lax.scan(step, (theta, tx.init(theta)), length=STEPS)[0][0][0]

    for alpha in (0.1, 0.4):
        penalized = minimum(od.sgd_l2(alpha, 0.05, momentum=0.0))
        decayed = minimum(od.sgdw(alpha, DECAY, momentum=0.0))
        np.testing.assert_allclose(penalized, 1 / 1.05, rtol=1e-5)
        np.testing.assert_allclose(decayed, 1 / (1 + DECAY / alpha), rtol=1e-5)
