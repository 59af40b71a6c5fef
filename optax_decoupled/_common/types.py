"""The roles of arguments, as types. Trees of parameters and states have Optax's own:
Params, Updates, OptState.
"""

from typing import Any, Protocol

import jax
import numpy as np
import optax

# A number, an array of shape () or a tracer of one.
Scalar = jax.typing.ArrayLike
# A function of the number of updates so far, int32[], that returns a scalar.
Schedule = optax.Schedule
ScalarOrSchedule = Scalar | Schedule

# Any containers with arrays, or whatever stands for them, as leaves.
PyTree = Any
# A leaf of such a tree: an array, a number, or a jax.ShapeDtypeStruct.
Leaf = Any

# A parameter's keys as text; joined by '/' for people.
Path = tuple[str, ...]
# JAX's own keys on the way to a leaf.
KeyPath = tuple[Any, ...]
# How much of the decay a parameter gets, w >= 0; False for none and True for all of it. An array
# broadcasts to the parameter's shape.
Multiplier = bool | float | np.ndarray | jax.Array


class MaskFunction(Protocol):
    """A function from parameters to a tree of multipliers of their structure."""

    def __call__(self, params: PyTree, /) -> PyTree: ...


# None (all decay), a tree or prefix of multipliers shaped like the parameters, or a function.
Mask = PyTree | MaskFunction | None
