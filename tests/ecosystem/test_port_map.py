"""The recipes of the page "Port a run" take the original's steps; a decay left alone does not.

Optax's originals are Optax's own; the others are written out in NumPy from their updates.
"""

import jax
import numpy as np
import optax
import pytest
from problems import THETA, gradient, relative_error
from test_ports import STEPS, path, paths, ports

import optax_decoupled as od

__all__ = ["ports"]
PEAK = 3e-4
MATRIX = np.outer(THETA, THETA)
NOISE = np.random.default_rng(0).normal(size=(STEPS, *MATRIX.shape))


def matrix_gradient(theta, t):
    return theta + NOISE[t]


@pytest.mark.parametrize("name", ["hand", "lion", "muon", "adafactor", "l2", "nanodo"])
def test_optax(ports, name):
    original = path(ports[name], matrix_gradient, MATRIX)
    assert relative_error(path(ports[f"from_{name}"], matrix_gradient, MATRIX), original) < 1e-6


LAYERS = ("embedding", "kernel", "bias", "scale")


@pytest.mark.parametrize(
    ("name", "decaying"), [("from_levanter", {"kernel"}), ("from_maxtext", set(LAYERS))]
)
def test_language_models(ports, name, decaying):
    """A chain behind one clip, its decay before the rate; and the default mask."""
    mask = {layer: layer in decaying for layer in LAYERS}
    original = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.95),
        optax.add_decayed_weights(0.1, mask),
        optax.scale_by_learning_rate(ports["rate"]),
    )
    ours, theirs = (paths(tx, LAYERS) for tx in (ports[name], original))
    other = od.adamw(PEAK, 1e-3, schedule=ports["eta"], b2=0.95, mask=mask)
    mistaken = paths(optax.chain(optax.clip_by_global_norm(1.0), other), LAYERS)
    for layer in LAYERS:
        assert relative_error(ours[layer], theirs[layer]) < 1e-6
        assert (relative_error(mistaken[layer], theirs[layer]) > 1e-3) == mask[layer]


def test_injected(ports):
    original = path(optax.adamw(PEAK, weight_decay=0.1))
    assert relative_error(path(ports["from_injected"]), original) < 1e-6
    assert relative_error(path(od.adamw(PEAK, 2 * 0.1 * PEAK)), original) > 1e-3


