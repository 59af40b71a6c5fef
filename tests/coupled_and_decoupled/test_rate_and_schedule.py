"""The schedule multiplies step and decay, the rate the step alone; coupled, both do both."""

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
from problems import DIM, STEPS, THETA

import optax_decoupled as od

RATE, DECAY, L2 = 0.01, 2e-3, 0.1
DECOUPLED = {
    "adam": lambda rate, eta: decoupled_adam(rate, DECAY, eta),
    "sgd": lambda rate, eta: decoupled_sgd(rate, DECAY, eta),
}
COUPLED = {
    "adam": lambda rate, eta: coupled_adam(rate, L2, eta),
    "sgd": lambda rate, eta: coupled_sgd(rate, L2, eta),
}


def first_update(chain, rate=RATE, eta=1.0):
    tx, theta = chain(rate, lambda step: eta), jnp.asarray(THETA)
    return tx.update(jnp.cos(theta), tx.init(theta), theta)[0]


class OneStep(Float64TestCase):
    @parameterized.parameters(*DECOUPLED)
    def test_decoupled_the_schedule_multiplies_step_and_decay(self, algorithm):
        full = first_update(DECOUPLED[algorithm])
        half = first_update(DECOUPLED[algorithm], eta=0.5)
        decay_unscheduled = 0.5 * full - 0.5 * DECAY * THETA
        assert_trees_agree(half, 0.5 * full, decay_unscheduled, tolerance=1e-14, effect=2e-3)

    @parameterized.parameters(*DECOUPLED)
    def test_decoupled_the_rate_multiplies_the_step_alone(self, algorithm):
        once, twice = (first_update(DECOUPLED[algorithm], rate) for rate in (RATE, 2 * RATE))
        one_decay = 2 * once + DECAY * THETA  # of the two in 2 · once
        assert_trees_agree(twice, one_decay, 2 * once, tolerance=1e-14, effect=4e-3)

    @parameterized.parameters(*COUPLED)
    def test_coupled_the_rate_multiplies_both_like_the_schedule(self, algorithm):
        once, by_rate, by_schedule = (
            first_update(COUPLED[algorithm], rate, eta)
            for rate, eta in ((RATE, 1.0), (2 * RATE, 1.0), (RATE, 2.0))
        )
        one_decay = 2 * once + DECAY * THETA
        for twice in (by_rate, by_schedule):
            assert_trees_agree(twice, 2 * once, one_decay, tolerance=1e-14, effect=4e-3)


class OverARun(Float64TestCase):
    @parameterized.product(algorithm=list(DECOUPLED), rate=(RATE, 4 * RATE))
    def test_decoupled_without_gradients_the_schedule_alone_decides(self, algorithm, rate):
        """θ_T = θ_0 ∏(1 − λη_t), whatever the rate."""
        tx, eta = DECOUPLED[algorithm](rate, cosine(STEPS)), cosine(STEPS)
        nothing = np.zeros((STEPS, DIM))
        (end, _), _ = run(tx, THETA, lambda theta, zeros: zeros, nothing)
        left = np.prod(1 - DECAY * eta(jnp.arange(STEPS)))
        unscheduled = (1 - DECAY) ** STEPS * jnp.asarray(THETA)
        assert_trees_agree(end, left * jnp.asarray(THETA), unscheduled, tolerance=1e-13, effect=0.3)

    def test_the_decay_follows_the_schedule(self):
        eta = cosine(STEPS)
        constant_decay = od.adamw(RATE, DECAY, schedule=eta, decay_schedule=1.0)
        assert_trees_differ(
            path(decoupled_adam(RATE, DECAY, eta)), path(constant_decay), effect=0.03
        )

    def test_optaxs_adamw_multiplies_the_decay_by_the_rate(self):
        """Its weight_decay is λ/α: the same run at one rate, another at four times the rate."""
        stock = lambda rate: path(optax.adamw(rate, weight_decay=DECAY / RATE))
        ours = lambda rate: path(decoupled_adam(rate, DECAY))
        assert_trees_agree(stock(RATE), ours(RATE), ours(4 * RATE), tolerance=1e-12, effect=0.03)
        assert_trees_differ(stock(4 * RATE), ours(4 * RATE), effect=0.03)

    def test_the_two_momentum_buffers_agree_until_the_schedule_moves(self):
        """The step size stands inside the buffer in the paper, outside in PyTorch and Optax."""
        rate = 4 * RATE
        for_constant = path(od.sgdw(rate, DECAY, scale_before_momentum=False))
        inside = path(decoupled_sgd(rate, DECAY, cosine(STEPS)))
        assert_trees_agree(
            path(decoupled_sgd(rate, DECAY)), for_constant, inside, tolerance=1e-12, effect=0.03
        )
        outside = path(od.sgdw(rate, DECAY, schedule=cosine(STEPS), scale_before_momentum=False))
        assert_trees_differ(inside, outside, effect=1e-3)
