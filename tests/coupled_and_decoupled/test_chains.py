"""The chains are the finished optimizers and the paper's algorithms, however they are run."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
import reference
from absl.testing import parameterized
from chains import (
    Float64TestCase,
    assert_trees_agree,
    cosine,
    coupled_adam,
    coupled_sgd,
    decoupled_adam,
    decoupled_sgd,
    path,
)
from problems import STEPS, THETA
from problems import gradient as gradient_at
from trees import TREES, problem, total_updates

import optax_decoupled as od

RATE, L2, DECAY = 1e-3, 0.05, 5e-3
ETA = cosine(10)
CHAINS = {
    "coupled_adam": coupled_adam(RATE, L2, ETA),
    "decoupled_adam": decoupled_adam(RATE, DECAY, ETA),
    "coupled_sgd": coupled_sgd(RATE, L2, ETA),
    "decoupled_sgd": decoupled_sgd(RATE, DECAY, ETA),
}
FINISHED = {
    "coupled_adam": od.adam_l2(RATE, L2, schedule=ETA),
    "decoupled_adam": od.adamw(RATE, DECAY, schedule=ETA),
    "coupled_sgd": od.sgd_l2(RATE, L2, schedule=ETA),
    "decoupled_sgd": od.sgdw(RATE, DECAY, schedule=ETA),
}
# The sum of three updates is of size 0.03. Coupled and decoupled ones differ by 0.01; a chain and
# its optimizer by rounding alone, which is 4e-6 in bfloat16: there the optimizer keeps SGD's
# momentum more exactly than `optax.trace` does.
TOLERANCES = {"float32": 1e-7, "bfloat16": 1e-5, "float64": 1e-15}
EFFECT = 0.01


class ChainsAndOptimizers(chex.TestCase):
    """Each chain, written out by hand, is its finished optimizer, in every leaf.

    With and without jit, with arrays on a device and not, and under pmap on two devices, which
    JAX still has in versions 0.10 and 0.12.
    """

    def assert_chains_are_optimizers(self, algorithm, kind, dtype):
        names = [f"coupled_{algorithm}", f"decoupled_{algorithm}"]
        optimizers = [table[name] for name in names for table in (CHAINS, FINISHED)]
        totals = total_updates(self.variant, optimizers, kind, dtype)
        coupled, finished_coupled, decoupled, finished_decoupled = totals
        chex.assert_trees_all_equal_shapes_and_dtypes(coupled, problem(kind, dtype)[0])
        close = dict(tolerance=TOLERANCES[dtype], effect=EFFECT)
        assert_trees_agree(coupled, finished_coupled, unlike=decoupled, **close)
        assert_trees_agree(decoupled, finished_decoupled, unlike=coupled, **close)

    @chex.all_variants
    @parameterized.product(algorithm=("adam", "sgd"), kind=list(TREES))
    def test_float32(self, algorithm, kind):
        self.assert_chains_are_optimizers(algorithm, kind, "float32")

    @chex.variants(with_jit=True)
    @parameterized.product(algorithm=("adam", "sgd"), kind=list(TREES))
    def test_bfloat16(self, algorithm, kind):
        self.assert_chains_are_optimizers(algorithm, kind, "bfloat16")

    @chex.variants(with_jit=True)
    @parameterized.product(algorithm=("adam", "sgd"), kind=list(TREES))
    def test_float64(self, algorithm, kind):
        with jax.enable_x64(True):
            self.assert_chains_are_optimizers(algorithm, kind, "float64")


class ChainsAndAlgorithms(Float64TestCase):
    """Each chain is its algorithm in the paper, written in NumPy without code of the package."""

    @parameterized.product(rate=(0.01, 0.04), algorithm=("adam", "sgd"))
    def test_250_steps_of_a_moving_schedule(self, rate, algorithm):
        decay, l2, eta = 2e-3, 2e-3 / rate, cosine(STEPS)
        values = [float(eta(jnp.asarray(t))) for t in range(STEPS)]
        run = functools.partial(getattr(reference, algorithm), THETA, gradient_at, values, rate)
        with_l2, with_decay = run(l2=l2), run(decay=[decay * value for value in values])
        coupled, decoupled = {
            "adam": (coupled_adam(rate, l2, eta), decoupled_adam(rate, decay, eta)),
            "sgd": (coupled_sgd(rate, l2, eta), decoupled_sgd(rate, decay, eta)),
        }[algorithm]
        close = dict(tolerance=1e-13, effect=0.1)
        assert_trees_agree(path(coupled), with_l2, unlike=with_decay, **close)
        assert_trees_agree(path(decoupled), with_decay, unlike=with_l2, **close)


class Compilation(chex.TestCase):
    """A chain is traced once, whatever its schedule does, and under chex's fakes not at all."""

    @parameterized.parameters(*CHAINS)
    def test_a_moving_schedule_is_traced_once(self, name):
        params, gradient = problem("nnx")
        chex.clear_trace_counter()
        update = jax.jit(chex.assert_max_traces(CHAINS[name].update, n=1))
        grads, state, sizes = gradient(params), CHAINS[name].init(params), []
        for _ in range(10):
            updates, state = update(grads, state, params)
            sizes.append(float(optax.tree.norm(updates)))
        chex.assert_tree_all_finite(state)
        assert sizes[9] < 0.9 * sizes[4]  # with η = 1 Adam's would stay as they are, SGD's grow

    def test_a_schedule_value_in_a_python_number_is_traced_at_each_step(self):
        """The test above would fail so: here each value of η is a constant of the program."""

        def update(eta, grads, state, params):
            return decoupled_adam(RATE, DECAY, lambda step: eta).update(grads, state, params)

        params, gradient = problem("nnx")
        chex.clear_trace_counter()
        compiled = jax.jit(chex.assert_max_traces(update, n=1), static_argnums=0)
        arguments = (gradient(params), decoupled_adam(RATE, DECAY).init(params), params)
        compiled(1.0, *arguments)
        with pytest.raises(AssertionError, match="traced > 1 times"):
            compiled(0.5, *arguments)

    def test_values_inside_a_compiled_step_can_be_read_under_fake_jit(self):
        params, gradient = problem("dict")
        chain, fractions = CHAINS["decoupled_adam"], []

        def step(grads, state, params):
            updates, state = chain.update(grads, state, params)
            fractions.append(float(optax.tree.get(state, "decay_rate")))  # c_t
            return updates, state

        grads, state = gradient(params), chain.init(params)
        with pytest.raises(jax.errors.ConcretizationTypeError):
            jax.jit(step)(grads, state, params)
        with chex.fake_pmap_and_jit():
            for _ in range(3):
                _, state = jax.jit(step)(grads, state, params)
        expected = DECAY * ETA(jnp.arange(3))
        unscheduled = jnp.full(3, DECAY)
        assert_trees_agree(
            jnp.asarray(fractions), expected, unscheduled, tolerance=1e-9, effect=1e-4
        )

    @parameterized.parameters("coupled_adam", "decoupled_adam")
    def test_a_step_on_two_devices_is_the_same_under_fake_pmap(self, name):
        params, gradient = problem("dict")
        chain, grads = CHAINS[name], gradient(params)
        batches = jax.tree.map(lambda g: jnp.stack([0 * g, 2 * g]), grads)

        def step(grads):
            grads = jax.lax.pmean(grads, "batch")
            return chain.update(grads, chain.init(params), params)[0]

        with chex.fake_pmap_and_jit():
            faked = jax.pmap(step, axis_name="batch")(batches)
        real = jax.pmap(step, axis_name="batch", devices=jax.devices()[:2])(batches)
        expected = chain.update(grads, chain.init(params), params)[0]
        first = chain.update(optax.tree.zeros_like(grads), chain.init(params), params)[0]
        for replicas in (faked, real):
            for device in range(2):
                replica = jax.tree.map(lambda x, i=device: x[i], replicas)
                assert_trees_agree(replica, expected, first, tolerance=1e-9, effect=9e-4)
