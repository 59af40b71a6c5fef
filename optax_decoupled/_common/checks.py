"""Argument checks: every message names the argument, its value, the rule and the way out.

What is checked is what is known when the object is built. A tracer is never inspected, nor
is an array on a device, but for a weight decay, whose unit people mistake.
"""

import functools
import math
import reprlib
import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple, TypeGuard, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

# From here on a decay looks like PyTorch's: its default is 0.01, while the paper's best
# values for a whole training run lie between 1e-5 and 1e-3.
PYTORCH_SCALE = 0.01
# A multiplier reaches 1. One that stays below this looks like a learning rate.
FULL = 0.3
_MASK_MARK = "_is_mask_of_optax_decoupled"
_SHORT = reprlib.Repr()
_SHORT.maxother, _SHORT.maxstring, _SHORT.maxdict = 60, 100, 2


def brief(value: object) -> str:
    """The value's repr, with the middle left out if it is long."""
    return _SHORT.repr(value)


def inject_hint(argument: str) -> str:
    return (
        "If it came through optax.inject_hyperparams, which takes every callable for a "
        f'schedule, pass static_args=("{argument}",) to it.'
    )


def is_static(value: object) -> TypeGuard[float]:
    """True for numbers known before tracing: Python's and NumPy's."""
    return isinstance(value, int | float | complex | np.generic) or (
        isinstance(value, np.ndarray) and value.ndim == 0
    )


def is_static_zero(value: object) -> bool:
    return is_static(value) and bool(value == 0)


def is_known(value: object) -> bool:
    """True also for a scalar on a device."""
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        is_number = jnp.issubdtype(value.dtype, jnp.number)  # a random key is none
        return value.shape == () and is_number and value.is_fully_addressable
    return is_static(value)


def check_number(name: str, value: T, rule: str, holds: Callable[[float], bool], way_out: str) -> T:
    """Returns value; refuses what is no scalar and static numbers that break the rule."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={brief(value)} is a bool; it must be {rule}. {way_out}")
    dtype = getattr(value, "dtype", None)
    kinds = (jnp.integer, jnp.floating)
    if dtype is not None and not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise TypeError(f"{name} has dtype {dtype}; it must be {rule}. {way_out}")
    number: object = value  # a copy for the type checker to narrow
    if is_static(number):
        if np.iscomplexobj(number) or not holds(float(number)):
            raise ValueError(f"{name}={brief(value)} is not allowed: it must be {rule}. {way_out}")
    else:
        shape = getattr(value, "shape", None)
        if shape is None:
            kind = type(value).__name__
            raise TypeError(f"{name}={brief(value)} is a {kind}; it must be {rule}. {way_out}")
        if shape != ():
            raise ValueError(
                f"{name} has shape {shape}; it must be a scalar, {rule}. "
                "For several values at once, wrap the whole optimizer in jax.vmap."
            )
    return value


class Range(NamedTuple):
    """A range of numbers, as text and as a predicate; call it to check an argument."""

    rule: str
    holds: Callable[[float], bool]

    def __call__(self, name: str, value: T, way_out: str) -> T:
        return check_number(name, value, self.rule, self.holds, way_out)


check_nonnegative = Range("a finite number >= 0", lambda x: 0.0 <= x < math.inf)
check_positive = Range("a finite number > 0", lambda x: 0.0 < x < math.inf)
check_fraction = Range("a number in [0, 1)", lambda x: 0.0 <= x < 1.0)
check_inner_fraction = Range("a number in (0, 1)", lambda x: 0.0 < x < 1.0)
check_share = Range("a number in [0, 1]", lambda x: 0.0 <= x <= 1.0)
check_at_least_1 = Range("a finite number >= 1", lambda x: 1.0 <= x < math.inf)
check_finite = Range("a finite number", math.isfinite)


def check_static(name: str, value: object) -> None:
    if not is_static(value):
        raise TypeError(
            f"{name}={brief(value)} must be a static Python number, known before tracing. Under "
            f'optax.inject_hyperparams pass static_args=("{name}",).'
        )


def check_whole(name: str, value: object, way_out: str) -> None:
    """Requires a static integer >= 1 that fits Optax's int32 step counter."""
    check_static(name, value)
    holds = lambda x: 1 <= x < 2**31 and x == round(x)
    check_number(name, value, "a whole number from 1 to 2**31 - 1", holds, way_out)


def check_learning_rate(learning_rate: object) -> None:
    if callable(learning_rate):
        _refuse_mask("learning_rate", learning_rate)
    else:
        check_nonnegative(
            "learning_rate",
            learning_rate,
            "The update is already subtracted: pass the positive step size, "
            "or a schedule (step -> step size).",
        )


def check_schedule(name: str, schedule: object) -> None:
    if callable(schedule):
        _refuse_mask(name, schedule)
    elif schedule is not None:
        check_nonnegative(
            name, schedule, "Pass a schedule (step -> multiplier), a number, or None for 1."
        )


def mask_function(function: F) -> F:
    """Marks a function of this package as a mask, so that none is taken for a schedule."""
    vars(function)[_MASK_MARK] = True
    return function


