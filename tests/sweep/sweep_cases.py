"""Tasks, grids and helpers that the tests of sweeps share."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_decoupled as od
from optax_decoupled import sweep

ROOT = Path(__file__).resolve().parents[2]

# A small network with a state, noise and a schedule, to compare with a hand-written loop.
STEPS = 70  # more than one call, and not a multiple of its steps
RATES, DECAYS, SEEDS = [0.01, 0.03, 0.1], [1e-4, 1e-3], [3, 11]


def init(key):
    keys = jax.random.split(key)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (4, 8)) / 2, "bias": jnp.zeros(8)},
        "out": {"kernel": jax.random.normal(keys[1], (8, 1)) / 3},
    }
    return params, {"mean": 0.0}  # a Python number: weakly typed


def _predict(params, x):
    hidden = jnp.einsum("...i,ij->...j", x, params["hidden"]["kernel"])
    hidden = jnp.tanh(hidden + jnp.broadcast_to(params["hidden"]["bias"], hidden.shape))
    return hidden @ params["out"]["kernel"]


def loss(params, state, batch, key):
    x, y = batch
    noise = 0.1 * jax.random.normal(key, x.shape)
    value = jnp.mean((_predict(params, x + noise) - y) ** 2)
    return value, {"mean": 0.9 * state["mean"] + 0.1 * value}


def batches(seed, steps=STEPS):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.normal(size=(16, 4)).astype(np.float32)
        yield x, x[:, :1] * x[:, 1:2]


X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def evaluate(params, state):
    error = jnp.mean((_predict(params, X) - X[:, :1] * X[:, 1:2]) ** 2)
    return {"error": error, "loss": state["mean"]}


NETWORK = sweep.Task(init, loss, batches, evaluate, STEPS)
ETA = optax.cosine_decay_schedule(1.0, STEPS)


def adamw(learning_rate, weight_decay):
    return od.adamw(learning_rate, weight_decay, schedule=ETA, mask=od.decay_mask)


def run_network(task=NETWORK, make_optimizer=adamw, **changes):
    grid = {"learning_rates": RATES, "weight_decays": DECAYS, "seeds": SEEDS}
    return sweep.run(task, make_optimizer, **{"progress": False, **grid, **changes})


# A quadratic that compiles fast, with batches of each seed and a constant array, for the rest.
TARGET = jnp.arange(4.0)
TASK = sweep.Task(
    init=lambda key: (jax.random.normal(key, (4,)), ()),
    loss=lambda params, state, batch, key: (jnp.sum(batch * (params - TARGET) ** 2), state),
    batches=lambda seed: np.random.default_rng(seed).random((10, 4), np.float32),
    evaluate=lambda params, state: {"error": jnp.sum((params - TARGET) ** 2)},
    steps=10,
)
GRID = {"learning_rates": [0.01, 0.1, 1e20], "weight_decays": [1e-3, 1e-2], "seeds": [0, 1]}
ONE = {"learning_rates": [0.1], "weight_decays": [1e-3], "seeds": [0]}


def sgdw(learning_rate, weight_decay):
    return od.sgdw(learning_rate, weight_decay)


def run(task=TASK, make_optimizer=sgdw, **changes):
    return sweep.run(task, make_optimizer, **{"progress": False, **GRID, **changes})


def task_that_records_steps(steps):
    """The quadratic; it appends to the list at each step."""

    def loss(params, state, batch, key):
        jax.debug.callback(lambda: steps.append(1))
        return TASK.loss(params, state, batch, key)

    return dataclasses.replace(TASK, loss=loss)


def files(directory):
    """Maps the names of kept cells to their content and the time of their last change."""
    return {
        path.name: (path.read_text(), path.stat().st_mtime_ns)
        for path in Path(directory).glob("cell-*")
    }


def assert_same(a, b):
    np.testing.assert_array_equal(a.metrics["error"], b.metrics["error"])
    np.testing.assert_array_equal(a.diverged, b.diverged)


def environment(**changes):
    """Environment variables of a process that imports this copy of the package."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}
