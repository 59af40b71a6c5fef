"""Programs on hundreds of similar parameters, and how to compile them quickly."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core


def jit_to_run_once(function: Callable[..., Any], static_argnums: Any = ()) -> Any:
    """`jax.jit` with the least work for the compiler: equal operations on equal values are one.

    A new state and synthetic gradients are the same for all parameters of a shape: of ten
    thousand equations a few hundred are left. XLA would find that too, in ten times the
    time. What is left goes mostly to LLVM on CPU: level 1 saves more of it than the run
    loses.
    """

    def shared(*args: Any) -> Any:
        traced = jax.jit(function, static_argnums=static_argnums).trace(*args)
        inputs = jax.tree.leaves([x for i, x in enumerate(args) if i not in static_argnums])
        outputs = _evaluate(traced.jaxpr, inputs, {})
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), outputs)

    fast = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(shared, compiler_options=fast, static_argnums=static_argnums)


def depends_on_inputs(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """For each output of a closed jaxpr, whether any of the marked inputs may reach it."""
    reached = {v for v, marked in zip(jaxpr.jaxpr.invars, inputs, strict=True) if marked}
    for equation in jaxpr.jaxpr.eqns:
        if not reached.isdisjoint(v for v in equation.invars if not _is_literal(v)):
            reached.update(equation.outvars)
    return [not _is_literal(v) and v in reached for v in jaxpr.jaxpr.outvars]


def _evaluate(jaxpr: Any, inputs: Sequence[Any], known: dict[Any, Any]) -> Sequence[Any]:
    """The outputs of a closed jaxpr, equations whose outputs are known left out.

    `known` has the arguments too: an object that is alive shares its id with no other.
    """
    variables = [*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars]
    values = dict(zip(variables, [*jaxpr.consts, *inputs], strict=True))

    def read(v: Any) -> Any:
        return v.val if _is_literal(v) else values[v]

    for equation in jaxpr.jaxpr.eqns:
        arguments = [read(v) for v in equation.invars]
        if equation.primitive.name in _CALLS:
            outputs = _evaluate(_callee(equation), arguments, known)
        else:
            key = _key(equation, arguments)
            outputs = known[key][1] if key in known else _bind(equation, arguments)
            if key is not None:
                known[key] = arguments, outputs
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


# Primitives that, without differentiation, only call a closed jaxpr.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def _callee(equation: Any) -> Any:
    return equation.params[_CALLS[equation.primitive.name]]


def _key(equation: Any, arguments: Sequence[Any]) -> Any:
    """Equal for equations that must have equal outputs; None if nobody can tell."""
    names = [
        (v.aval, np.asarray(v.val).tobytes()) if _is_literal(v) else id(x)
        for v, x in zip(equation.invars, arguments, strict=True)
    ]
    key = (equation.primitive, equation.ctx, *equation.params.values(), *names)
    return key if not equation.effects and _is_hashable(key) else None


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def _bind(equation: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    primitive = equation.primitive
    with equation.ctx.manager:
        outputs = primitive.bind(*arguments, **primitive.get_bind_params(equation.params))
    return outputs if primitive.multiple_results else [outputs]


def _is_literal(v: Any) -> bool:
    return isinstance(v, core.Literal)
