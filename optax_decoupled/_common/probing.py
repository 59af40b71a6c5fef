"""Whether an optimizer runs only to be measured, on samples of its parameters."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import jax

from optax_decoupled._common.types import Path

T = TypeVar("T")


class Originals(NamedTuple):
    """The parameters that are measured, by path, and whether samples stand for them."""

    structs: Mapping[Path, jax.ShapeDtypeStruct]
    are_sampled: bool


_IS_PROBING: contextvars.ContextVar[bool] = contextvars.ContextVar("is_probing", default=False)
_ORIGINALS: contextvars.ContextVar[Originals | None] = contextvars.ContextVar(
    "originals", default=None
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


def measuring(originals: Originals) -> "contextlib._GeneratorContextManager[None]":
    """Within it mask functions are called with these instead of the parameters at hand."""
    return _within(_ORIGINALS, originals)


def originals() -> Originals | None:
    return _ORIGINALS.get()
