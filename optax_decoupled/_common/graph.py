"""The operations of a traced function, and keys that are equal for equal operations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A traced function.
Jaxpr = Any
# Numbers of values.
Values = tuple[int, ...]

# Operations that are calls, and which of their parameters is the function.
_CALLS = {
    "jit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
# Operations that are not mapped over leaves: calls of other code, and random numbers, of which
# some generators draw others if they are mapped.
_UNMAPPED = {"pure_callback", "ffi_call", "random_bits", "rng_bit_generator"}
# Operations that compute each element of their result from that element of their inputs.
# fmt: off
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt",
    "ceil", "clamp", "complex", "conj", "convert_element_type", "copy", "cos", "cosh",
    "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge",
    "gt", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt",
    "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "real",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt",
    "square", "sub", "tan", "tanh", "xor",
}
# fmt: on


class Operation(NamedTuple):
    key: Any  # equal for the same operation with the same parameters
    call: Callable[..., Sequence[Any]]
    inputs: list[int]
    outputs: list[int]
    is_simple: bool  # whether it can be mapped, and run although its result is not needed
    is_elementwise: bool  # whether each element of a result needs that element of the inputs only


class Graph:
    """The operations of a traced function and of those that it calls; values are numbered.

    An array that is one scalar everywhere is no result of an operation: `fills` has the scalar.
    """

    def __init__(self, closed: Jaxpr):
        self.operations: list[Operation] = []
        self.avals: list[Any] = []  # of each value
        self.constants: dict[int, Any] = {}
        self.literals: dict[int, Any] = {}
        self.fills: dict[int, int] = {}
        self._contents: dict[int, Any] = {}  # of literals, as keys
        self.has_effects = bool(closed.effects)
        self._known: dict[Any, Any] = {}  # numbers of literals, and of results of scalars
        self._constant = set[int]()  # values that depend on no argument
        self.arguments = list(map(self._value, getattr(closed, "jaxpr", closed).invars))
        self._given = set(self.arguments)
        self.results = self._walk(closed, self.arguments)

    def _value(self, atom: Any) -> int:
        self.avals.append(atom.aval)
        return len(self.avals) - 1

    def _walk(self, closed: Jaxpr, arguments: Sequence[int]) -> list[int]:
        """Adds the operations of a function; its results."""
        jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        numbers = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            numbers[variable] = number = self._value(variable)
            self.constants[number] = constant
            self._constant.add(number)

        def read(x: Any) -> int:
            if not hasattr(x, "val"):
                return numbers[x]
            key = np.asarray(x.val).tobytes(), _kind(x.aval)
            if key not in self._known:
                self._known[key] = number = self._value(x)
                self.literals[number], self._contents[number] = x.val, key
                self._constant.add(number)
            return self._known[key]

        for equation in jaxpr.eqns:
            inputs = list(map(read, equation.invars))
            outputs = self._outputs(equation, inputs)
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return list(map(read, jaxpr.outvars))

    def _outputs(self, equation: Any, inputs: list[int]) -> list[int]:
        """Adds the operations of an equation; its results."""
        called, branches = _called(equation), _branches(equation)
        if called is not None:
            return self._walk(called, inputs)
        if _is_fill(equation) and self.is_plain(inputs[0]):
            return [self._fill(inputs[0], equation.outvars[0])]
        if branches and all(map(_is_simple_function, branches)):
            # All branches run, and one result is taken: so leaves remain apart.
            results = [self._walk(branch, inputs[1:]) for branch in branches]
            rows = zip(equation.outvars, *results, strict=True)
            return [self._add(_SELECT, [inputs[0], *x], [v])[0] for v, *x in rows]
        key = equation.primitive, equation.ctx, _frozen(equation.params)
        is_elementwise = equation.primitive.name in _ELEMENTWISE
        operation = Operation(key, _bound(equation), [], [], _is_simple(equation), is_elementwise)
        return self._add(operation, inputs, equation.outvars)

    def _fill(self, scalar: int, variable: Any) -> int:
        """The array with this scalar everywhere, one for each kind."""
        key = "fill", scalar, _kind(variable.aval)
        if key not in self._known:
            self._known[key] = x = self._value(variable)
            self.fills[x] = scalar
            if scalar in self._constant:
                self._constant.add(x)
        return self._known[key]

    def scalar(self, x: int) -> int:
        """The scalar that a value is everywhere, or the value itself."""
        return self.fills.get(x, x)

    def _add(self, operation: Operation, inputs: list[int], variables: Sequence[Any]) -> list[int]:
        """Adds an operation, unless an earlier one computes the same scalars; its results."""
        outputs = list(map(self._value, variables))
        if any(0 in self.avals[x].shape for x in outputs):  # an empty one cannot be filled up
            operation = operation._replace(is_elementwise=False)
        if self._constant.issuperset(inputs):
            self._constant.update(outputs)
        if not self.has_effects and not any(map(self.connects, (*inputs, *outputs))):
            known = self._known.setdefault((operation.key, *inputs), outputs)
            if known is not outputs:
                return known
        self.operations.append(operation._replace(inputs=inputs, outputs=outputs))
        return outputs

    def connects(self, x: int) -> bool:
        """Whether a value is an array that operations compute from arguments."""
        is_computed = not (x in self._constant or x in self._given or x in self.fills)
        return is_computed and bool(self.avals[x].shape) and self.is_plain(x)

    def is_plain(self, x: int) -> bool:
        """Whether a value is no random key."""
        return not jnp.issubdtype(self.avals[x].dtype, jax.dtypes.extended)

    def acts_on_elements(self) -> bool:
        """Whether it computes the same of samples: elements alone, of shapes of arguments."""
        given = {self.avals[x].shape for x in self.arguments}
        constants = any(np.ndim(x) for x in (*self.constants.values(), *self.literals.values()))
        made = {self.avals[x].shape for x in (*self.fills, *self.results)} - {()}
        elementwise = all(operation.is_elementwise for operation in self.operations)
        return elementwise and made <= given and not constants

    def key(self, part: "Part", has_shapes: bool = True) -> Any:
        """Equal for operations that compute the same from values of the same kinds."""
        numbers = {x: i for i, x in enumerate(part.outer)}

        def kind(x: int) -> Any:
            shape, *others = _kind(self.avals[x])
            return shape if has_shapes else bool(shape), *others

        def number(x: int) -> Any:
            if x in self.fills:
                return kind(x), number(self.fills[x])
            return self._contents.get(x) or numbers.setdefault(x, len(numbers))

        kinds = map(kind, part.outer)
        rows = [(x.key, *map(number, (*x.inputs, *x.outputs))) for x in part.operations]
        return *kinds, *rows, *map(number, part.results)


_SELECT = Operation("select", lambda *values: [jax.lax.select_n(*values)], [], [], True, True)


def _is_fill(equation: Any) -> bool:
    """Whether an equation makes an array of one scalar."""
    if equation.primitive.name != "broadcast_in_dim" or len(equation.invars) > 1:
        return False
    (scalar,), (filled,) = equation.invars, equation.outvars
    has_sharding = equation.params.get("sharding") is not None
    return not scalar.aval.shape and bool(filled.aval.shape) and not has_sharding


def _called(equation: Any) -> Jaxpr | None:
    """The function of an operation that is a call, or None."""
    return equation.params.get(_CALLS.get(equation.primitive.name))


def _branches(equation: Any) -> Sequence[Jaxpr]:
    """The branches of a condition that all run on this platform."""
    for_platforms = equation.params.get("branches_platforms") is not None
    is_condition = equation.primitive.name == "cond" and not for_platforms
    return equation.params["branches"] if is_condition else ()


def _is_simple(equation: Any) -> bool:
    from jax.extend import core  # takes longer to import than this package

    has_functions = any(True for _ in core.jaxprs_in_params(equation.params))
    is_unmapped = equation.primitive.name in _UNMAPPED or bool(equation.effects)
    return not has_functions and not is_unmapped


def _is_simple_function(closed: Jaxpr) -> bool:
    """Whether all operations are simple: a loop of a branch that is not taken may never end."""

    def is_simple(equation: Any) -> bool:
        called, branches = _called(equation), _branches(equation)
        inner = branches if called is None else [called]
        return all(map(_is_simple_function, inner)) if inner else _is_simple(equation)

    return all(map(is_simple, closed.eqns))


def _bound(equation: Any) -> Callable[..., Sequence[Any]]:
    """An operation as a function of its inputs that returns a list of results."""
    primitive = equation.primitive

    def call(*values: Any) -> Sequence[Any]:
        with equation.ctx.manager:
            found = primitive.bind(*values, **primitive.get_bind_params(equation.params))
        return found if primitive.multiple_results else [found]

    return call


def _kind(aval: Any) -> Any:
    return *(getattr(aval, name, None) for name in ("shape", "dtype", "weak_type")), type(aval)


def _frozen(x: Any) -> Any:
    """The parameters of an operation as a key: a function as its operations, an array as its id."""
    if isinstance(x, dict):
        return tuple((name, _frozen(value)) for name, value in x.items())
    if isinstance(x, tuple | list):
        return tuple(map(_frozen, x))
    if hasattr(x, "eqns"):
        graph = Graph(x)
        outer = (*graph.arguments, *graph.constants)
        constants = tuple(map(id, graph.constants.values()))
        return constants, graph.key(Part(graph.operations, outer, tuple(graph.results)))
    return x if type(x).__hash__ else id(x)


class Part(NamedTuple):
    """Operations that arrays connect, or those of all scalars of a level."""

    operations: list[Operation]
    outer: Values  # the values that they need, without literals
    results: Values  # those of theirs that others need

    @property
    def is_simple(self) -> bool:
        return all(operation.is_simple for operation in self.operations)

    def is_elementwise(self, graph: Graph) -> bool:
        """Whether it may have arrays of any shape."""
        has_array = any(graph.avals[x].shape for x in self.outer)
        return has_array and all(operation.is_elementwise for operation in self.operations)

    def run(self, outer: Sequence[Any], graph: Graph, shape: Callable[[int], Any]) -> list[Any]:
        """Its results; `shape(x)` is that of a value that has one scalar everywhere."""
        values = graph.literals | dict(zip(self.outer, outer, strict=True))

        def read(x: int) -> Any:
            value = values[graph.scalar(x)]
            return jax.lax.broadcast(value, shape(x)) if x in graph.fills else value

        for operation in self.operations:
            results = operation.call(*map(read, operation.inputs))
            values.update(zip(operation.outputs, results, strict=True))
        return [values[x] for x in self.results]
