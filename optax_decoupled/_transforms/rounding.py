"""Rounding to fewer than 32 bits: to the nearest, stochastically, without losing a change."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from optax_decoupled._common.checks import brief
from optax_decoupled._common.dtypes import cast_like, is_narrow, widen
from optax_decoupled._common.types import Leaf, PyTree
from optax_decoupled._select.names import entries_of


def cast_first_moment(tree: PyTree, old: PyTree) -> Any:
    """As :func:`cast_like`, but no change of a narrow first moment is rounded away.

    Rounded to nearest, m ← 0.9 m + 0.1 g stops changing in bfloat16 as soon as g and m are
    within 5 units in the last place, up to 4 %. A change that would be lost takes the smallest
    step in its direction instead. On skewed noise that draws a mean towards the median: not
    measurably for b1 = 0.9, 0.6 % for 0.99, 31 % for 0.999 (exponential gradients), where
    a moment belongs in float32, as second moments always do. Where m = g, rounding may make
    0.9 m + 0.1 g differ from m by two units of float32: so small a change counts as none.
    """

    def cast(x: Leaf, before: Leaf) -> Any:
        if not is_narrow(before):
            return cast_like(x, before)
        x, wide = x.astype(jnp.float32), before.astype(jnp.float32)
        new = _round(x, before.dtype, _to_nearest)
        was, exact = wide.view(jnp.uint32), x.view(jnp.uint32)
        unit = np.uint32(2 ** _missing_bits(before.dtype))
        step = jnp.where(exact > was, was + unit, was - unit)  # from or towards zero
        if _has_own_subnormals(before.dtype):
            info = jnp.finfo(before.dtype)
            even = (wide + jnp.sign(x - wide) * float(info.smallest_subnormal)).view(jnp.uint32)
            step = jnp.where(jnp.abs(wide) <= float(info.smallest_normal), even, step)
            step = jnp.where(jnp.abs(step.view(jnp.float32)) <= float(info.max), step, was)
        changed = exact - was + np.uint32(2) > 4  # more than two units of float32 up or down
        lost = (new == was) & changed & (wide != 0)
        return _as_cast(x, _narrow(jnp.where(lost, step, new), before.dtype))

    def keep_missing(x: Leaf, before: Leaf) -> Any:
        return before if x is None else cast(x, before)  # Optax lets a gradient be None

    return jax.tree.map(keep_missing, tree, old, is_leaf=lambda x: x is None)


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
      TypeError: for floating parameters of fewer than 16 bits, and if ``key`` is no key.

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
    _check_key(key)
    leaves, treedef = jax.tree.flatten(params)
    word = jax.random.bits(key, dtype=jnp.uint32)  # uint64 by default under x64
    words = [_mix(word ^ np.uint32(number)) for number in range(len(leaves))]
    way_out = "Pass the result of tx.update for these params."
    new = map(_add, leaves, entries_of("updates", updates, params, way_out), words)
    return jax.tree.unflatten(treedef, new)


def _check_key(key: object) -> None:
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    raw = dtype == jnp.uint32 and len(shape or ()) == 1  # as jax.random.PRNGKey makes it
    if not (typed or raw):
        raise TypeError(
            f"key={brief(key)} must be one JAX random key, new at each step, e.g. "
            "jax.random.fold_in(jax.random.key(0), step)."
        )


def _add(p: Leaf, u: Leaf, word: jax.Array) -> Any:
    if not is_narrow(p):
        return optax.apply_updates(p, u)
    if jnp.finfo(p.dtype).bits < 16:
        raise TypeError(
            f"params has a leaf of dtype {p.dtype}; stochastic rounding is for float16 and "
            "bfloat16. Keep such parameters in one of those, or round them yourself."
        )
    x = (widen(p) + widen(u)).astype(jnp.float32)
    dither = lambda bits, missing: _random_bits(word, bits) >> np.uint32(32 - missing)
    return _as_cast(x, _narrow(_round(x, p.dtype, dither), p.dtype))


@jax.custom_jvp
def _as_cast(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """`rounded`, with the derivative of a cast of x: operations on bits have none."""
    del x
    return rounded


@_as_cast.defjvp
def _as_cast_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    return primals[1], tangents[0].astype(primals[1].dtype)


def _round(
    x: jax.Array, dtype: jnp.dtype, dither: Callable[[jax.Array, int], jax.Array]
) -> jax.Array:
    """The bits of a float32, rounded to what `dtype` can represent.

    The bits of a float that `dtype` has no room for are a fraction of its last place. A
    number of as many bits is added to them, a carry rounds up, and they are cut off: exact
    for normal numbers, and in one pass, where XLA may leave out a conversion and its inverse.
    """
    missing = _missing_bits(dtype)
    whole = np.uint32(2**32 - 2**missing)
    if _has_own_subnormals(dtype):
        # Below its normal numbers, a last place stays what it is just above them.
        smallest = float(jnp.finfo(dtype).smallest_normal)
        shift = jnp.where(jnp.abs(x) < smallest, jnp.copysign(jnp.float32(smallest), x), 0)
        bits = (x + shift).view(jnp.uint32)
        rounded = (bits + dither(bits, missing)) & whole
        bits = (rounded.view(jnp.float32) - shift).view(jnp.uint32)
    else:
        bits = x.view(jnp.uint32)
        bits = (bits + dither(bits, missing)) & whole
    return jnp.where(jnp.isfinite(x), bits, x.view(jnp.uint32))


def _narrow(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The number that these bits of a float32 are, in a dtype that can represent it."""
    if dtype != jnp.bfloat16:
        return bits.view(jnp.float32).astype(dtype)
    # Its upper half. What is no number stays so if its payload is in the lower half.
    bits = jnp.where(jnp.isnan(bits.view(jnp.float32)), bits | np.uint32(1 << 22), bits)
    return (bits >> 16).astype(jnp.uint16).view(jnp.bfloat16)


def _to_nearest(bits: jax.Array, missing: int) -> jax.Array:
    """Half a unit in the last place, less the least bit where ties go down to even."""
    last = (bits >> np.uint32(missing)) & np.uint32(1)
    return last + np.uint32(2 ** (missing - 1) - 1)


def _has_own_subnormals(dtype: jnp.dtype) -> bool:
    """Whether its subnormal numbers are normal ones in float32; not so for bfloat16."""
    return float(jnp.finfo(dtype).smallest_normal) > float(jnp.finfo(jnp.float32).smallest_normal)


def _missing_bits(dtype: jnp.dtype) -> int:
    return int(jnp.finfo(jnp.float32).nmant - jnp.finfo(dtype).nmant)


def _random_bits(word: jax.Array, like: jax.Array) -> jax.Array:
    """uint32[like.shape]: a hash of each element's index plus a random word.

    `jax.random.bits` draws better ones, but a step with it takes five to ten times as long
    on CPU and keeps them in memory. A hash of the index is fused into the update, and on a
    mesh each device computes its own part, the same whatever the sharding.
    """
    stride = 1
    for axis in reversed(range(like.ndim)):
        word += _iota(like, axis) * np.uint32(stride % 2**32)
        stride *= like.shape[axis]
    return _mix(word)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every bit of the input changes half of the output's.

    Of the multiply-xorshift form, with the constants of "lowbias32":
    https://nullprogram.com/blog/2018/07/31/.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _iota(like: jax.Array, axis: int) -> jax.Array:
    sharding = jax.typeof(like).sharding
    explicit = any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)
    return jax.lax.broadcasted_iota(
        jnp.uint32, like.shape, axis, out_sharding=sharding if explicit else None
    )
