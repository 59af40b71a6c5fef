"""The ports of the page "Port a run" take the other library's steps.

Optax's are its own, PyTorch's are stored, Keras's and Composer's are written out in NumPy from the
updates they document. A port whose decay is not converted is far away.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import run_page
from problems import THETA, gradient, relative_error

import optax_decoupled as od

STEPS = 200
COSINE = [0.5 * (1 + np.cos(np.pi * t / STEPS)) for t in range(STEPS)]
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "pytorch.json").read_text())


@pytest.fixture(scope="module")
def ports():
    return run_page("porting")


def paths(tx, names, grad=gradient, theta=THETA):
    """Parameters that start alike after every step, in float64."""
    with jax.enable_x64(True):
        params = {name: jnp.asarray(theta) for name in names}
        state, kept = tx.init(params), {name: [] for name in names}
        update = jax.jit(tx.update)
        for t in range(STEPS):
            grads = {key: jnp.asarray(grad(np.asarray(x), t)) for key, x in params.items()}
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            for name in names:
                kept[name].append(np.asarray(params[name]))
    return {name: np.stack(x) for name, x in kept.items()}


def path(tx, grad=gradient, theta=THETA, name="kernel"):
    return paths(tx, ("kernel", "bias"), grad, theta)[name]


def test_optax(ports):
    matrix, vector = np.outer(THETA, THETA), THETA
    noise = np.random.default_rng(0).normal(size=(STEPS, *matrix.shape))
    for theta, grad in ((matrix, lambda x, t: x + noise[t]), (vector, gradient)):
        before = path(ports["before"], grad, theta)
        for name in ("after", "injected"):
            assert relative_error(path(ports[name], grad, theta), before) < 1e-6
    twice = od.adamw(3e-4, 2 * 3e-5, schedule=ports["eta"])
    assert relative_error(path(twice), path(ports["after"])) > 1e-3


@pytest.mark.parametrize(
    ("port", "case"), [("from_pytorch", "adamw"), ("from_pytorch_sgd", "sgd_momentum")]
)
def test_pytorch(ports, port, case):
    curvature, noise = np.asarray(GOLDEN["curvature"]), np.asarray(GOLDEN["noise"])
    grad = lambda theta, t: curvature * theta + noise[t]
    ours = path(ports[port], grad, np.asarray(GOLDEN["theta"]))[GOLDEN["keep"]]
    assert relative_error(ours, np.asarray(GOLDEN["cases"][case]["theta"])) < 1e-5


@pytest.mark.parametrize(
    ("port", "case"),
    [("from_groups", "groups"), ("from_torchtitan", "torchtitan"), ("from_olmo", "olmo")],
)
def test_pytorch_with_groups_warmup_and_clipping(ports, port, case):
    curvature, noise = np.asarray(GOLDEN["curvature"]), np.asarray(GOLDEN["noise"])
    grad, expected = lambda theta, t: curvature * theta + noise[t], GOLDEN[case]
    ours = paths(ports[port], tuple(expected), grad, np.asarray(GOLDEN["theta"]))
    for name in expected:
        assert relative_error(ours[name][GOLDEN["keep"]], np.asarray(expected[name])) < 1e-5


def test_their_groups_and_schedules_differ():
    kernels = [np.asarray(GOLDEN[case]["kernel"]) for case in ("torchtitan", "olmo")]
    assert relative_error(*kernels) > 1e-2
    for case in ("groups", "olmo"):
        kernel, bias = (np.asarray(GOLDEN[case][name]) for name in ("kernel", "bias"))
        assert relative_error(kernel, bias) > 1e-3


def keras(weight_decay, rate=0.002, b1=0.9, b2=0.999, eps=1e-7, grad=gradient):
    """Keras's AdamW: decay first, times the rate; ε beside the root of the uncorrected v."""
    theta, m, v, kept = THETA, 0.0, 0.0, []
    for t in range(STEPS):
        g, lr = grad(theta, t), rate * COSINE[t]
        theta = theta - theta * weight_decay * lr
        m = m + (1 - b1) * (g - m)
        v = v + (1 - b2) * (g * g - v)
        corrected = lr * np.sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1))
        theta = theta - m * corrected / (np.sqrt(v) + eps)
        kept.append(theta)
    return np.stack(kept)


def test_keras(ports):
    ours = path(ports["from_keras"])
    assert relative_error(ours, keras(0.4)) < 1e-5
    assert relative_error(ours, keras(0.8)) > 1e-3
    assert relative_error(path(ports["from_keras"], name="bias"), keras(0.0)) < 1e-5


def test_keras_with_small_gradients(ports):
    small = lambda theta, t: 1e-5 * gradient(theta, t)
    assert relative_error(path(ports["from_keras_exactly"], small), keras(0.4, grad=small)) < 1e-6
    assert relative_error(path(ports["from_keras"], small), keras(0.4, grad=small)) > 1e-4


def composer_adamw(weight_decay, rate=0.002, b1=0.9, b2=0.95, eps=1e-8):
    """Composer's DecoupledAdamW: θ times 1 − decay · (rate / initial rate), then Adam."""
    theta, m, v, kept = THETA, 0.0, 0.0, []
    for t in range(STEPS):
        g, lr = gradient(theta, t), rate * COSINE[t]
        theta = theta * (1 - lr / rate * weight_decay)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        root = np.sqrt(v) / np.sqrt(1 - b2 ** (t + 1)) + eps
        theta = theta - lr / (1 - b1 ** (t + 1)) * m / root
        kept.append(theta)
    return np.stack(kept)


def composer_sgdw(weight_decay, rate=0.05, momentum=0.9):
    """Composer's DecoupledSGDW: the buffer holds plain gradients."""
    theta, buffer, kept = THETA, 0.0, []
    for t in range(STEPS):
        buffer = momentum * buffer + gradient(theta, t)
        theta = theta * (1 - COSINE[t] * weight_decay) - rate * COSINE[t] * buffer
        kept.append(theta)
    return np.stack(kept)


@pytest.mark.parametrize(
    ("port", "reference"),
    [("from_composer", composer_adamw), ("from_composer_sgd", composer_sgdw)],
)
def test_composer(ports, port, reference):
    ours = path(ports[port])
    assert relative_error(ours, reference(8e-4)) < 1e-5
    assert relative_error(ours, reference(1.6e-3)) > 1e-3
