"""Whether an optimizer runs only to be measured, on samples of its parameters."""

import contextlib
import contextvars
from collections.abc import Iterator

_Flag = contextvars.ContextVar[bool]

_IS_PROBING: _Flag = contextvars.ContextVar("is_probing", default=False)
_IS_SAMPLED: _Flag = contextvars.ContextVar("is_sampled", default=False)


@contextlib.contextmanager
def _within(flag: _Flag, value: bool) -> Iterator[None]:
    token = flag.set(value)
    try:
        yield
    finally:
        flag.reset(token)


def probing() -> "contextlib._GeneratorContextManager[None]":
    """Within it members of a chain that record something begin with an empty record."""
    return _within(_IS_PROBING, True)


def is_probing() -> bool:
    return _IS_PROBING.get()


def sampling(active: bool) -> "contextlib._GeneratorContextManager[None]":
    """If active, parameters within it are samples: arrays of their full shapes are sampled, too."""
    return _within(_IS_SAMPLED, active)


def is_sampled() -> bool:
    return _IS_SAMPLED.get()
