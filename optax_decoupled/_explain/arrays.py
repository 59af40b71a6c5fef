"""Synthetic parameters and gradients, and the sums that a probe takes of updates."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled._dtypes import is_decayable, is_narrow, widen


def placements(leaves: Sequence[Any]) -> tuple[list[tuple[Any, Any]], list[int]]:
    """Distinct (shape, sharding) pairs, and which of them each leaf has.

    Parameters on different sets of devices share no computation: then the probe runs on
    the default device.
    """
    shardings = [getattr(leaf, "sharding", None) for leaf in leaves]
    if len({frozenset(s.device_set) for s in shardings if s is not None}) > 1:
        shardings = [None] * len(leaves)
    return distinct(list(zip(map(jnp.shape, leaves), shardings, strict=True)))


def distinct(items: Sequence[Any]) -> tuple[list[Any], list[int]]:
    index = {item: i for i, item in enumerate(dict.fromkeys(items))}
    return list(index), [index[item] for item in items]


def make_patterns(places: Sequence[tuple[Any, Any]]) -> list[tuple[jax.Array, jax.Array]]:
    """Unit parameters of size 1 to 2 and unit gradients of size 2**-7 to 2, in bfloat16.

    Neighbours share their parameter and have opposite gradients, so ⟨g, v⟩ = 0 and the
    norm of g + k·v does not depend on the sign of v.
    """
    return _pattern_maker(tuple(places))()


@functools.lru_cache(maxsize=32)
def _pattern_maker(places: tuple[tuple[Any, Any], ...]) -> Any:
    """Compiling takes longer than running, and the next report is about the same parameters."""
    shardings = [(sharding, sharding) for _, sharding in places]
    return jax.jit(lambda: [_pattern(shape) for shape, _ in places], out_shardings=shardings)


def _pattern(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        counter = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index, stride = index + counter * np.uint32(stride), stride * shape[axis] % 2**32
    bits = ((index >> 1) + np.uint32(1)) * np.uint32(2654435769)  # a multiplicative hash
    bits = (bits ^ (bits >> 16)) * np.uint32(2246822519)

    def bfloat16(sign: jax.Array, exponent: Any, mantissa: jax.Array) -> jax.Array:
        word = ((sign & 1) << 15) | (exponent << 7) | (mantissa & 127)
        return jax.lax.bitcast_convert_type(word.astype(jnp.uint16), jnp.bfloat16)

    params = bfloat16(bits >> 31, np.uint32(127), bits >> 24)
    grads = bfloat16(index, 127 - ((bits >> 8) & 7), bits >> 16)
    return params, grads


def complete(unit: jax.Array, dtype: Any) -> jax.Array:
    """A pattern in the dtype of the computation, complex if it must be."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return unit.astype(jnp.float32)
    unit = unit.astype(jnp.float32).astype(wide(dtype))
    return unit * (1 + 0.5j) if jnp.iscomplexobj(unit) else unit


def gradient(factor: Any, unit: jax.Array, scale: Any, given: Any, fixed: Any) -> jax.Array:
    """The caller's gradient or a synthetic one, scaled by factor; 0 for fixed parameters.

    Exact zeros, which would hide a preconditioner, become small synthetic values.
    """
    if fixed is not None:
        return jnp.zeros_like(fixed)
    g = unit if scale is None else scale * unit
    if given is not None:
        g = jnp.where(given == 0, g * 2.0**-10, jnp.asarray(given, unit.dtype))
    return (factor * g).astype(unit.dtype)


def root_mean_squares(leaves: Sequence[Any]) -> np.ndarray:
    """Of each leaf, one compiled loop for each shape."""
    roots = [_root_mean_square(x) if is_decayable(x) else 0.0 for x in leaves]
    return np.array(jax.device_get(roots), np.float64)


