"""Whether an optimizer runs only to be measured, on samples of its parameters."""

import contextlib
import contextvars
from collections.abc import Iterator

_IS_PROBING = contextvars.ContextVar("is_probing", default=False)


@contextlib.contextmanager
def probing() -> Iterator[None]:
    """Within it members of a chain that record something leave updates and state alone."""
    token = _IS_PROBING.set(True)
    try:
        yield
    finally:
        _IS_PROBING.reset(token)


def is_probing() -> bool:
    return _IS_PROBING.get()


_IS_SAMPLED = contextvars.ContextVar("is_sampled", default=False)


@contextlib.contextmanager
def sampling(active: bool) -> Iterator[None]:
    """If active, parameters within it are samples: arrays of their full shapes are sampled, too."""
    token = _IS_SAMPLED.set(active)
    try:
        yield
    finally:
        _IS_SAMPLED.reset(token)


def is_sampled() -> bool:
    return _IS_SAMPLED.get()
