"""The paper's three propositions, and the limits of each, in float64."""

import chex
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
    path,
    run,
)
from problems import DIM, STEPS, THETA, gradient
from trees import total_updates

import optax_decoupled as od

RATE, DECAY = 0.01, 2e-3
PLAIN = dict(momentum=0.0)
# Float64, for weights of size 2: rounding over 250 steps stays below 1e-12.
EXACT = dict(tolerance=1e-12, effect=0.03)


class Proposition1(Float64TestCase):
    """Plain SGD takes the same steps with the decay λ and with the L2 coefficient λ′ = λ/α."""

    @chex.all_variants
    def test_proposition_1_each_step_is_the_same(self):
        chains = [coupled_sgd(RATE, DECAY / RATE, **PLAIN)]
        chains += [decoupled_sgd(RATE, decay, **PLAIN) for decay in (DECAY, 2 * DECAY)]
        totals = total_updates(self.variant, chains, "nnx", "float64")
        assert_trees_agree(*totals, tolerance=1e-14, effect=3e-3)

    @parameterized.parameters(0.01, 0.04)
    def test_proposition_1_over_a_run(self, rate):
        coupled = path(coupled_sgd(rate, DECAY / rate, **PLAIN))
        without = path(decoupled_sgd(rate, 0.0, **PLAIN))
        assert_trees_agree(coupled, path(decoupled_sgd(rate, DECAY, **PLAIN)), without, **EXACT)

    def test_proposition_1_couples_the_l2_coefficient_to_the_rate(self):
        """With λ′ kept, a rate four times as large is a decay four times as large."""
        kept = path(coupled_sgd(4 * RATE, DECAY / RATE, **PLAIN))
        fourfold = path(decoupled_sgd(4 * RATE, 4 * DECAY, **PLAIN))
        assert_trees_agree(kept, fourfold, path(decoupled_sgd(4 * RATE, DECAY, **PLAIN)), **EXACT)

    def test_proposition_1_under_a_schedule_needs_it_on_the_decay_too(self):
        coupled = path(coupled_sgd(RATE, DECAY / RATE, cosine(STEPS), **PLAIN))
        both = path(decoupled_sgd(RATE, DECAY, cosine(STEPS), **PLAIN))
        step_alone = od.sgdw(RATE, DECAY, schedule=cosine(STEPS), decay_schedule=1.0, **PLAIN)
        assert_trees_agree(coupled, both, path(step_alone), **EXACT)


class Proposition1WithMomentum(Float64TestCase):
    """Momentum m is not covered: the buffer repeats each λ′θ, 1/(1 − m) times in all."""

    def test_proposition_1_does_not_cover_momentum(self):
        coupled = path(coupled_sgd(RATE, DECAY / RATE))
        assert_trees_differ(coupled, path(decoupled_sgd(RATE, DECAY)), effect=EXACT["effect"])

    def test_proposition_1_with_momentum_removes_more_at_each_step(self):
        """Step t removes αλ′(1 − mᵗ)/(1 − m), to first order in αλ′: at first αλ′, later 10 αλ′."""
        l2, m, steps = 1e-3, 0.9, 100
        removed = []
        for tx in (coupled_sgd(RATE, l2), decoupled_sgd(RATE, RATE * l2 / (1 - m))):
            after = run(tx, THETA, lambda theta, zeros: zeros, np.zeros((steps, DIM)))[1]
            before = jnp.concatenate([jnp.asarray(THETA)[None], after[:-1]])
            removed.append((before - after) / before)
        growing = RATE * l2 * (1 - m ** jnp.arange(1, steps + 1)) / (1 - m)
        expected = jnp.broadcast_to(growing[:, None], (steps, DIM))
        assert_trees_agree(removed[0], expected, removed[1], tolerance=2e-7, effect=8e-5)

    def test_proposition_1_with_momentum_is_a_larger_decay_over_a_run(self):
        """Over 10,000 steps SGD with L2 loses as much as by a decay of αλ′/(1 − m): 1 − 1/e."""
        l2, m = 1e-3, 0.9
        noise = 0.01 * np.random.default_rng(0).normal(size=(10_000, DIM))
        coupled, larger, first_step = (
            run(tx, THETA, lambda theta, grads: grads, noise)[0][0]
            for tx in (
                coupled_sgd(RATE, l2),
                decoupled_sgd(RATE, RATE * l2 / (1 - m)),
                decoupled_sgd(RATE, RATE * l2),
            )
        )
        assert_trees_agree(coupled, larger, first_step, tolerance=2e-4, effect=1.0)


SCALE = np.geomspace(0.2, 20.0, DIM)  # s: the fixed preconditioner is M = diag(s)⁻¹


def preconditioned(first, decay=0.0):
    precondition = optax.stateless(lambda updates, _: updates / jnp.asarray(SCALE))
    last = od.add_decoupled_weight_decay(decay)
    return optax.chain(first, precondition, optax.scale(-RATE), last)


