"""Whether an optimizer runs only to be measured, on samples of its parameters."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import TypeVar

from optax_decoupled._common.types import Path

T = TypeVar("T")
# The full shape of each parameter, by its path.
Shapes = Mapping[Path, tuple[int, ...]]

_IS_PROBING: contextvars.ContextVar[bool] = contextvars.ContextVar("is_probing", default=False)
_FULL_SHAPES: contextvars.ContextVar[Shapes | None] = contextvars.ContextVar(
    "full_shapes", default=None
)


@contextlib.contextmanager
def _within(variable: contextvars.ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def probing() -> "contextlib._GeneratorContextManager[None]":
    """Within it members of a chain that record something begin with an empty record."""
    return _within(_IS_PROBING, True)


def is_probing() -> bool:
    return _IS_PROBING.get()


def sampling(shapes: Shapes | None) -> "contextlib._GeneratorContextManager[None]":
    """Within it parameters are samples, and these are their full shapes. None: no samples."""
    return _within(_FULL_SHAPES, shapes)


def full_shapes() -> Shapes | None:
    """The full shapes of the parameters that are sampled; None if none are."""
    return _FULL_SHAPES.get()
