"""Arithmetic for parameters narrower than 32 bits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_decoupled._common.types import Leaf, PyTree


def in_float32(
    inner: optax.GradientTransformation,
    narrow: Callable[[Any, Any], Any],
    store: Callable[[Any], Any] = lambda state: state,
) -> optax.GradientTransformation:
    """Runs a transform in float32 on narrower leaves and keeps every dtype as it was.

    Updates have the gradients' dtypes and the state keeps its dtypes from init, whatever the
    dtype of the hyperparameters, as scan, cond and MultiSteps require. Leaves of 32 bits and
    more go through unchanged: no operation is added to them.

    Args:
      inner: the transform; elementwise in its updates.
      narrow: ``(new_state, old_state) -> state`` rounds a state to the old one's dtypes.
      store: ``state -> state`` sets the dtypes of the initial state.
    """

    def init_fn(params: optax.Params) -> Any:
        return store(inner.init(params))

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):  # Optax raises b2 to an int32 count
            new_updates, new_state = inner.update(widen(updates), widen(state), params)
        return cast_like(new_updates, updates), narrow(new_state, state)

    return optax.GradientTransformation(init_fn, update_fn)


def is_decayable(leaf: Leaf) -> bool:
    """Floating and complex leaves decay; integers, bools and float0 are left alone."""
    return jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact)


def is_narrow(x: Leaf) -> bool:
    """True for floating leaves of fewer than 32 bits."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and _is_narrow(dtype)


@functools.cache
def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def common_dtype(*dtypes: Any) -> Any:
    """The dtype of the arithmetic on arrays of these dtypes: at least float32."""
    return _common_dtype(jnp.result_type(float), *dtypes)


@functools.cache
def _common_dtype(default: Any, *dtypes: Any) -> Any:
    """`default` is a key of the cache: without x64, where it is float32, float64 is refused."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *(d for d in dtypes if not _is_narrow(d)))


def converted(x: Any, dtype: Any) -> Any:
    """An array of this dtype; `x` itself if it is one, which spares a call for each leaf."""
    is_one = isinstance(x, jax.Array) and x.dtype == dtype and not x.weak_type
    return x if is_one else jnp.asarray(x, dtype)


def widen(tree: PyTree) -> Any:
    """Floating leaves narrower than 32 bits as float32; the rest untouched."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_narrow(x) else x, tree)


def cast_like(tree: PyTree, like: PyTree) -> Any:
    """Rounds every leaf to the nearest value of the other tree's dtype."""

    def cast(x: Leaf, target: PyTree) -> Any:
        dtype = getattr(target, "dtype", None)
        return x if dtype is None or x.dtype == dtype else x.astype(dtype)

    return jax.tree.map(cast, tree, like)
