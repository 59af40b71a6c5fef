"""Arithmetic and rounding for parameters narrower than 32 bits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType


def in_float32(
    inner: optax.GradientTransformation,
    narrow: Callable[[Any, Any], Any],
    store: Callable[[Any], Any] = lambda state: state,
) -> optax.GradientTransformation:
    """Runs a transform in float32 on narrower leaves and keeps every dtype as it was.

    Updates keep the gradient's dtype and the state the dtypes it had at init, whatever
    the dtype of the hyperparameters, so that it can go through scan, cond and MultiSteps.
    Leaves of 32 bits and more are passed on unchanged: there it adds no operation.

    Args:
      inner: the transform; elementwise in its updates.
      narrow: ``(new_state, old_state) -> state`` rounds a state to the old one's dtypes.
      store: ``state -> state`` sets the dtypes of the initial state.
    """

    def init_fn(params: Any) -> Any:
        return store(inner.init(params))

    def update_fn(updates: Any, state: Any, params: Any = None):
        new_updates, new_state = inner.update(widen(updates), widen(state), params)
        return cast_like(new_updates, updates), narrow(new_state, state)

    return optax.GradientTransformation(init_fn, update_fn)


def is_narrow(x: Any) -> bool:
    """True for floating leaves of fewer than 32 bits."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def widen(tree: Any) -> Any:
    """Floating leaves narrower than 32 bits as float32; the rest untouched."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if is_narrow(x) else x, tree)


def cast_like(tree: Any, like: Any) -> Any:
    """Rounds every leaf to the nearest value of the other tree's dtype."""

    def cast(x: Any, target: Any) -> Any:
        dtype = getattr(target, "dtype", None)
        return x if dtype is None or x.dtype == dtype else x.astype(dtype)

    return jax.tree.map(cast, tree, like)


def cast_first_moment(tree: Any, old: Any) -> Any:
    """As :func:`cast_like`, but no change of a narrow first moment is rounded away.

    Rounded to nearest, m ← 0.9 m + 0.1 g rests in bfloat16 as soon as g and m are within
    5 units in the last place, up to 4 %. A change that would be lost takes the smallest
    step in its direction instead. On skewed noise that draws a mean towards the median: not
    measurably for b1 = 0.9, 0.6 % for 0.99, 31 % for 0.999 (exponential gradients), where
    a moment belongs in float32, as second moments always do.
    """

    def cast(x: Any, before: Any) -> Any:
        rounded = cast_like(x, before)
        if not is_narrow(before):
            return rounded
        wide = before.astype(jnp.float32)
        lost = (rounded == before) & (x != wide) & (wide != 0)
        # A neighbour differs by one in its last bit; float32 has more bits below that one.
        unit = 1 << (23 - jnp.finfo(before.dtype).nmant)
        bits = jax.lax.bitcast_convert_type(wide, jnp.int32)
        bits += jnp.where((x > wide) == (wide > 0), unit, -unit)
        neighbour = jax.lax.bitcast_convert_type(bits, jnp.float32).astype(before.dtype)
        return jnp.where(lost, neighbour, rounded)

    return jax.tree.map(cast, tree, old)


def apply_updates_with_stochastic_rounding(
    params: optax.Params, updates: optax.Updates, key: jax.Array
) -> optax.Params:
    r"""Adds updates to parameters, rounding narrow parameters stochastically.

    Rounded to the nearest bfloat16, :math:`θ - cθ` is :math:`θ` for every
    :math:`c < 2^{-9}`: the usual decay does nothing. Here the sum is taken in float32 and
    rounded up or down with probabilities that make the result right in expectation,
    :math:`E[\mathrm{round}(x)] = x`.

    Args:
      params: parameters of any shapes. Float16 and bfloat16 leaves are rounded
        stochastically; float32 and wider ones are treated as by
        :func:`optax.apply_updates`, bit for bit.
      updates: a tree of the structure of ``params``.
      key: a JAX random key. The same key gives the same result: use a new one each step,
        e.g. ``jax.random.fold_in(key, step)``.

    Returns:
      The new parameters, with the structure, shapes, dtypes and shardings of ``params``.

    Raises:
      TypeError: for floating parameters of fewer than 16 bits.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_decoupled as od
      >>> params = jnp.ones(100_000, jnp.bfloat16)
      >>> decay = -1e-4 * params
      >>> assert (optax.apply_updates(params, decay) == params).all()
      >>> new = od.apply_updates_with_stochastic_rounding(params, decay, jax.random.key(0))
      >>> assert abs(new.astype(float).mean() - 0.9999) < 5e-5

    References:
      Gupta et al., Deep Learning with Limited Numerical Precision, arXiv:1502.02551.
    """
    leaves, treedef = jax.tree.flatten(params)
    updates_flat = treedef.flatten_up_to(updates)
    keys = jax.random.split(key, len(leaves)) if leaves else []
    new = [_add(p, u, k) for p, u, k in zip(leaves, updates_flat, keys, strict=True)]
    return jax.tree.unflatten(treedef, new)


def _add(p: Any, u: Any, key: jax.Array) -> Any:
    if not is_narrow(p):
        return optax.apply_updates(p, u)
    if jnp.finfo(p.dtype).bits < 16:
        raise TypeError(
            f"params has a leaf of dtype {p.dtype}; stochastic rounding is for float16 and "
            "bfloat16. Keep such parameters in one of those, or round them yourself."
        )
    return _round_stochastically(widen(p) + widen(u), p.dtype, key)


def _round_stochastically(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    """Rounds float32 to a multiple of the spacing of `dtype` at x, without bias.

    All but the random choice is exact: the spacing is a power of two, and the random number
    has just the bits of a fraction of it that float32 can hold.
    """
    info = jnp.finfo(dtype)
    fraction_bits = 23 - info.nmant
    exponent_bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    power = jax.lax.bitcast_convert_type(exponent_bits, jnp.float32)  # 2^e <= |x| < 2^(e+1)
    spacing = jnp.maximum(power, float(info.smallest_normal)) * float(info.eps)
    dither = (_random_bits(key, x) >> (16 - fraction_bits)).astype(jnp.float32)
    dither *= 2.0**-fraction_bits
    rounded = jnp.floor(x / spacing + dither) * spacing
    # Left to the nearest: infinities and NaN, and |x| so small that the spacing is subnormal.
    exact = jnp.isfinite(x) & (spacing > 0)
    return jnp.where(exact, rounded, x).astype(dtype)


def _random_bits(key: jax.Array, like: jax.Array) -> jax.Array:
    """uint16[like.shape]; on a mesh of explicit axes each device draws its own part."""
    sharding = jax.typeof(like).sharding
    if any(axis == AxisType.Explicit for axis in sharding.mesh.axis_types):
        return jax.random.bits(key, like.shape, jnp.uint16, out_sharding=sharding)
    return jax.random.bits(key, like.shape, jnp.uint16)
