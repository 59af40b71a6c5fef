"""NumPy arrays of random numbers: `jax.random` compiles programs for each shape and dtype."""

import jax.numpy as jnp
import numpy as np


def normal(shape, dtype="float32", seed=0, scale=1.0):
    """Standard normal numbers times `scale`; real and imaginary part have half of the variance."""
    draw = np.random.default_rng(seed).normal
    values = draw(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = (values + 1j * draw(size=shape)) * np.sqrt(0.5)
    return np.asarray(scale * values).astype(jnp.dtype(dtype))
