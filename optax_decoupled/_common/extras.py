"""Packages that only plots and progress bars need."""

import importlib
from typing import Any


def import_extra(name: str) -> Any:
    """Imports a module of the `sweep` extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed. Progress bars and plots need the extra: "
            'pip install "optax-decoupled[sweep]".'
        ) from error
