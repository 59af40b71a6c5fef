"""The ports of "Port a run" and of the pages below it take the other library's steps.

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
from pages import PAGES, run_page
from problems import THETA, gradient, relative_error

import optax_decoupled as od

STEPS = 200
COSINE = [0.5 * (1 + np.cos(np.pi * t / STEPS)) for t in range(STEPS)]
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "pytorch.json").read_text())


@pytest.fixture(scope="module")
def ports():
    """The ports of all pages; a name that several define is the one of "Port a run"."""
    pages = sorted((name for name in PAGES if name.startswith("porting")), reverse=True)
    return {name: port for page in pages for name, port in run_page(page).items()}


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


def test_the_bias_correction_of_float32_shortens_early_steps():
    """The first step of Adam is g/|g|: float32 loses digits of 1 - 0.999."""
    first = lambda tx, g: tx.update(g, tx.init(g), g)[0]
    for make in (od.scale_by_adam, optax.scale_by_adam):
        assert 1 - float(first(make(), jnp.ones(()))) == pytest.approx(6.6e-6, rel=0.05)
        with jax.enable_x64(True):
            assert float(first(make(), jnp.ones((), float))) == pytest.approx(1, abs=2e-8)


def adam_like(step, rate=0.02, grad=gradient, b1=0.9, b2=0.999):
    """A trajectory of θ - rate · step(t, g, m, v), for t = 1, 2, ..."""
    theta, m, v, kept = THETA, 0.0, 0.0, []
    for t in range(STEPS):
        g = grad(theta, t)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        theta = theta - rate * step(t + 1, g, m, v)
        kept.append(theta)
    return np.stack(kept)


def radam(eps_at):
    def step(t, g, m, v):
        last, correction = 2 / 0.001 - 1, 1 - 0.999**t
        r = last - 2 * t * 0.999**t / correction
        if r <= 5:
            return m / (1 - 0.9**t)
        factor = (r - 4) * (r - 2) * last / ((last - 4) * (last - 2) * r)
        return np.sqrt(factor) * m / (1 - 0.9**t) / (np.sqrt(v / correction) + eps_at(t))

    return step


def test_radam_of_pytorch_adds_eps_before_the_bias_correction():
    small = lambda theta, t: 1e-4 * gradient(theta, t)
    ours = path(optax.radam(0.02), small)
    assert relative_error(ours, adam_like(radam(lambda t: 1e-8), grad=small)) < 1e-9
    theirs = adam_like(radam(lambda t: 1e-8 / np.sqrt(1 - 0.999**t)), grad=small)
    assert 1e-6 < relative_error(ours, theirs) < 1e-3


def nadam(momentum_at):
    def step(t, g, m, v):
        now, following = momentum_at(t), momentum_at(t + 1)
        product = np.prod([momentum_at(k) for k in range(1, t + 1)])
        up = (1 - now) * g / (1 - product) + following * m / (1 - product * following)
        return up / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


def test_nadam_of_pytorch_raises_its_momentum():
    ours = path(optax.nadam(0.02))
    assert relative_error(ours, adam_like(nadam(lambda t: 0.9))) < 1e-9
    rising = lambda t: 0.9 * (1 - 0.5 * 0.96 ** (t * 0.004))
    assert relative_error(ours, adam_like(nadam(rising))) > 1e-3


@pytest.mark.parametrize(
    ("schedule", "exact", "last"),
    [
        (optax.polynomial_schedule(1.0, 0.0, 2, 1000), lambda x: (1 - x) ** 2, 1e-4),
        (optax.cosine_decay_schedule(1.0, 1000), lambda x: (1 + np.cos(np.pi * x)) / 2, 1e-3),
    ],
)
def test_schedules_in_float32_are_exact_within_2e_7_of_the_peak(schedule, exact, last):
    values = np.asarray(jax.vmap(schedule)(jnp.arange(1000)), float)
    expected = exact(np.arange(1000) / 1000)
    np.testing.assert_allclose(values, expected, atol=2e-7)
    assert last < abs(values[-1] / expected[-1] - 1) < 4e-3


def test_adamc_of_pytorch_optimizer_adds_eps_before_the_bias_correction():
    """Written out in NumPy, for a normalized layer: the decay first, times the squared rate."""
    small = lambda theta, t: 1e-3 * gradient(theta, t)
    theirs, theta, m, v = [], THETA, 0.0, 0.0
    for t in range(STEPS):
        g = small(theta, t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theta = theta * (1 - 0.02 * 0.1 * COSINE[t] ** 2)
        divisor = (np.sqrt(v + 1e-15) + 1e-8) / np.sqrt(1 - 0.999 ** (t + 1))
        theta = theta - 0.02 * COSINE[t] * m / (1 - 0.9 ** (t + 1)) / divisor
        theirs.append(theta)
    arguments = dict(
        schedule=lambda t: 0.5 * (1 + jnp.cos(jnp.pi * t / STEPS)),
        normalized={"kernel": True, "bias": False},
    )
    correction = lambda t: 1 - 0.999 ** (t + 1)
    make = optax.inject_hyperparams(od.adamc, static_args=("normalized",))
    eps = dict(
        eps=lambda t: 1e-8 / jnp.sqrt(correction(t)), eps_root=lambda t: 1e-15 / correction(t)
    )
    exact = make(0.02, 0.002, **eps, **arguments)
    assert relative_error(path(exact, small), np.stack(theirs)) < 1e-6
    plain = path(od.adamc(0.02, 0.002, **arguments), small)
    assert relative_error(plain, np.stack(theirs)) > 1e-3
