"""Checks of the task's functions and of the optimizer, made before anything is trained."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled.sweep.task import MakeOptimizer, Metrics, ModelState

_REAL = (jnp.floating, jnp.integer, jnp.bool_)
_FORM = (
    "it must be a function (learning_rate, weight_decay) -> optimizer, because every cell has its "
    "own optimizer: od.adamw, or lambda rate, decay: od.adamw(rate, decay, mask=od.decay_mask)."
)


def check_make_optimizer(make_optimizer: MakeOptimizer) -> None:
    """Refuses anything but a function of a learning rate and a weight decay, in this order."""
    if not callable(make_optimizer):
        kind = "an optimizer" if _is_optimizer(make_optimizer) else _kind(make_optimizer)
        raise TypeError(f"make_optimizer is {kind}; {_FORM}")
    signature = inspect.signature(make_optimizer)
    try:
        taken = signature.bind(0.0, 0.0).arguments
    except TypeError as error:
        raise TypeError(f"make_optimizer takes {signature}: {error}; {_FORM}") from None
    if "weight_decay" in signature.parameters and "weight_decay" not in taken:
        raise TypeError(
            f"make_optimizer takes weight_decay, but its second argument is {list(taken)[-1]}, "
            f"which would get the weight decay; {_FORM}"
        )


def checked_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, whose update may now be called with `value=loss`."""
    if not _is_optimizer(optimizer):
        raise TypeError(f"make_optimizer returned {_kind(optimizer)}; {_FORM}")
    return optax.with_extra_args_support(optimizer)


def checked_init(returned: Any) -> tuple[optax.Params, ModelState]:
    if type(returned) is not tuple or len(returned) != 2:
        raise TypeError(
            f"task.init returned {_kind(returned)}; it must return a pair (params, model_state). "
            "If the model has no state: return params, ()."
        )
    return returned


def checked_loss(returned: Any) -> tuple[jax.Array, ModelState]:
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise TypeError(
            f"task.loss returned {_kind(returned)}; it must return a pair (loss, model_state). If "
            "the model has no state, return the one that was given: return loss, model_state."
        )
    loss, model_state = returned
    rule = "of a floating dtype to have a gradient"
    _check_scalar("task.loss returned for its loss", loss, rule, (jnp.floating,), "batch")
    return loss, model_state


def checked_metrics(returned: Any) -> Metrics:
    if not isinstance(returned, dict) or not returned:
        raise TypeError(
            f"task.evaluate returned {_kind(returned)}; it must return a dict of scalars, e.g. "
            '{"error": ...}.'
        )
    for name, value in returned.items():
        if not isinstance(name, str):
            raise TypeError(
                f"task.evaluate returned a metric called {name!r}; a metric's name must be a "
                'string, e.g. "error".'
            )
        _check_scalar(f"task.evaluate returned for {name!r}", value, "a real number", _REAL, "data")
    return returned


def check_unchanged(name: str, before: Any, after: Any) -> None:
    """Refuses a tree whose structure, shapes or dtypes differ after a step."""
    old, new = _types(before), _types(after)
    changed = [path for path in old | new if old.get(path) != new.get(path)]
    if changed:
        path = changed[0]
        raise ValueError(
            f"{name} must keep its structure, shapes and dtypes, because all steps run one "
            f"compiled program; at {path or 'its root'} the first step turned "
            f"{old.get(path, 'nothing')} into {new.get(path, 'nothing')}. Let init give it "
            "the form that it has after a step."
        )


def _types(tree: Any) -> dict[str, str]:
    """Maps paths to dtypes and shapes."""
    return {jax.tree_util.keystr(path): _type(x) for path, x in jax.tree.leaves_with_path(tree)}


def _check_scalar(source: str, value: Any, rule: str, dtypes: tuple[Any, ...], over: str) -> None:
    number = isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float)
    if not number or not any(jnp.issubdtype(jnp.result_type(value), dtype) for dtype in dtypes):
        raise TypeError(f"{source} {_kind(value)}; it must be {rule}.")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{source} {_kind(value)}; it must be a scalar. Take its mean over the {over}."
        )


def _type(array: Any) -> str:
    """Such as float32[3, 4]."""
    return f"{array.dtype}{list(array.shape)}"


def _is_optimizer(x: Any) -> bool:
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))


def _kind(x: Any) -> str:
    """Such as "None", "an array float32[3]" or "a dict of 2"."""
    if x is None or isinstance(x, str | bool | int | float):
        return repr(x)
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"an array {_type(x)}"
    size = f" of {len(x)}" if isinstance(x, tuple | list | dict) else ""
    return f"a {type(x).__name__}{size}"
