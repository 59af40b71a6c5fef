"""Arithmetic and rounding for parameters narrower than 32 bits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_float32(
    inner: optax.GradientTransformation,
    store: Callable[[Any, Any], Any] = lambda state, params: state,
) -> optax.GradientTransformation:
    """Runs a transform in float32 on narrower leaves and keeps every dtype as it was.

    Updates keep the gradient's dtype and the state the dtypes it had at init, whatever
    the dtype of the hyperparameters, so that it can go through scan, cond and MultiSteps.
    Leaves of 32 bits and more are passed on unchanged: there it adds no operation.

    Args:
      inner: the transform; elementwise in its updates.
      store: ``(state, params) -> state`` sets the dtypes of the initial state.
    """

    def init_fn(params: Any) -> Any:
        return store(inner.init(params), params)

    def update_fn(updates: Any, state: Any, params: Any = None):
        new_updates, new_state = inner.update(widen(updates), widen(state), params)
        return _cast_like(new_updates, updates), _cast_like(new_state, state)

    return optax.GradientTransformation(init_fn, update_fn)


def is_narrow(x: Any) -> bool:
    """True for floating leaves of fewer than 32 bits."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def widen(tree: Any) -> Any:
    """Floating leaves narrower than 32 bits as float32; the rest untouched."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_narrow(x) else x, tree)


def _cast_like(tree: Any, like: Any) -> Any:
    def cast(x: Any, target: Any) -> Any:
        dtype = getattr(target, "dtype", None)
        return x if dtype is None or x.dtype == dtype else x.astype(dtype)

    return jax.tree.map(cast, tree, like)
