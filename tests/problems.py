"""A noisy, badly scaled quadratic, and the loop that trains on it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS = 250
DIM = 12

_rng = np.random.default_rng(20260)
CURVATURE = np.geomspace(0.03, 3.0, DIM)  # the witness dimensions for every preconditioner
NOISE = _rng.normal(size=(STEPS, DIM)) * np.geomspace(0.01, 1.0, DIM)[::-1]
THETA = _rng.normal(size=DIM)


def gradient(theta: np.ndarray, t: int) -> np.ndarray:
    """∇f_t(θ) in NumPy, for the references."""
    return CURVATURE * theta + NOISE[t]


def train(tx: optax.GradientTransformation, dtype: Any, steps: int = STEPS) -> np.ndarray:
    """The parameters after every step of the package's optimizer, compiled as one scan."""
    curvature = jnp.asarray(CURVATURE, dtype)
    theta = jnp.asarray(THETA, dtype)

    def step(carry, noise):
        params, state = carry
        updates, state = tx.update(curvature * params + noise, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda carry, noise: jax.lax.scan(step, carry, noise)[1])
    return np.asarray(run((theta, tx.init(theta)), jnp.asarray(NOISE[:steps], dtype)))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest deviation over a trajectory, relative to the parameters' size."""
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))
