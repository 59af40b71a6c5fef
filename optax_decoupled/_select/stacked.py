"""Stacked weights: arrays of scanned or vmapped layers, each slice of which is one weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.dtypes import widen
from optax_decoupled._common.types import Mask
from optax_decoupled._select.masks import scalar_multipliers
from optax_decoupled._select.names import named_leaves

# How many leading axes number the slices: one integer for all, or a mask of them. None is 0.
Stacked = int | Mask


def leading_axes(stacked: Stacked, params: optax.Params) -> list[int]:
    """The number of stacked axes of each of ``jax.tree.leaves(params)``."""
    leaves, _ = named_leaves(params)
    if stacked is None or isinstance(stacked, int | np.integer):
        counts: list[object] = [stacked or 0] * len(leaves)
    else:
        try:
            counts = list(scalar_multipliers("stacked", stacked, params))
        except (TypeError, ValueError) as error:
            raise type(error)(f"stacked must fit params as a mask does. {error}") from error
    for (path, leaf), count in zip(leaves, counts, strict=True):
        if count not in range(jnp.ndim(leaf) + 1):
            raise ValueError(
                f"stacked={count!r} at {'/'.join(path)!r}, of shape {jnp.shape(leaf)}; it must be "
                "the number of its leading axes that are stacked. Pass a tree or function with 0 "
                "for arrays that are not stacked."
            )
    return [int(count) for count in counts]  # type: ignore[call-overload]


def norm(x: jax.Array, axes: int) -> jax.Array:
    """‖x‖ of every slice, in at least float32. The reduced axes have length 1."""
    return jnp.sqrt(total(jnp.square(jnp.abs(widen(x))), axes))


def normalized(x: jax.Array, axes: int) -> tuple[jax.Array, jax.Array]:
    """x/‖x‖ (0 where x is 0) and ‖x‖ of every slice, without overflow of the squares."""
    x = widen(x)
    most = largest(x, axes)
    x = divided(x, most)
    size = norm(x, axes)
    return divided(x, size), most * size


def largest(x: jax.Array, axes: int) -> jax.Array:
    """The largest absolute value of every slice, 0 for an empty one. Reduced axes have length 1."""
    return jnp.max(jnp.abs(x), axis=_slice_axes(x, axes), keepdims=True, initial=0.0)


def power_of_two(size: jax.Array) -> jax.Array:
    """A power of two near each size: what is divided by it has squares, and is not rounded.

    A size itself will not do for a sum that may be 0: XLA multiplies by its reciprocal, and
    rounds one summand and not the other.
    """
    _, exponent = jnp.frexp(size)
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, -100, 100))


def total(x: jax.Array, axes: int) -> jax.Array:
    """The sum of every slice. The reduced axes have length 1."""
    return jnp.sum(x, axis=_slice_axes(x, axes), keepdims=True)


def divided(x: jax.Array, size: jax.Array) -> jax.Array:
    """Each slice of x over its real size, or itself where that is 0; x may be complex."""
    return x / jnp.where(size > 0, size, 1).astype(x.dtype)


def _slice_axes(x: jax.Array, axes: int) -> tuple[int, ...]:
    return tuple(range(axes, x.ndim))