def _refuse_mask(name: str, schedule: Callable[..., object]) -> None:
    """Refuses a mask function in the place of a schedule, where it would be called with a count.

    A mask of this package has a mark. One of a user's is found if it returns a bool.
    """
    function: object = schedule
    while isinstance(function, functools.partial):
        function = function.func
    if getattr(function, _MASK_MARK, False) is True:  # an object may have every attribute
        raise TypeError(
            f"{name}={brief(schedule)} is a mask: a function of the parameters. A schedule (step "
            "-> multiplier) is a function of the step. Pass it as mask=."
        )
    values: list[object] = []
    try:
        jax.eval_shape(lambda t: values.append(schedule(t)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception:  # a schedule may be any function of a known step
        return
    if isinstance(values[0], bool | np.bool_):  # whatever the step; a comparison is no such value
        raise TypeError(
            f"{name}={brief(schedule)} returns {values[0]} whatever the step; a schedule (step -> "
            "multiplier) returns a number. If it is a mask, pass it as mask=."
        )


def check_weight_decay(
    weight_decay: object, learning_rate: object = None, peak: float = 1.0
) -> None:
    """Refuses what is no decay, and warns where it looks like PyTorch's λ/α.

    With a known learning rate the warning has the converted value. `peak` is the greatest
    multiplier that the decay meets; 1 is assumed for NaN.
    """
    if callable(weight_decay):
        _refuse_mask("weight_decay", weight_decay)
        return
    weight_decay, learning_rate = _on_host(weight_decay), _on_host(learning_rate)
    check_number(
        "weight_decay",
        weight_decay,
        "a number >= 0 and <= 1",
        lambda x: 0.0 <= x <= 1.0,
        "It is the fraction of each weight removed per step, e.g. 1e-4, or a schedule "
        "(step -> fraction); more than 1 would change the sign of every weight. For a value of "
        "PyTorch or Optax see weight_decay_from_pytorch.",
    )
    if not is_static(weight_decay):
        return
    # A sample may miss the peak by a little.
    removed = float(weight_decay) * (peak if peak < FULL or peak > 1 else 1.0)
    if removed >= PYTORCH_SCALE * (1 - 1e-6):  # 0.01 in float32 is a little less
        warn(
            f"weight_decay={weight_decay:.6g} removes {removed:.3g} of each weight at "
            "every full step. It looks like a PyTorch or Optax value, which is multiplied by "
            "the learning rate; here it is not. The same decay is "
            f"{_conversion(weight_decay, learning_rate)}."
        )


def _on_host(value: object) -> object:
    """A scalar on a device, as inject_hyperparams makes it of a number, as NumPy's."""
    return np.asarray(value)[()] if isinstance(value, jax.Array) and is_known(value) else value


def _conversion(weight_decay: float, learning_rate: object) -> str:
    if is_static(learning_rate) and 0.0 < float(learning_rate) < 1.0:
        converted = float(weight_decay) * float(learning_rate)
        return (
            f"weight_decay_from_pytorch({weight_decay:.6g}, {learning_rate:.6g}) = {converted:.3g}"
        )
    return f"weight_decay_from_pytorch({weight_decay:.6g}, learning_rate)"


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={brief(value)} must be True or False, known before tracing.")


def check_transformation(name: str, value: object, way_out: str) -> None:
    if not all(callable(getattr(value, method, None)) for method in ("init", "update")):
        raise TypeError(
            f"{name}={brief(value)} must be an optax.GradientTransformation (init and update). "
            f"{way_out}"
        )


def check_moment_dtype(name: str, value: object, kind: type = jnp.floating) -> None:
    """Requires None, or a dtype of this kind with at least 16 bits."""
    if value is None:
        return
    try:
        if isinstance(value, jax.Array | np.generic | np.ndarray):
            raise TypeError  # optax.inject_hyperparams makes arrays of dtypes
        dtype = jnp.dtype(value)  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(
            f'{name}={brief(value)} must be a dtype, such as jnp.float32 or "bfloat16", or None. '
            f"{inject_hint(name)} The text needs no such help."
        ) from None
    if not jnp.issubdtype(dtype, kind) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{name}={brief(value)} cannot hold a moving average: its small changes would be "
            'rounded away. It must be a floating dtype of at least 16 bits, such as "bfloat16" '
            "or jnp.float32, or None."
        )


def warn(text: str) -> None:
    """Warns at the line of the user's that led here."""
    warnings.warn(text, UserWarning, stacklevel=_caller_depth())


def _caller_depth() -> int:
    """The stacklevel (for `_caller_depth`'s caller) of the first frame that is the user's."""
    depth, frame = 1, sys._getframe(1)
    while frame is not None and _package(frame.f_globals.get("__name__", "")) in _BETWEEN:
        depth, frame = depth + 1, frame.f_back
    return depth


def is_ours(function: object) -> bool:
    return _package(getattr(function, "__module__", None) or "") == _package(__name__)


def _package(module: str) -> str:
    return module.partition(".")[0]


# Optax's inject_hyperparams calls our functions, and JAX what it traces.
_BETWEEN = {_package(__name__), "optax", "jax", "numpy", "contextlib"}
