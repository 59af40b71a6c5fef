"""What is read from a jaxpr: its primitives, and a text that tells it from other jaxprs.

`str(jaxpr)` is no such text: it prints sets in the order of their hashes and functions with
their addresses, which are others in each process, and no values of the arrays it holds.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend import core
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# id -> (what has it, and so keeps it; its text).
_Seen = dict[int, tuple[object, str]]

# Rules for derivatives that were not taken, and functions that only have effects: they give
# no numbers, but their closures change while they are used.
_IDLE = ("custom_jvp_call", "custom_vjp_call", "debug_callback", "debug_print", "io_callback")
_LONGEST = 64


def primitives(jaxpr: core.Jaxpr) -> Iterator[str]:
    """The names of the primitives in a jaxpr, closed or not, and in those within it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
    for inner in core.subjaxprs(getattr(jaxpr, "jaxpr", jaxpr)):
        yield from primitives(inner)


def describe(x: object) -> str:
    """A hash of a value, a jaxpr or containers of them; the same in every process.

    Functions count by name, code and what they close over; other objects by their type and
    public attributes; arrays by their values.
    """
    return _hash(_text(x, {}))


def _text(x: object, seen: _Seen) -> str:
    if id(x) not in seen:
        seen[id(x)] = (x, "itself")  # where it holds itself
        text = _render(x, seen)
        seen[id(x)] = (x, text if len(text) <= _LONGEST else _hash(text))
    return seen[id(x)][1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _listed(name: str, values: Iterable[object], seen: _Seen) -> str:
    return f"{name}({', '.join(_text(x, seen) for x in values)})"


def _named(x: Any) -> str:
    """A class, function or object by its name and where that was defined, else by its type."""
    if not isinstance(getattr(x, "__qualname__", None), str):
        x = type(x)
    return f"{getattr(x, '__module__', '')}.{x.__qualname__}"


@functools.singledispatch
def _render(x: Any, seen: _Seen) -> str:
    if hasattr(x, "eqns"):  # closed jaxprs have a type of their own in some versions of JAX
        return _jaxpr(x, seen)
    if hasattr(x, "dtype") and hasattr(x, "shape") and hasattr(x, "__array__"):
        return _array(x, seen)
    wrapped = getattr(x, "__wrapped__", None)  # as of what `jax.jit` returns
    fields = [f.name for f in dataclasses.fields(x)] if dataclasses.is_dataclass(x) else ()
    names = fields or getattr(x, "__dict__", ())
    values = {k: getattr(x, k, None) for k in names if not k.startswith("_")}
    return _listed(_named(x), [getattr(x, "name", None), wrapped, values], seen)


@_render.register(type(None))
@_render.register(bool)
@_render.register(int)
@_render.register(float)
@_render.register(complex)
@_render.register(str)
@_render.register(bytes)
@_render.register(np.dtype)
@_render.register(ShapedArray)
def _plain(x: object, seen: _Seen) -> str:
    del seen
    return f"{type(x).__name__} {x!r}"


@_render.register(type)
@_render.register(types.ModuleType)
@_render.register(types.BuiltinFunctionType)
def _by_name(x: Any, seen: _Seen) -> str:
    del seen
    return _named(x) if hasattr(x, "__qualname__") else x.__name__


@_render.register(np.generic)
@_render.register(np.ndarray)
@_render.register(jax.Array)
def _array(x: Any, seen: _Seen) -> str:
    del seen
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"{x.dtype} {_array(jax.random.key_data(x), {})}"
    array = np.asarray(x)
    if array.dtype == object:
        return _listed("object", array.ravel().tolist(), {})
    values = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{array.shape} {values}"


@_render.register(tuple)
@_render.register(list)
def _sequence(x: Iterable[object], seen: _Seen) -> str:
    return _listed(_named(type(x)), x, seen)


@_render.register(set)
@_render.register(frozenset)
def _set(x: Iterable[object], seen: _Seen) -> str:
    return f"set({', '.join(sorted(_text(y, seen) for y in x))})"


@_render.register(Mapping)
def _mapping(x: Mapping[object, object], seen: _Seen) -> str:
    items = (f"{_text(k, seen)}: {_text(v, seen)}" for k, v in x.items())
    return f"mapping({', '.join(sorted(items))})"


@_render.register(functools.partial)
def _partial(x: Any, seen: _Seen) -> str:
    return _listed("partial", [x.func, x.args, x.keywords], seen)


@_render.register(types.MethodType)
def _method(x: types.MethodType, seen: _Seen) -> str:
    return _listed("method", [x.__func__, x.__self__], seen)


@_render.register(types.FunctionType)
def _function(x: types.FunctionType, seen: _Seen) -> str:
    held = [_content(cell) for cell in x.__closure__ or ()]
    return _listed(_named(x), [x.__code__, held, x.__defaults__, x.__kwdefaults__], seen)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


@_render.register(types.CodeType)
def _code(x: types.CodeType, seen: _Seen) -> str:
    return _listed("code", [x.co_code, x.co_names, x.co_consts], seen)


@_render.register(jax.tree_util.PyTreeDef)
def _structure(x: Any, seen: _Seen) -> str:
    return _listed("tree", [x.node_data(), *x.children()], seen)


@_render.register(Mesh)
@_render.register(AbstractMesh)
def _mesh(x: Mesh | AbstractMesh, seen: _Seen) -> str:
    return _listed("mesh", list(x.shape.items()), seen)


@_render.register(NamedSharding)
def _sharding(x: NamedSharding, seen: _Seen) -> str:
    return _listed("sharding", [x.mesh, x.spec, x.memory_kind], seen)


@_render.register(PartitionSpec)
def _spec(x: PartitionSpec, seen: _Seen) -> str:
    return _listed("spec", x, seen)


def _jaxpr(x: Any, seen: _Seen) -> str:
    """Line by line, with the variables numbered."""
    open_jaxpr = getattr(x, "jaxpr", x)
    numbers: dict[core.Var, int] = {}

    def name(variables: Iterable[Any]) -> str:
        return " ".join(
            _text(np.asarray(v.val), seen)
            if isinstance(v, core.Literal)
            else f"{numbers.setdefault(v, len(numbers))}:{_text(v.aval, seen)}"
            for v in variables
        )

    lines = [_text(list(getattr(x, "consts", ())), seen)]
    lines.append(f"{name(open_jaxpr.constvars)}; {name(open_jaxpr.invars)}")
    for equation in open_jaxpr.eqns:
        operands = name(equation.invars)
        lines.append(f"{name(equation.outvars)} = {_equation(equation, seen)} {operands}")
    return "\n".join([*lines, name(open_jaxpr.outvars)])


def _equation(equation: core.JaxprEqn, seen: _Seen) -> str:
    primitive = equation.primitive.name
    idle = primitive.startswith(_IDLE)
    params = {k: v for k, v in equation.params.items() if k != "ctx_mesh"}  # where, not what
    text: Callable[[object], str] = lambda v: _named(v) if idle and callable(v) else _text(v, seen)
    return f"{primitive}[{', '.join(f'{k}={text(params[k])}' for k in sorted(params))}]"