def test_a_tall_matrix_decays_more_in_nanochat(ports):
    """Muon's own steps, and the decay by the rate times the shape's factor, written out."""
    tall = MATRIX[:, : len(THETA) // 2]
    factor, muon = (tall.shape[0] / tall.shape[1]) ** 0.5, optax.contrib.muon(ports["rate"])
    assert factor > 1.2
    decays = optax.GradientTransformation(
        muon.init,
        lambda g, s, p: _also_decayed(muon.update(g, s, p), p, factor, ports["rate"]),
    )
    grad = lambda theta, t: matrix_gradient(0, t)[:, : tall.shape[1]] + theta
    original = path(decays, grad, tall)
    assert relative_error(path(ports["from_nanochat"], grad, tall), original) < 1e-6
    assert relative_error(path(ports["from_muon"], grad, tall), original) > 1e-4


def _also_decayed(after, params, factor, rate):
    updates, state = after
    step = optax.tree.get_all_with_path(state, "count")[0][1]
    decay = 0.1 * factor * rate(step - 1)
    return jax.tree.map(lambda u, p: u - decay * p, updates, params), state


MISTAKES = {
    "hand": lambda page: optax.chain(
        optax.clip_by_global_norm(1.0), od.adamw(PEAK, 1e-3, schedule=page["eta"])
    ),
    "lion": lambda page: od.decouple(optax.lion(page["rate"], weight_decay=0.0), 1e-3, page["eta"]),
    "muon": lambda page: od.decouple(optax.contrib.muon(page["rate"]), 1e-3, page["eta"]),
    "adafactor": lambda page: od.decouple(optax.adafactor(page["rate"]), 1e-3 * PEAK),
    "l2": lambda page: od.sgdw(0.01, 0.1 * 0.01, scale_before_momentum=False),
    "nanodo": lambda page: od.adamw(PEAK, 1e-3 * PEAK, schedule=page["eta"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_tempting_value_is_far_away(ports, name):
    original = path(ports[name], matrix_gradient, MATRIX)
    mistaken = path(MISTAKES[name](ports), matrix_gradient, MATRIX)
    assert relative_error(mistaken, original) > 1e-3


def adamw(rates, decays, clip=np.inf, theta=THETA):
    """Adam at these rates after removing these fractions; PyTorch's clip of the whole gradient."""
    m, v, kept = 0.0, 0.0, []
    for t, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        g = gradient(theta, t)
        g = g * min(1.0, clip / (np.sqrt(np.sum(g * g)) + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        root = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
        theta = theta * (1 - decay) - rate * m / (1 - 0.9 ** (t + 1)) / root
        kept.append(theta)
    return np.stack(kept)


T = np.arange(STEPS)
# The page's schedule: 100 steps of warmup, then a cosine over 900.
ETA = np.where(T < 100, T / 100, 0.5 * (1 + np.cos(np.pi * (T - 100) / 900)))
RISING = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * T / 200))
FRACTIONS = {  # removed at each step, and by the tempting reading
    "from_big_vision": (1e-3 * ETA, 1e-3 * PEAK * ETA),
    "from_adamc": (0.1 * PEAK * ETA**2, 10 * PEAK * ETA**2),
    "from_squared": (100 * (PEAK * ETA) ** 2, 100 * PEAK * ETA),
    "from_moving": (PEAK * ETA * RISING, PEAK * ETA * 0.04),
}


@pytest.mark.parametrize("name", FRACTIONS)
def test_decay(ports, name):
    right, wrong = FRACTIONS[name]
    ours = path(ports[name])
    assert relative_error(ours, adamw(PEAK * ETA, right)) < 1e-6
    assert relative_error(ours, adamw(PEAK * ETA, wrong)) > 1e-4


def test_rates_of_layers(ports):
    half, whole = 0.5 * PEAK * ETA, PEAK * ETA
    assert relative_error(path(ports["from_layers"]), adamw(half, 0.1 * half)) < 1e-6
    assert relative_error(path(ports["from_layers"], name="bias"), adamw(whole, 0.1 * whole)) < 1e-6
    assert relative_error(path(ports["from_layers"]), adamw(half, 0.1 * whole)) > 1e-4


def test_groups_warmup_and_clipping(ports):
    eta = np.where(T < 20, 0.1 + 0.9 * T / 20, 0.5 * (1 + np.cos(np.pi * (T - 20) / 180)))
    rates, twins = 0.002 * eta, np.stack([THETA, THETA])
    groups = np.asarray([[0.1], [0.0]])  # PyTorch's decay of the kernel and of the bias
    ours = np.stack([path(ports["from_groups"], name=name) for name in ("kernel", "bias")], axis=1)
    decays = rates[:, None, None] * groups
    assert relative_error(ours, adamw(rates, decays, 1.0, twins)) < 1e-5
    assert relative_error(ours, adamw(rates, decays, np.inf, twins)) > 1e-3
    assert relative_error(ours, adamw(rates, 0.1 * rates, 1.0, twins)) > 1e-3


def test_axlearn_counts_from_1(ports):
    later = np.append(ETA[1:], 0.5 * (1 + np.cos(np.pi * (STEPS - 100) / 900)))
    ours = path(ports["from_axlearn"])
    assert relative_error(ours, adamw(PEAK * later, 1e-3 * later)) < 1e-6
    assert relative_error(ours, adamw(PEAK * ETA, 1e-3 * ETA)) > 1e-4
