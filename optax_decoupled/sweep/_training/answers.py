"""What a task's functions and the optimizer must be and return, told before anything is trained."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled.sweep.task import MakeOptimizer, Metrics, ModelState

_REAL = (jnp.floating, jnp.integer, jnp.bool_)
_FACTORY = (
    "it must be a function (learning_rate, weight_decay) -> optimizer, because every cell has its "
    "own optimizer: od.adamw, or lambda rate, decay: od.adamw(rate, decay, mask=od.decay_mask)."
)


def check_factory(make_optimizer: MakeOptimizer) -> None:
    """That it is a function of a learning rate and a weight decay, in this order."""
    if not callable(make_optimizer):
        what = "an optimizer" if _is_optimizer(make_optimizer) else _kind(make_optimizer)
        raise TypeError(f"make_optimizer is {what}; {_FACTORY}")
    try:
        signature = inspect.signature(make_optimizer)
    except ValueError:  # as of some functions in C
        return
    try:
        taken = signature.bind(0.0, 0.0)
    except TypeError as error:
        raise TypeError(f"make_optimizer takes {signature}: {error}; {_FACTORY}") from None
    if "weight_decay" in signature.parameters and "weight_decay" not in taken.arguments:
        raise TypeError(
            "make_optimizer takes weight_decay, but its second argument is "
            f"{list(taken.arguments)[-1]}, which would get the weight decay; {_FACTORY}"
        )


def checked_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """As one that may be given the loss's value, whether it takes that or not."""
    if not _is_optimizer(optimizer):
        raise TypeError(f"make_optimizer returned {_kind(optimizer)}; {_FACTORY}")
    return optax.with_extra_args_support(optimizer)


def checked_init(answer: Any) -> tuple[optax.Params, ModelState]:
    if type(answer) is not tuple or len(answer) != 2:
        raise TypeError(
            f"task.init returned {_kind(answer)}; it must return a pair (params, model_state). "
            "If the model has no state: return params, ()."
        )
    return answer


def checked_loss(answer: Any) -> tuple[jax.Array, ModelState]:
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise TypeError(
            f"task.loss returned {_kind(answer)}; it must return a pair (loss, model_state). If "
            "the model has no state, return the one that was given: return loss, model_state."
        )
    loss, model_state = answer
    rule = "of a floating dtype to have a gradient"
    _check_scalar("task.loss returned for its loss", loss, rule, (jnp.floating,), "batch")
    return loss, model_state


def checked_metrics(answer: Any) -> Metrics:
    if not isinstance(answer, dict) or not answer:
        raise TypeError(
            f"task.evaluate returned {_kind(answer)}; it must return a dict of scalars, e.g. "
            '{"error": ...}.'
        )
    for name, value in answer.items():
        if not isinstance(name, str):
            raise TypeError(
                f"task.evaluate returned a metric called {name!r}; a metric's name must be a "
                'string, e.g. "error".'
            )
        _check_scalar(f"task.evaluate returned for {name!r}", value, "a real number", _REAL, "data")
    return answer


def check_unchanged(name: str, before: Any, after: Any) -> None:
    """That a step returns a tree as it was given, but for the values."""
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
    """Path -> dtype and shape."""
    return {jax.tree_util.keystr(path): _type(x) for path, x in jax.tree.leaves_with_path(tree)}


def _check_scalar(said: str, value: Any, rule: str, kinds: tuple[Any, ...], over: str) -> None:
    """That it is one number of these kinds."""
    number = isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float)
    if not number or not any(jnp.issubdtype(jnp.result_type(value), kind) for kind in kinds):
        raise TypeError(f"{said} {_kind(value)}; it must be {rule}.")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{said} {_kind(value)}; it must be a scalar. Take its mean over the {over}."
        )


def _type(array: Any) -> str:
    """Such as float32[3, 4]."""
    return f"{array.dtype}{list(array.shape)}"


def _is_optimizer(x: Any) -> bool:
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))


def _kind(x: Any) -> str:
    """What something is, in two or three words."""
    if x is None or isinstance(x, str | bool | int | float):
        return repr(x)
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"an array {_type(x)}"
    size = f" of {len(x)}" if isinstance(x, tuple | list | dict) else ""
    return f"a {type(x).__name__}{size}"