@jax.jit
def _root_mean_square(x: jax.Array) -> jax.Array:
    (total,) = _sums(_square(widen(jnp.asarray(x))))
    return jnp.sqrt(total / max(x.size, 1))


@jax.jit
def odd_sums(plus: jax.Array, minus: jax.Array, v: jax.Array) -> jax.Array:
    """⟨d, v⟩, ⟨d, d⟩, ⟨v, v⟩ and ⟨u, u⟩ for d = (u₊ − u₋)/2."""
    plus, minus = _apart(plus, minus)
    d = (plus - minus) / 2
    size = (_square(plus) + _square(minus)) / 2
    return jnp.stack(_sums(_product(d, v), _square(d), _square(v), size))


@jax.jit
def difference_sums(x: jax.Array, y: jax.Array) -> jax.Array:
    """⟨x − y, x − y⟩ and ⟨x, x⟩."""
    x, y = widen(_apart(x, y))
    return jnp.stack(_sums(_square(x - y), _square(x)))


@jax.jit
def projection_sums(u1: jax.Array, u2: jax.Array, v: jax.Array) -> jax.Array:
    """⟨u₁, v⟩, ⟨u₂, v⟩, ⟨u₂, u₂⟩ and ⟨v, v⟩."""
    u1, u2 = _apart(u1, u2)
    return jnp.stack(_sums(_product(u1, v), _product(u2, v), _square(u2), _square(v)))


@jax.jit
def projections(v: jax.Array, *updates: jax.Array) -> jax.Array:
    """⟨v, v⟩, and ⟨u, v⟩ of each update."""
    updates = _apart(*updates)
    return jnp.stack(_sums(_square(v), *(_product(u, v) for u in updates)))


def _apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """In loops of their own: an update is computed on vectors, and a sum is not."""
    return jax.lax.optimization_barrier(arrays)


def _sums(*terms: jax.Array) -> Sequence[jax.Array]:
    """Several sums in one loop, row by row: one long float32 sum would stall at 2**24."""
    if terms[0].ndim == 0:
        return terms
    if terms[0].ndim == 1 and terms[0].size > 2**16:
        terms = tuple(jnp.pad(x, (0, -x.size % 256)).reshape(-1, 256) for x in terms)
    partial = _reduce(terms, (terms[0].ndim - 1,)) if terms[0].ndim > 1 else terms
    return _reduce(partial, tuple(range(partial[0].ndim)))


def _reduce(terms: Sequence[jax.Array], axes: tuple[int, ...]) -> Sequence[jax.Array]:
    def add(a: Any, b: Any) -> Any:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return jax.lax.reduce(tuple(terms), tuple(np.zeros((), x.dtype) for x in terms), add, axes)


def _square(x: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(x))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(y))


def is_update(u: Any) -> bool:
    return u is not None and is_decayable(u)


def moves_anything(updates: Any) -> jax.Array:
    moved = [jnp.any(u != 0) for u in jax.tree.leaves(updates) if is_update(u)]
    return jnp.any(jnp.stack(moved)) if moved else jnp.bool_(True)


def wide(dtype: Any) -> Any:
    return jnp.float32 if is_narrow(jax.ShapeDtypeStruct((), dtype)) else dtype


def cast(x: Any, dtype: Any) -> Any:
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    return x if x.dtype == dtype else x.astype(dtype)


def cast_like(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: cast(x, y.dtype), tree, like)


def scalars(values: np.ndarray) -> list[np.float32]:
    """One array for each value: entries of a vector would make each compiled loop unique."""
    return [np.float32(x) for x in values]


def to_numpy(sums: Sequence[Any]) -> np.ndarray:
    """The sums of each array on the device as float64[sums, arrays]."""
    return np.array(jax.device_get(sums), np.float64).T if sums else np.zeros((4, 0))


def epsilon(leaf: jax.ShapeDtypeStruct) -> float:
    return float(jnp.finfo(wide(leaf.dtype)).eps) if is_decayable(leaf) else 0.0
