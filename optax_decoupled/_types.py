"""The roles of arguments, as types. Trees are Optax's own: Params, Updates, OptState."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

# A number, a NumPy or JAX array of shape (), or a tracer of one.
Scalar = jax.typing.ArrayLike
# The step's count, int32[] -> a scalar.
Schedule = Callable[[jax.Array], Scalar]
ScalarOrSchedule = Scalar | Schedule

# A parameter's keys as text; joined by '/' for people.
Path = tuple[str, ...]
# How much of the decay a parameter gets: w >= 0, False for none and True for all of it.
Multiplier = bool | float | jax.Array


class MaskFunction(Protocol):
    """A function from parameters to a tree of multipliers of their structure."""

    def __call__(self, params: Any, /) -> Any: ...


# None (all decay), a tree or prefix of multipliers shaped like the parameters, or a function.
Mask = Any | MaskFunction | None
