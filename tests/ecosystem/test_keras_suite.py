"""Keras's own tests pass with our optimizers in the place of Keras's, and the steps are Keras's.

The tests and their golden arrays are those in Keras's wheel, keras.src.optimizers.*_test. They
need keras on the JAX backend.
"""

import importlib
import re
import unittest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import THETA, gradient, relative_error

import optax_decoupled as od

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:weight_decay"),  # Keras's tests remove half of a weight
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Keras, about NumPy
]
STEPS = 100


def adam(rate, epsilon=1e-7):
    """Keras adds epsilon before the bias correction of the second moment."""
    eps = lambda t: epsilon / jnp.sqrt(1 - 0.999 ** (t + 1))
    return optax.inject_hyperparams(optax.adam)(rate, eps=eps)


def sgd(rate, momentum=0.0, nesterov=False):
    """Keras multiplies by the rate before the momentum, as the paper does."""
    scale = optax.scale_by_schedule(rate) if callable(rate) else optax.scale(rate)
    return optax.chain(scale, optax.sgd(1.0, momentum, nesterov))


def lion(rate):
    return optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.0)


# By its module in Keras: the class, our optimizer, the rate and the decay by default, its tests.
GOLDEN = ("test_weight_decay", "test_correctness_with_golden")
OPTIMIZERS = {
    "adamw": ("AdamW", adam, 0.001, 0.004, ("test_single_step", *GOLDEN)),
    "sgd": ("SGD", sgd, 0.01, 0.0, GOLDEN),  # the third reads the variables of Keras's optimizer
    "lion": ("Lion", lion, 0.001, 0.0, ("test_single_step", *GOLDEN)),
}


@pytest.fixture(scope="module")
def keras(pytestconfig):
    pytestconfig.addinivalue_line("markers", "requires_trainable_backend: of Keras's tests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        module = pytest.importorskip("keras", reason="Keras's tests need keras")
        if module.backend.backend() != "jax":
            pytest.skip("Keras's tests need keras on the JAX backend")
        yield module


def in_the_place_of(name, factor):
    """Our optimizer with the methods that Keras's tests call; its decay times the factor."""
    _, make, default_rate, default_decay, _ = OPTIMIZERS[name]

    class Ours:
        def __init__(self, learning_rate=default_rate, weight_decay=default_decay, **options):
            decay = od.weight_decay_from_pytorch(weight_decay, learning_rate)
            steps = make(learning_rate, **options)
            self.decaying, self.sparing = od.decouple(steps, factor * decay), steps
            self.is_spared, self.states = lambda _: False, {}

        def exclude_from_weight_decay(self, var_list=(), var_names=()):
            self.is_spared = lambda x: (
                any(x is y for y in var_list) or any(re.search(y, x.name) for y in var_names)
            )

        def apply_gradients(self, grads_and_variables):
            for grad, variable in grads_and_variables:
                tx, theta = (
                    self.sparing if self.is_spared(variable) else self.decaying,
                    variable.value,
                )
                state = self.states.get(id(variable), tx.init(theta))
                updates, self.states[id(variable)] = tx.update(jnp.asarray(grad), state, theta)
                variable.assign(optax.apply_updates(theta, updates))

    return Ours


def failures(monkeypatch, name, factor):
    module = importlib.import_module(f"keras.src.optimizers.{name}_test")
    cls, *_, tests = OPTIMIZERS[name]
    monkeypatch.setattr(module, cls, in_the_place_of(name, factor))
    suite = unittest.TestSuite(getattr(module, f"{cls}Test")(test) for test in tests)
    result = suite.run(unittest.TestResult())
    assert result.testsRun == len(tests)
    assert not result.errors, result.errors
    return [case._testMethodName for case, _ in result.failures]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kerass_tests_pass_and_another_decay_fails_them(keras, monkeypatch, name):
    assert failures(monkeypatch, name, 1.0) == []
    assert "test_weight_decay" in failures(monkeypatch, name, 1.1)


def theirs(keras, cls, rate, weight_decay, **options):
    cosine = keras.optimizers.schedules.CosineDecay(rate, decay_steps=STEPS)
    tx = getattr(keras.optimizers, cls)(cosine, weight_decay=weight_decay, **options)
    variable, path = keras.Variable(THETA.astype(np.float32)), []
    for t in range(STEPS):
        theta = np.asarray(variable.value, float)
        tx.apply([jnp.asarray(gradient(theta, t), jnp.float32)], [variable])
        path.append(np.asarray(variable.value, float))
    return np.stack(path)


def ours(make, rate, decay, schedule, **options):
    cosine = lambda t: rate * optax.cosine_decay_schedule(1.0, STEPS)(t)
    tx = od.decouple(make(cosine, **options), decay, schedule)
    params, path = jnp.asarray(THETA, jnp.float32), []
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(STEPS):
        grads = jnp.asarray(gradient(np.asarray(params, float), t), jnp.float32)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params, float))
    return np.stack(path)


@pytest.mark.parametrize("rate", [0.02, 0.005])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"nesterov": True, "momentum": 0.9}),
        ("sgd", {}),
        ("lion", {}),
    ],
)
def test_the_steps_are_those_of_keras(keras, name, options, rate):
    cls, make, *_ = OPTIMIZERS[name]
    eta = optax.cosine_decay_schedule(1.0, STEPS)
    expected = theirs(keras, cls, rate, 0.4, **options)
    decay = od.weight_decay_from_pytorch(0.4, rate)
    assert relative_error(ours(make, rate, decay, eta, **options), expected) < 2e-5
    for other in ((0.4, eta), (decay, None)):
        assert relative_error(ours(make, rate, *other, **options), expected) > 2e-3
