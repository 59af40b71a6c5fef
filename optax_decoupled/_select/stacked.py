"""Stacked weights: scanned and vmapped layers, whose slices are weights of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.dtypes import widen
from optax_decoupled._common.types import Mask
from optax_decoupled._select.masks import leaf_multipliers
from optax_decoupled._select.names import named_leaves

# The number of leading axes that count slices: one for all, or given like a mask; None for 0.
Stacked = int | Mask


def leading_axes(stacked: Stacked, params: optax.Params) -> list[int]:
    """The number of stacked axes of each of ``jax.tree.leaves(params)``."""
    leaves, _ = named_leaves(params)
    if stacked is None or isinstance(stacked, int | np.integer):
        counts: list[object] = [stacked or 0] * len(leaves)
    else:
        try:
            counts = list(leaf_multipliers(stacked, params))
        except (TypeError, ValueError) as error:
            raise type(error)(f"stacked is matched to params like a mask. {error}") from error
    for (path, leaf), count in zip(leaves, counts, strict=True):
        if count not in range(jnp.ndim(leaf) + 1):
            raise ValueError(
                f"stacked={count!r} at {'/'.join(path)!r}, of shape {jnp.shape(leaf)}; it must be "
                "a whole number of its leading axes. Pass a tree or function that gives leaves "
                "of other layers 0."
            )
    return [int(count) for count in counts]  # type: ignore[call-overload]


def norm(x: jax.Array, axes: int) -> jax.Array:
    """‖x‖ of every slice, of x's rank, in at least float32."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(widen(x))), axis=_inner(x, axes), keepdims=True))


def normalized(x: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """x/‖x‖ and ‖x‖ of every slice, 0 for 0; also where squares would leave float32."""
    x = widen(x)
    largest = jnp.max(jnp.abs(x), axis=_inner(x, axes), keepdims=True, initial=0.0)
    x = x / jnp.where(largest > 0, largest, 1)
    size = norm(x, axes)
    return x / jnp.where(size > 0, size, 1), largest * size


def _inner(x: jax.Array, axes: int) -> tuple[int, ...]:
    return tuple(range(axes, x.ndim))
