"""Cautious decay, of the elements that the gradients let decay, is told from all others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, kinds, random_grads, small_params, trained

import optax_decoupled as od


@pytest.mark.parametrize("make", [optax.lamb, optax.lars, optax.adafactor, optax.contrib.dog])
def test_cautious_decay_is_seen_beside_steps_that_grow_with_the_weights(make):
    """And a decay that happens to be as large as such a step is not cautious."""
    for cautious, kind in [(True, "cautious"), (False, "decoupled")]:
        tx = od.decouple(make(LR), 1e-3, cautious=cautious)
        report = od.explain_weight_decay(tx, small_params())
        assert kinds(report) == {kind}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


NOT_SILENT = {
    "eps=0, Adam": lambda: optax.adam(1e-2, eps=0.0),
    "eps=0, RMSProp": lambda: optax.rmsprop(1e-2, eps=0.0),
    "unit gradients": lambda: optax.chain(optax.contrib.normalize(), optax.sgd(1e-2)),
    "noise": lambda: optax.noisy_sgd(1e-2, key=0),
}


@pytest.mark.parametrize("name", NOT_SILENT)
def test_cautious_decay_is_seen_where_something_moves_without_gradients(name):
    """Or where that is no number."""
    for cautious, kind in [(True, "cautious"), (False, "decoupled")]:
        decay = od.add_decoupled_weight_decay(1e-3, cautious=cautious)
        report = od.explain_weight_decay(optax.chain(NOT_SILENT[name](), decay), small_params())
        assert kinds(report) == {kind}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


def _where(chosen):
    """Adam, and a decay of the elements that `chosen(update, parameter)` names."""
    decay = lambda u, p: jnp.where(chosen(u, p), -1e-3 * p, 0)
    add = lambda us, ps: jax.tree.map(lambda u, p: u + decay(u, p), us, ps)
    return optax.chain(optax.adam(LR), optax.stateless(add))


def test_cautious_decay_may_let_alone_what_does_not_move():
    report = od.explain_weight_decay(_where(lambda u, p: u * p < 0), small_params())
    assert kinds(report) == {"cautious"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


def test_decay_of_what_moves_is_not_cautious():
    report = od.explain_weight_decay(_where(lambda u, p: u != 0), small_params())
    assert kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [od.adamw, od.sgdw])
def test_cautious_decay_is_seen_behind_momentum_that_outweighs_the_gradients(make):
    tx = make(LR, 1e-4, cautious=True)
    params, state = trained(tx, small_params(), 3)
    grads = random_grads(params, 5, 1e-5)
    report = od.explain_weight_decay(tx, params, state=state, grads=grads)
    assert kinds(report) == {"cautious"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-4, rtol=1e-3)


def test_a_step_that_grows_with_the_weights_is_not_cautious_without_rest_to_compare():
    tx = od.decouple(optax.lamb(3e-3, eps=0.0), 1e-3)
    assert kinds(od.explain_weight_decay(tx, small_params())) == {"decoupled"}
