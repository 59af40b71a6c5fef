"""Small samples of parameters, and whether an optimizer does the same with them.

What decays, and how, seldom depends on the number of elements. Where it does, the
program of the optimizer shows it: other operations, or another scalar among them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.dtypes import is_decayable

Shape = tuple[int, ...]
# A traced function, and what it is compared by.
Jaxpr = Any
Fingerprint = list[tuple[Any, ...]]

# Elements of a sample, and whether a matrix keeps the ratio of its sides (Muon scales by it)
# or is at least 128 wide (from where on Adafactor factors).
_SAMPLES = ((2**12, True), (2**14, False), (2**17, True))
# Axes but the two longest (of stacked layers, of a convolution) are cut to this length.
_SHORT = 4


def samples(shapes: Sequence[Shape]) -> list[list[Shape]]:
    """Shapes to try instead of these, the smallest first; at last these themselves."""
    every = [[reduced(shape, *size) for shape in shapes] for size in _SAMPLES] + [list(shapes)]
    return [small for i, small in enumerate(every) if small not in every[:i]]


def reduced(shape: Shape, most: int, in_ratio: bool) -> Shape:
    """The shape with shorter axes, which keep their order by length."""
    if math.prod(shape) <= most:
        return shape
    long = sorted(range(len(shape)), key=lambda i: -shape[i])[:2]
    small = [n if i in long else min(n, _SHORT) for i, n in enumerate(shape)]
    a, b = ([shape[i] for i in long] + [1])[:2]
    unit = math.gcd(a, b)
    k = min(unit, math.isqrt(most * unit**2 // (a * b)))
    side = math.isqrt(most)
    sides = (a // unit * k, b // unit * k)
    if b == 1 or not in_ratio or not k:
        sides = (min(a, most if b == 1 else side + (a != b)), min(b, side))
    for i, n in zip(long, sides, strict=False):
        small[i] = n
    return tuple(small)


def fingerprint(jaxpr: Jaxpr) -> Fingerprint:
    """The operations of a traced function and its scalars, without shapes."""
    constants = [(np.ndim(x), np.size(x) == 1 and _number(x)) for x in jaxpr.consts]
    return [("constants", *constants), *_operations(jaxpr.jaxpr)]


def _operations(jaxpr: Jaxpr) -> Iterator[tuple[Any, ...]]:
    from jax.extend import core  # takes longer to import than this package

    terms: dict[Any, int] = {}  # of each sum
    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, equation.invars
        count = _terms(equation, terms)
        if count and name not in ("div", "mul"):
            terms[equation.outvars[0]] = count
        scalars = [_number(x.val) for x in inputs if hasattr(x, "val")]
        if count and scalars in ([repr(float(count))], [repr(float(np.float32(1 / count)))]):
            scalars = ["mean"]
        options = [x for x in equation.params.values() if isinstance(x, bool | int | float | str)]
        kinds = [(v.aval.ndim, v.aval.dtype) for v in equation.outvars if hasattr(v.aval, "ndim")]
        yield name, *kinds, *scalars, *options
        for inner in core.jaxprs_in_params(equation.params):
            closed = getattr(inner, "jaxpr", inner)
            yield from _operations(closed)


def _terms(equation: Any, terms: dict[Any, int]) -> int:
    """Of how many elements the first input is a sum, 0 if it is none."""
    (first, *_), name = (*equation.invars, None), equation.primitive.name
    if name == "reduce_sum":
        return first.aval.size // max(equation.outvars[0].aval.size, 1)
    if name in ("convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "div", "mul"):
        return 0 if first is None or hasattr(first, "val") else terms.get(first, 0)
    return 0


def _number(x: Any) -> str:
    """A scalar as text, for NaN is not NaN."""
    return repr(np.asarray(x).item()) if np.size(x) == 1 and _is_plain(x) else str(x)


def _is_plain(x: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended)


def sampled(x: Any, shape: Shape) -> Any:
    """Elements of an array at even distances, of those that this process holds."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return np.zeros(shape, x.dtype)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = x.addressable_data(0) if x.addressable_shards else np.zeros(shape, x.dtype)
    if not _is_plain(x):
        return x  # random keys
    if isinstance(x, jax.Array) and [d.platform for d in x.devices()] == ["cpu"]:
        x = np.asarray(x)  # without a copy, and NumPy compiles no slices
    if shape != jnp.shape(x):
        spans = [(n, max(m // max(n, 1), 1)) for n, m in zip(shape, jnp.shape(x), strict=True)]
        x = x[tuple(slice(0, n * step, step) for n, step in spans)]
    x = np.asarray(x, jnp.result_type(x))
    return x if x.shape == shape else np.resize(x, shape)


def is_all_zero(x: Any) -> bool:
    """Whether an array is 0 everywhere, as far as this process holds it."""
    if np.any(sampled(x, reduced(jnp.shape(x), *_SAMPLES[0]))):
        return False
    parts = [shard.data for shard in x.addressable_shards] if isinstance(x, jax.Array) else [x]
    return bool(parts) and not any(bool(jnp.any(part)) for part in parts)


def leaves_by_path(tree: Any) -> dict[Any, Any]:
    return dict(jax.tree_util.tree_flatten_with_path(tree)[0])


def unchanged(before: Any, after: Any) -> set[Any]:
    """Paths of the arrays that are in both trees and equal."""
    others = leaves_by_path(after)
    differ = lambda x, y: is_decayable(x) and np.any(np.asarray(x) != np.asarray(y))
    leaves = leaves_by_path(before).items()
    return {path for path, x in leaves if path in others and not differ(x, others[path])}


def map_once(function: Callable[[Any, Any], Any], tree: Any, like: Any) -> Any:
    """The tree with `function(x, y)` for its leaves x and their counterparts y.

    Leaves that are one array, with counterparts of one shape and dtype, remain one array.
    """
    known: dict[Any, Any] = {}

    def call(x: Any, y: Any) -> Any:
        key = id(x), y.shape, y.dtype
        if key not in known:
            known[key] = function(x, y)
        return known[key]

    return jax.tree.map(call, tree, like)


def emptied(state: optax.OptState, kept: set[Any]) -> optax.OptState:
    """The state with its arrays 0 but those kept."""
    is_moment = lambda path, x: path not in kept and is_decayable(x)
    zeros = functools.cache(np.zeros)  # parts of an update with the same arrays run once
    empty = lambda path, x: zeros(x.shape, x.dtype) if is_moment(path, x) else x
    return jax.tree_util.tree_map_with_path(empty, state)


def root_mean_square(x: np.ndarray) -> float:
    wide = np.abs(np.asarray(x, np.result_type(x, np.float64)))
    return float(np.sqrt(np.mean(wide**2))) if x.size else 0.0


def natural_amplitude(x: Any, shape: Shape) -> float:
    """A power of two near the size of a parameter over 1.5, which is that of a pattern."""
    size = root_mean_square(sampled(x, shape)) / 1.5 if is_decayable(x) else 0.0
    size = size if 0 < size < math.inf else 2.0**-4
    return float(2.0 ** np.clip(np.round(np.log2(size)), -14, 10))


def pattern(shape: Shape, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of size 1 to 2 and gradients of size 2**-7 to 2.

    Neighbours share their parameter and have opposite gradients, so ⟨g, v⟩ = 0 and the
    norm of g + k·v does not depend on the sign of v.
    """
    size, rng = math.prod(shape), np.random.default_rng(0)
    half = -(-size // 2)
    v = rng.choice([-1, 1], half) * (1 + rng.integers(0, 128, half) / 128)
    g = 2.0 ** rng.integers(-7, 1, half) * (1 + rng.integers(0, 128, half) / 128)
    v, g = np.repeat(v, 2)[:size], (np.repeat(g, 2) * np.tile([1, -1], half))[:size]
    unit = 1 + 0.5j if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    kind = dtype if jnp.issubdtype(dtype, jnp.inexact) else np.float32
    return (unit * v).reshape(shape).astype(kind), (unit * g).reshape(shape).astype(kind)


def gradients(
    given: Sequence[Any], units: Sequence[np.ndarray], shapes: Sequence[Shape]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The caller's, their zeros filled by small synthetic ones; and others of their size."""
    given_samples = [
        None if g is None else sampled(g, s) for g, s in zip(given, shapes, strict=True)
    ]
    size = np.array([0.0 if g is None else root_mean_square(g) for g in given_samples])
    size[size == 0] = size.max(initial=0) or 1.0
    # Of other relative sizes: with equal ones Adam's memory is invisible.
    others = [z / 3 * np.flip(unit) for z, unit in zip(size, units, strict=True)]
    return [
        z * unit if g is None else np.where(g == 0, z * unit / 1024, g)
        for g, unit, z in zip(given_samples, units, size, strict=True)
    ], others
