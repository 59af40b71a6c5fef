"""Stacked weights: arrays of scanned or vmapped layers, each slice of which is one weight."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optax_decoupled._common.dtypes import widen
from optax_decoupled._common.types import Mask
from optax_decoupled._select.masks import scalar_multipliers
from optax_decoupled._select.names import named_leaves

# How many leading axes number the slices: one integer for all, or a mask of them. None is 0.
Stacked = int | Mask
# Squares are added up of a number times either: one of them neither overflows nor vanishes
# from 2**-105 to 2**105. The first is taken if it is below the limit.
FACTORS = 2.0**50, 2.0**-50
LIMIT = 2.0**120
# The longest row whose float32 elements may be added one after the other.
_LONG = 2**10


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
    return jnp.sqrt(totals(axes, squared(widen(x)))[0])


def safe_norm(x: jax.Array, axes: int) -> jax.Array:
    """`norm` for float32 values from 2**-105 to 2**105, whose squares do not fit in float32."""
    return root(*totals(axes, *(squared(widen(x) * k) for k in FACTORS)))


def root(small: jax.Array, large: jax.Array) -> jax.Array:
    """‖x‖ from the sums of the squares of x times each of FACTORS."""
    fits = small < LIMIT
    return jnp.sqrt(jnp.where(fits, small, large)) / jnp.where(fits, *FACTORS)


def squared(x: jax.Array) -> jax.Array:
    return jnp.square(jnp.abs(x))


def inner_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """What each element adds to the real inner product."""
    return jnp.real(jnp.conj(x) * y)


def totals(axes: int, *xs: jax.Array) -> tuple[jax.Array, ...]:
    """The sums of every slice of some arrays of one shape and dtype. Reduced axes have length 1.

    One reduction returns the sums of the rows, so that XLA computes what is added up once; on CPU
    it would do so for each sum. XLA adds the elements of such a row one after the other, so long
    rows get separate sums, whose rounding errors do not grow with the length.
    """
    reduced = tuple(range(axes, xs[0].ndim))
    if len(xs) > 1 and reduced and xs[0].shape[-1] <= _LONG:
        xs = tuple(x[..., None] for x in _row_sums(*xs))
    return tuple(jnp.sum(x, reduced, keepdims=True) for x in xs)


@jax.custom_jvp
def _row_sums(*xs: jax.Array) -> tuple[jax.Array, ...]:
    add = lambda a, b: tuple(map(operator.add, a, b))
    zeros = tuple(np.zeros((), x.dtype) for x in xs)
    return lax.reduce(xs, zeros, add, (xs[0].ndim - 1,))


# JAX's own rule for such a reduction fails in jax.grad if one of the arrays is constant.
_row_sums.defjvp(lambda xs, dxs: (_row_sums(*xs), tuple(jnp.sum(dx, -1) for dx in dxs)))


def divided(x: jax.Array, size: jax.Array) -> jax.Array:
    """Each slice of x over its real size, or itself where that is 0; x may be complex."""
    return x / jnp.where(size > 0, size, 1).astype(x.dtype)
