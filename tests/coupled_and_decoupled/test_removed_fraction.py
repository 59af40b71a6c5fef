"""Which fraction of a weight one step removes: one number decoupled, many numbers coupled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized
from chains import (
    Float64TestCase,
    assert_trees_agree,
    assert_trees_differ,
    cosine,
    coupled_adam,
    coupled_sgd,
    decoupled_adam,
    decoupled_sgd,
    run,
)
from problems import CURVATURE, DIM, THETA

import optax_decoupled as od

RATE, DECAY, L2, STEPS = 0.01, 2e-3, 1e-4, 1000
ETA = cosine(2 * STEPS)
_rng = np.random.default_rng(0)
SHAPES = {"kernel": (4, 3), "bias": (3,)}
WEIGHTS = {name: _rng.uniform(1.0, 2.0, size=shape) for name, shape in SHAPES.items()}
# The size of each weight's gradient; the signs are random, so that √v̂ is this size.
_sizes = _rng.permutation(np.geomspace(0.01, 1.0, 15))
SIZES = {"kernel": _sizes[:12].reshape(4, 3), "bias": _sizes[12:]}
GRADS = {
    name: SIZES[name] * _rng.choice([-1.0, 1.0], size=(STEPS, *shape))
    for name, shape in SHAPES.items()
}


def removed_fraction(chain, decay):
    """Of each weight, the fraction that a step removes because of the decay (or of λ′).

    It is the difference to the same step without decay, from one state after 1,000 steps.
    """
    without, with_decay = chain(0.0), chain(decay)
    (weights, state), _ = run(without, WEIGHTS, lambda weights, grads: grads, GRADS)
    grads = {name: jnp.asarray(grads[0]) for name, grads in GRADS.items()}
    steps = [jax.jit(tx.update)(grads, state, weights)[0] for tx in (without, with_decay)]
    return jax.tree.map(lambda plain, shrinking, w: (plain - shrinking) / w, *steps, weights)


def everywhere(fraction):
    return {name: jnp.full(shape, fraction) for name, shape in SHAPES.items()}


class RemovedFraction(Float64TestCase):
    @parameterized.parameters(decoupled_adam, decoupled_sgd)
    def test_decoupled_it_is_one_number_for_every_weight(self, chain):
        """c_t = λη_t, whatever the momentum and the preconditioner."""
        eta = float(ETA(jnp.asarray(STEPS)))
        fraction = removed_fraction(lambda decay: chain(RATE, decay, ETA), DECAY)
        scheduled, unscheduled = everywhere(DECAY * eta), everywhere(DECAY)
        assert_trees_agree(fraction, scheduled, unscheduled, tolerance=1e-14, effect=9e-4)

    def test_coupled_adam_removes_less_of_weights_with_larger_gradients(self):
        """Sorted by gradient, each weight loses less than the one before: αλ′(1 − b1)/√v̂ of it."""
        fraction = removed_fraction(lambda l2: coupled_adam(RATE, l2), L2)
        first_order = jax.tree.map(lambda size: RATE * L2 * (1 - 0.9) / size, SIZES)
        least = everywhere(RATE * L2 * (1 - 0.9))  # of the largest gradient, 1
        logs = [jax.tree.map(jnp.log, tree) for tree in (fraction, first_order, least)]
        assert_trees_agree(*logs, tolerance=0.02, effect=2.0)

        fractions, sizes = (
            np.concatenate([np.ravel(tree[name]) for name in SHAPES]) for tree in (fraction, SIZES)
        )
        by_gradient = fractions[np.argsort(sizes)]
        assert np.all(np.diff(np.log(by_gradient)) < -0.25)  # gradients: 0.33 from one to the next
        assert by_gradient[0] > 90 * by_gradient[-1]  # gradients: 100

    def test_coupled_sgd_has_one_number_too_which_is_the_rate_times_l2(self):
        """Of this step; its buffer will remove 9 times as much later. Not so in Adam."""
        fraction = removed_fraction(lambda l2: coupled_sgd(RATE, l2), L2)
        twice = removed_fraction(lambda l2: coupled_sgd(2 * RATE, l2), L2)
        assert_trees_agree(fraction, everywhere(RATE * L2), twice, tolerance=1e-14, effect=9e-7)

    def test_without_gradients_coupled_adam_moves_by_the_rate_whatever_l2(self):
        """λ′θ alone is divided by its own size. Decoupled, such a step removes λ of a weight."""
        weights = jax.tree.map(jnp.asarray, WEIGHTS)
        zeros = optax.tree.zeros_like(weights)
        by_the_rate = jax.tree.map(lambda w: -RATE * jnp.sign(w), weights)
        by_a_fraction = optax.tree.scale(-DECAY, weights)
        for l2 in (0.01, 1.0):
            tx = coupled_adam(RATE, l2)
            step = tx.update(zeros, tx.init(weights), weights)[0]
            assert_trees_agree(step, by_the_rate, by_a_fraction, tolerance=1e-8, effect=5e-3)
        tx = decoupled_adam(RATE, DECAY)
        step = tx.update(zeros, tx.init(weights), weights)[0]
        assert_trees_agree(step, by_a_fraction, by_the_rate, tolerance=1e-14, effect=5e-3)


class StateTransition(Float64TestCase):
    def test_decay_is_the_state_transition_of_section_3(self):
        """N((I − A)θ, Q) with A = λI: the mean shrinks alike whatever the preconditioner."""
        theta, grads = jnp.asarray(THETA), jnp.asarray(CURVATURE)
        shrunk, steps = [], []
        for scale in (1.0, 100.0):
            rest = (optax.scale(1 / scale), optax.sgd(0.1))
            chains = [optax.chain(*rest, od.add_decoupled_weight_decay(c)) for c in (DECAY, 0.0)]
            updates = [tx.update(grads, tx.init(theta), theta)[0] for tx in chains]
            shrunk.append(updates[0] - updates[1])
            steps.append(updates[1])
        without = jnp.zeros(DIM)
        for mean in shrunk:
            assert_trees_agree(mean, -DECAY * theta, without, tolerance=1e-14, effect=4e-3)
        assert_trees_differ(*steps, effect=0.2)
