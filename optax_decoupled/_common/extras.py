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


# Okabe and Ito's colours, which colour-blind people can tell apart, without black and yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
