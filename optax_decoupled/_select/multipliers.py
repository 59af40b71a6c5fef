"""How much of the decay a parameter gets: a bool, a number, or an array that broadcasts to it."""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.probing import originals
from optax_decoupled._common.types import Multiplier

Shape = tuple[int, ...]

# From so many places of an axis on, the least and the largest multiplier are among them.
_EXTREMES = 4
_WAY_OUT = "A multiplier scales the decay; 0.0 turns it off."


def check_multiplier(name: str, value: object) -> Multiplier:
    """A multiplier, with a static 0 as False and a static 1 as True."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, jax.Array) or (isinstance(value, np.ndarray) and value.ndim > 0):
        return _checked_array(name, value)
    if not checks.is_static(value):
        raise TypeError(
            f"{name} is {brief(value)}, a {type(value).__name__}; it must be a bool, a multiplier "
            ">= 0, or an array of them that broadcasts to the parameter. Use False (or 0.0) for "
            "parameters that shall not decay."
        )
    checks.check_nonnegative(name, value, _WAY_OUT)
    return bool(value) if value in (0.0, 1.0) else float(value)


def _checked_array(name: str, array: jax.Array | np.ndarray) -> Multiplier:
    """An array of real numbers >= 0; traced ones are not looked at.

    A tree of gradients or parameters, passed by mistake, has negative numbers.
    """
    if array.dtype == bool:
        return array.astype(np.float32)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(f"{name} has dtype {array.dtype}; it must have real numbers >= 0.")
    is_known = not isinstance(array, jax.core.Tracer) and getattr(
        array, "is_fully_addressable", True
    )
    if is_known and array.size:
        numbers = np.asarray(array).astype(float)
        for extreme in (numbers.min(), numbers.max()):
            checks.check_nonnegative(name, extreme, _WAY_OUT)
    return array


def fitted(name: str, multiplier: Multiplier, shape: Shape) -> Multiplier:
    """The multiplier of a parameter of this shape; an array gets axes of length 1 in front."""
    own = np.shape(multiplier)
    if own == ():
        return multiplier
    if measured := originals():
        multiplier = _constant(multiplier)
        multiplier = _sample(multiplier, shape) if measured.are_sampled else multiplier
    if not broadcasts(np.shape(multiplier), shape):
        raise ValueError(
            f"{name} has shape {own}; it must broadcast to the parameter's shape {shape}. Give it "
            "axes of length 1 where one multiplier is for all, e.g. w.reshape(-1, 1, 1) for the "
            "layers of a stack of matrices, or pass one multiplier for each element."
        )
    missing = len(shape) - len(own)
    front = (1,) * missing + np.shape(multiplier)
    return multiplier.reshape(front) if missing else multiplier  # type: ignore[union-attr]


def broadcasts(shape: Shape, target: Shape) -> bool:
    """Whether an array of this shape fits into one of the target's without changing it."""
    axes = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, m) for n, m in axes)


def _sample(multiplier: Multiplier, shape: Shape) -> Multiplier:
    """For a sample of the parameter: a few places of each axis."""
    if isinstance(multiplier, jax.core.Tracer):
        return multiplier
    array, sizes = np.asarray(multiplier), shape[max(len(shape) - np.ndim(multiplier), 0) :]
    for axis, (n, m) in enumerate(zip(array.shape, sizes, strict=False)):
        if m < n > 1:
            array = np.take(array, _places(array, axis, m), axis)
    return array


def _constant(multiplier: Multiplier) -> Multiplier:
    """An array of NumPy, which is never weakly typed: a sample of it has the same operations."""
    return multiplier if isinstance(multiplier, jax.core.Tracer) else np.asarray(multiplier)


def _places(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Places at even distances of an axis, with both ends and its extremes.

    Without the extremes, a decay of a few layers in the middle would be missed.
    """
    places = np.linspace(0, array.shape[axis] - 1, count).round().astype(int)
    if count >= _EXTREMES:
        sums = array.sum(tuple(i for i in range(array.ndim) if i != axis), dtype=float)
        ends = sums[places[[0, -1]]]
        missing = [i for i in (np.argmin(sums), np.argmax(sums)) if sums[i] not in ends]
        places[1 : 1 + len(missing)] = missing
    return np.sort(places)