class Proposition2(Float64TestCase):
    """With a preconditioner that is no multiple of the identity, no λ′ equals a decay."""

    def test_proposition_2_two_coordinates_of_one_step_need_two_coefficients(self):
        theta, g = jnp.asarray(THETA), gradient(THETA, 0)
        tx = preconditioned(optax.identity(), DECAY)
        step, _ = tx.update(jnp.asarray(g), tx.init(theta), theta)
        # The λ′ with which −α M (g + λ′θ) is that step, coordinate by coordinate.
        required = (-np.asarray(step) * SCALE / RATE - g) / THETA
        one_for_all = np.full(DIM, required.mean())
        assert_trees_agree(required, DECAY * SCALE / RATE, one_for_all, tolerance=1e-9, effect=2.0)
        assert required.max() / required.min() > 50

    def test_proposition_2_each_coordinate_of_adam_needs_a_coefficient_of_its_own(self):
        """At each coordinate exactly one λ′ makes a step of Adam with L2 the step of AdamW. It is
        proportional to √v̂, within 2 %: after 1,000 steps the L2 gradient hardly changes v̂ itself.
        """
        steps, decay, b1, b2 = 1000, 1e-4, 0.9, 0.999
        grads = np.geomspace(1e-3, 1, DIM) * np.random.default_rng(0).normal(size=(steps, DIM))
        tx, last = decoupled_adam(RATE, decay), jnp.asarray(grads[-1])
        (theta, state), _ = run(tx, THETA, lambda theta, g: g, grads[:-1])
        decoupled = tx.update(last, state, theta)[0]
        state = (optax.EmptyState(), *state[:-1])  # of the coupled chain, with the same moments
        coupled = jax.vmap(lambda l2: coupled_adam(RATE, l2).update(last, state, theta)[0])
        excess = jax.jit(lambda l2: (jnp.diag(coupled(l2)) - decoupled) * jnp.sign(theta))

        v_hat = np.average(grads**2, axis=0, weights=b2 ** np.arange(steps)[::-1])
        predicted = decay / RATE * np.sqrt(v_hat) * (1 - b1**steps) / (1 - b1)
        required = bisect(excess, high=10 * jnp.asarray(predicted))
        assert_trees_agree(
            np.log(required),
            np.log(predicted),
            unlike=np.full(DIM, np.log(predicted).mean()),  # one λ′ for all
            tolerance=0.02,
            effect=3.0,
        )
        steps_of_each = coupled(required)  # [λ′, coordinate]
        chex.assert_trees_all_close(jnp.diag(steps_of_each), decoupled, rtol=0, atol=1e-15)
        assert_trees_differ([*steps_of_each], DIM * [decoupled], effect=1e-4)
        for factor in np.geomspace(1e-3, 1e6, 20):  # no other λ′ does, far and near
            chex.assert_trees_all_equal(
                jnp.sign(excess(factor * required)), jnp.full(DIM, 1.0 if factor < 1 else -1.0)
            )

    def test_proposition_2_no_coefficient_of_a_grid_brings_adam_near_adamw(self):
        grid = jnp.asarray([DECAY / RATE, *np.geomspace(1e-3, 10, 13)])
        coupled = jax.vmap(lambda l2: path(coupled_adam(RATE, l2)))(grid)
        decoupled = path(decoupled_adam(RATE, DECAY))
        assert_trees_differ([*coupled], len(grid) * [decoupled], effect=0.03)


def bisect(falling, high):
    """Where a function that falls in each of its coordinates is 0, between 0 and `high`."""

    def halve(bounds, _):
        low, high = bounds
        middle = (low + high) / 2
        above = falling(middle) > 0
        return (jnp.where(above, middle, low), jnp.where(above, high, middle)), None

    start = (jnp.zeros_like(high), high)
    return jax.jit(lambda start: jax.lax.scan(halve, start, length=60)[0])(start)[0]


class Proposition3(Float64TestCase):
    """Before a fixed preconditioner diag(s)⁻¹ the penalty (λ′/2)‖θ ⊙ √s‖² is a decay of αλ′."""

    def test_proposition_3_scale_adjusted_l2_is_decay(self):
        adjusted = path(preconditioned(od.scale_adjusted_l2_to_grad(DECAY / RATE, SCALE)))
        decoupled = path(preconditioned(optax.identity(), DECAY))
        not_adjusted = path(preconditioned(od.l2_to_grad(DECAY / RATE)))
        assert_trees_agree(adjusted, decoupled, not_adjusted, **EXACT)

    def test_proposition_3_the_bodys_equation_2_does_not_hold(self):
        """Erratum: Eq. 2 has (λ′/2α)‖θ ⊙ √s‖² with λ′ = λ/α. That penalty is a decay of λ/α."""
        decay = 5e-5
        literal = path(preconditioned(od.scale_adjusted_l2_to_grad(decay / RATE / RATE, SCALE)))
        hundredfold = path(preconditioned(optax.identity(), decay / RATE))
        as_printed = path(preconditioned(optax.identity(), decay))
        assert_trees_agree(literal, hundredfold, as_printed, tolerance=1e-12, effect=0.3)

    def test_proposition_3_the_gradient_is_that_of_the_penalty(self):
        l2, theta, scale = 0.3, jnp.asarray(THETA), jnp.asarray(SCALE)
        penalty = lambda x: l2 / 2 * jnp.sum((x * jnp.sqrt(scale)) ** 2)
        tx = od.scale_adjusted_l2_to_grad(l2, scale)
        grads, _ = tx.update(jnp.zeros(DIM), tx.init(theta), theta)
        assert_trees_agree(grads, jax.grad(penalty)(theta), l2 * theta, tolerance=1e-12, effect=1.0)
