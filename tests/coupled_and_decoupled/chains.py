"""The two ways to shrink weights, as the chains that the tests of this folder compare.

Coupled: the gradient of an L2 penalty stands first, and all that follows acts on it.
Decoupled: the decay stands last, and nothing acts on it but the schedule.

θ weights, α rate, η_t schedule (1 = full step), λ decay per step, λ′ L2 coefficient.
"""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from problems import CURVATURE, NOISE, THETA

import optax_decoupled as od


def constant(step):
    """η = 1: a step size that does not move."""
    del step
    return 1.0


def coupled_adam(rate, l2, eta=constant):
    return optax.chain(
        od.l2_to_grad(l2),
        od.scale_by_adam(),
        optax.scale_by_schedule(lambda step: -rate * eta(step)),
    )


def decoupled_adam(rate, decay, eta=constant):
    return optax.chain(
        od.scale_by_adam(),
        optax.scale_by_schedule(lambda step: -rate * eta(step)),
        od.add_decoupled_weight_decay(decay, eta),
    )


def coupled_sgd(rate, l2, eta=constant, momentum=0.9):
    return optax.chain(
        od.l2_to_grad(l2),
        optax.scale_by_schedule(lambda step: -rate * eta(step)),
        optax.trace(momentum),
    )


def decoupled_sgd(rate, decay, eta=constant, momentum=0.9):
    return optax.chain(
        optax.scale_by_schedule(lambda step: -rate * eta(step)),
        optax.trace(momentum),
        od.add_decoupled_weight_decay(decay, eta),
    )


def assert_trees_agree(actual, expected, unlike, *, tolerance, effect):
    """`actual` equals `expected` within the tolerance. The same comparison fails for `unlike`:
    each of its leaves is further away than the effect, which is at least 100 tolerances.
    """
    assert effect >= 100 * tolerance
    chex.assert_tree_all_finite((actual, expected))
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=tolerance)
    assert_trees_differ(actual, unlike, effect=effect)


def assert_trees_differ(actual, unlike, *, effect):
    """In every leaf some element is further away than the effect."""
    chex.assert_tree_all_finite((actual, unlike))
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, unlike)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(unlike), strict=True):
        with pytest.raises(AssertionError, match="not approximately equal"):
            chex.assert_trees_all_close(one, other, rtol=0, atol=effect)


def run(tx, params, gradient, inputs):
    """Weights and state after a step for each input, and the weights after every step."""

    def step(carry, x):
        params, state = carry
        updates, state = tx.update(gradient(params, x), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    compiled = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))
    params, inputs = jax.tree.map(jnp.asarray, (params, inputs))
    return compiled((params, tx.init(params)), inputs)


def path(tx):
    """The weights after each of 250 steps on the noisy, badly scaled quadratic of `problems.py`."""
    return run(tx, THETA, lambda theta, noise: CURVATURE * theta + noise, NOISE)[1]


def cosine(steps):
    """η_t from 1 to 0, in float64 where JAX computes in float64."""
    return lambda step: 0.5 * (1 + jnp.cos(jnp.pi * step.astype(float) / steps))


class Float64TestCase(chex.TestCase):
    """Tests in which JAX computes in float64."""

    def setUp(self):
        super().setUp()
        self.enter_context(jax.enable_x64(True))
