"""The paper's three propositions, and what they do not say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CURVATURE, DIM, THETA, gradient, relative_error, train

import optax_decoupled as od

DECAY = 2e-3


def _train64(tx):
    with jax.enable_x64(True):
        return train(tx, "float64")


@pytest.mark.parametrize("alpha", [0.01, 0.04])
def test_proposition_1_sgd_with_l2_is_decay(alpha):
    l2 = od.convert.to_l2(DECAY, alpha)
    coupled = _train64(od.sgd_l2(alpha, l2, momentum=0.0))
    assert relative_error(coupled, _train64(od.sgdw(alpha, DECAY, momentum=0.0))) < 1e-12


def test_proposition_1_couples_the_best_l2_to_the_rate():
    l2 = od.convert.to_l2(DECAY, 0.01)  # kept while the rate moves
    coupled = _train64(od.sgd_l2(0.04, l2, momentum=0.0))
    assert relative_error(coupled, _train64(od.sgdw(0.04, DECAY, momentum=0.0))) > 0.01


def test_proposition_1_does_not_cover_momentum():
    l2 = od.convert.to_l2(DECAY, 0.01)
    assert relative_error(_train64(od.sgd_l2(0.01, l2)), _train64(od.sgdw(0.01, DECAY))) > 0.01


SCALE = np.geomspace(0.2, 20.0, DIM)  # s: the fixed preconditioner is M = diag(s)⁻¹


def _preconditioned(alpha, first, decay=0.0):
    def init(params):
        del params
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        return updates / jnp.asarray(SCALE), state

    precondition = optax.GradientTransformation(init, update)
    inner = optax.chain(first, precondition, optax.scale(-alpha))
    return optax.chain(inner, od.add_decoupled_weight_decay(decay))


def test_proposition_2_no_l2_coefficient_equals_decay():
    """Witness: two coordinates of one step need different λ′."""
    alpha, t = 0.01, 0
    g = gradient(THETA, t)
    with jax.enable_x64(True):
        tx = _preconditioned(alpha, optax.identity(), DECAY)
        theta = jnp.asarray(THETA)
        step, _ = tx.update(jnp.asarray(g), tx.init(theta), theta)
    # the λ′ with which −α M (g + λ′θ) is that step, coordinate by coordinate
    required = (-np.asarray(step) * SCALE / alpha - g) / THETA
    np.testing.assert_allclose(required, DECAY * SCALE / alpha, rtol=1e-9)
    assert required.max() / required.min() > 50


def test_proposition_2_for_adam_no_coefficient_of_a_grid_comes_near():
    decoupled = _train64(od.adamw(0.01, DECAY))
    distances = [
        relative_error(_train64(od.adam_l2(0.01, l2)), decoupled)
        for l2 in np.geomspace(1e-3, 10, 13)
    ]
    assert min(distances) > 0.01


def test_proposition_3_scale_adjusted_l2_is_decay():
    alpha = 0.01
    l2 = od.convert.to_l2(DECAY, alpha)
    with jax.enable_x64(True):
        scale = jnp.asarray(SCALE)
        adjusted = train(_preconditioned(alpha, od.scale_adjusted_l2_to_grad(l2, scale)), "float64")
        decoupled = train(_preconditioned(alpha, optax.identity(), DECAY), "float64")
    assert relative_error(adjusted, decoupled) < 1e-12


def test_proposition_3_the_bodys_equation_2_does_not_hold():
    """Its penalty (λ′/2α)‖θ⊙√s‖² with λ′ = λ/α has one 1/α too many."""
    alpha = 0.01
    l2 = od.convert.to_l2(DECAY, alpha) / alpha
    with jax.enable_x64(True):
        scale = jnp.asarray(SCALE)
        literal = train(_preconditioned(alpha, od.scale_adjusted_l2_to_grad(l2, scale)), "float64")
        decoupled = train(_preconditioned(alpha, optax.identity(), DECAY), "float64")
    assert relative_error(literal, decoupled) > 0.1


def test_the_scale_adjusted_gradient_is_that_of_the_penalty():
    l2 = 0.3
    with jax.enable_x64(True):
        theta, scale = jnp.asarray(THETA), jnp.asarray(SCALE)
        penalty = lambda x: l2 / 2 * jnp.sum((x * jnp.sqrt(scale)) ** 2)
        tx = od.scale_adjusted_l2_to_grad(l2, scale)
        grads, _ = tx.update(jnp.zeros(DIM), tx.init(theta), theta)
        np.testing.assert_allclose(grads, jax.grad(penalty)(theta), rtol=1e-12)


def test_decay_is_the_state_transition_of_section_3():
    """N((I − A)θ, Q) with A = λI: the mean shrinks alike whatever the preconditioner."""
    theta = jnp.asarray(THETA, jnp.float32)
    grads = jnp.asarray(CURVATURE, jnp.float32)
    shrunk = []
    for scale in (1.0, 100.0):
        with_decay, without = (
            od.decouple(optax.chain(optax.scale(1.0 / scale), optax.sgd(0.1)), decay)
            for decay in (DECAY, 0.0)
        )
        updates = [tx.update(grads, tx.init(theta), theta)[0] for tx in (with_decay, without)]
        shrunk.append(updates[0] - updates[1])
    np.testing.assert_allclose(shrunk[0], shrunk[1], atol=2e-8)
    np.testing.assert_allclose(shrunk[0], -DECAY * THETA, rtol=1e-4)
