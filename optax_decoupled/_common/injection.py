"""Hints in error messages for calls that came through `optax.inject_hyperparams`."""

import traceback


def inject_hint(argument: str) -> str:
    return (
        "If it came through optax.inject_hyperparams, which takes every callable for a "
        f'schedule, pass static_args=("{argument}",) to it.'
    )


def came_through_injection(error: BaseException) -> bool:
    """Whether an error was raised inside optax.inject_hyperparams."""
    frames = traceback.walk_tb(error.__traceback__)
    return any("inject_hyperparams" in frame.f_code.co_qualname for frame, _ in frames)
