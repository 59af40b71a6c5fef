"""Argument checks: every message names the argument, its value, the rule and the way out.

Only static Python and NumPy numbers are checked, when the object is built. A
traced or device value is never inspected: that would block or break under jit.
"""

import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

# From here on a static decay looks like PyTorch's: its default is 0.01, while the
# paper's best values for a whole training run lie between 1e-5 and 1e-3.
PYTORCH_SCALE = 0.01


def is_static(value: Any) -> bool:
    """True for numbers known before tracing: Python's and NumPy's."""
    return isinstance(value, int | float | complex | np.generic) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    )


def is_static_zero(value: Any) -> bool:
    return is_static(value) and bool(value == 0)


def check_number(
    name: str, value: Any, rule: str, holds: Callable[[float], bool], way_out: str
) -> Any:
    """Returns value; refuses what is no scalar and static numbers that break the rule."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is a bool; it must be {rule}. {way_out}")
    if not is_static(value):
        shape = getattr(value, "shape", None)
        if shape is None:
            kind = type(value).__name__
            raise TypeError(f"{name}={value!r} is a {kind}; it must be {rule}. {way_out}")
        if shape != ():
            raise ValueError(
                f"{name} has shape {shape}; it must be a scalar, {rule}. "
                "For several values at once, wrap the whole optimizer in jax.vmap."
            )
        return value
    number = np.asarray(value)
    if np.iscomplexobj(number) or not holds(float(number)):
        raise ValueError(f"{name}={value!r} is not allowed: it must be {rule}. {way_out}")
    return value


def check_nonnegative(name: str, value: Any, way_out: str) -> Any:
    return check_number(name, value, "a finite number >= 0", lambda x: 0.0 <= x < math.inf, way_out)


def check_positive(name: str, value: Any, way_out: str) -> Any:
    return check_number(name, value, "a finite number > 0", lambda x: 0.0 < x < math.inf, way_out)


def check_fraction(name: str, value: Any, way_out: str) -> Any:
    return check_number(name, value, "a number in [0, 1)", lambda x: 0.0 <= x < 1.0, way_out)


def check_whole(name: str, value: Any, way_out: str) -> None:
    """Requires a static integer >= 1 that fits Optax's int32 step counter."""
    if not is_static(value):
        raise TypeError(
            f"{name}={value!r} must be a static Python integer, because the cycle "
            "boundaries are a table built before tracing. Under "
            f'optax.inject_hyperparams pass static_args=("{name}",).'
        )
    check_number(
        name,
        value,
        "a whole number from 1 to 2**31 - 1",
        lambda x: x == round(x) and 1 <= x < 2**31,
        way_out,
    )


def check_learning_rate(learning_rate: Any) -> None:
    if not callable(learning_rate):
        check_nonnegative(
            "learning_rate",
            learning_rate,
            "The update is already subtracted: pass the positive step size, "
            "or a schedule (step -> step size).",
        )


def check_schedule(name: str, schedule: Any) -> None:
    if schedule is not None and not callable(schedule):
        check_nonnegative(
            name, schedule, "Pass a schedule (step -> multiplier), a number, or None for 1."
        )


def check_weight_decay(weight_decay: Any, learning_rate: Any = None) -> None:
    """Validates a decay and warns where it looks like PyTorch's λ/α."""
    if callable(weight_decay):
        return
    check_nonnegative(
        "weight_decay",
        weight_decay,
        "It is the fraction of each weight removed per step, e.g. 1e-4, "
        "or a schedule (step -> fraction).",
    )
    if not is_static(weight_decay) or float(weight_decay) < PYTORCH_SCALE:
        return
    if is_static(learning_rate) and float(learning_rate) < 1.0:
        converted = float(weight_decay) * float(learning_rate)
        way_out = f"weight_decay_from_pytorch({weight_decay}, {learning_rate}) = {converted:.3g}"
    else:
        way_out = "weight_decay_from_pytorch(weight_decay, learning_rate)"
    warnings.warn(
        f"weight_decay={weight_decay} removes {float(weight_decay):.3g} of each weight at "
        "every full step. It looks like a PyTorch or Optax value, which is multiplied by "
        f"the learning rate; here it is not. The same decay is {way_out}.",
        UserWarning,
        stacklevel=_caller_depth(),
    )


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} must be True or False, known before tracing.")


def _caller_depth() -> int:
    """The stacklevel (for `_caller_depth`'s caller) of the first frame outside this package."""
    depth, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame is not None and frame.f_globals.get("__name__", "").startswith(package):
        depth, frame = depth + 1, frame.f_back
    return depth
