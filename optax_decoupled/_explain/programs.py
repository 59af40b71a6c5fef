"""Programs on hundreds of similar parameters, and how to compile them quickly.

XLA's time grows with the number of equations, and most of them are alike. So equal
operations on equal values are done once: a new state and synthetic gradients are the same
for all parameters of a shape. And what is done for one parameter alone, with its own state,
is a part of its own, compiled once for all parameters that have the same one.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

# Parts may repeat each other's work up to this multiple of all work; else there is one part.
_REPETITION = 2
# Values of at most this size are computed once if parts share them, larger ones in each.
_SMALL = 16


class PerParameter:
    """A compiled function that returns a list with a small array for each parameter.

    What has no part in the outputs, printing for instance, is left out.
    """

    def __init__(self, function: Callable[..., list[Any]]) -> None:
        self._function = function
        self._plans: dict[Any, _Plan] = {}

    def __call__(self, *args: Any) -> list[Any]:
        inputs, treedef = jax.tree.flatten(args)
        key = treedef, *map(jax.typeof, inputs)
        if key not in self._plans:
            self._plans[key] = _make_plan(jax.jit(self._function).trace(*args))
        return self._plans[key].run(inputs)


def depends_on_inputs(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """For each output of a closed jaxpr, whether any of the marked inputs may reach it."""
    reached = {v for v, marked in zip(jaxpr.jaxpr.invars, inputs, strict=True) if marked}
    for equation in jaxpr.jaxpr.eqns:
        if not reached.isdisjoint(v for v in equation.invars if not _is_literal(v)):
            reached.update(equation.outvars)
    return [not _is_literal(v) and v in reached for v in jaxpr.jaxpr.outvars]


class _Node(NamedTuple):
    """An equation among numbered values.

    Attributes:
      equation: what to do.
      kind: equal for equations that do the same.
      inputs: the numbers of the values that it reads; literals stand for themselves.
      outputs: the numbers of the values that it sets.
    """

    equation: Any
    kind: Any
    inputs: tuple[Any, ...]
    outputs: tuple[int, ...]


class _Part(NamedTuple):
    """A compiled function, and the numbers of its arguments and results."""

    function: Any
    inputs: list[int]
    outputs: list[int]


class _Plan(NamedTuple):
    """Parts that run in turn.

    Attributes:
      constants: values by their numbers. Those of the inputs are 0, 1, 2, ...
      parts: the common part and those of the parameters.
      entries: the number of the output for each parameter.
    """

    constants: dict[int, Any]
    parts: list[_Part]
    entries: list[Any]

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        values = {**self.constants, **dict(enumerate(inputs))}
        for part in self.parts:
            results = part.function(*(values[x] for x in part.inputs))
            values.update(zip(part.outputs, results, strict=True))
        return [_value(x, values) for x in self.entries]


def _make_plan(traced: Any) -> _Plan:
    graph = _Graph(len(traced.jaxpr.jaxpr.invars))
    entries = graph.add(traced.jaxpr, range(graph.inputs))
    nodes = list(graph.nodes.values())
    shared, repeatable = _small_shared(nodes, entries)
    setter = {x: node for node in nodes for x in node.outputs}
    order = {id(node): i for i, node in enumerate(nodes)}

    def part(outputs: Sequence[Any], given: set[int]) -> tuple[list[_Node], list[int]]:
        numbers = dict.fromkeys(x for x in outputs if not _is_literal(x))
        wanted = [x for x in numbers if x in setter and x not in given]
        return _needed(wanted, given, setter, order), wanted

    own = [part([x], shared) for x in entries]
    repeated = sum(_work(x) for x, _ in own)
    if not repeatable or repeated > _REPETITION * _work(nodes):
        own, shared = [part(entries, set())], set()
    read = [*entries, *(x for nodes, _ in own for node in nodes for x in node.inputs)]
    common = part([x for x in read if not _is_literal(x) and x in shared], set())
    compiled: dict[Any, Any] = {}
    parts = [_compile(*x, compiled) for x in (common, *own) if x[1]]
    return _Plan(graph.constants, parts, entries)


class _Graph:
    """The equations of a program as nodes, calls inlined, none twice."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.nodes: dict[Any, _Node] = {}
        self.constants: dict[int, Any] = {}
        self._number_of: dict[int, int] = {}
        self._numbers = itertools.count(inputs)

    def add(self, jaxpr: Any, inputs: Sequence[Any]) -> list[Any]:
        """Adds a closed jaxpr on the numbered inputs; returns the numbers of its outputs."""
        constants = map(self._constant, jaxpr.consts)
        variables = [*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars]
        numbers = dict(zip(variables, [*constants, *inputs], strict=True))

        def number(v: Any) -> Any:
            return v if _is_literal(v) else numbers[v]

        for equation in jaxpr.jaxpr.eqns:
            arguments = tuple(map(number, equation.invars))
            if equation.primitive.name in _CALLS:
                outputs = self.add(equation.params[_CALLS[equation.primitive.name]], arguments)
            elif equation.primitive.name == "cond" and _can_take_all_branches(equation):
                outputs = self._select(equation, *arguments)
            else:
                outputs = self._node(equation, arguments).outputs
            numbers.update(zip(equation.outvars, outputs, strict=True))
        return list(map(number, jaxpr.jaxpr.outvars))

    def _select(self, equation: Any, index: Any, *arguments: Any) -> list[Any]:
        """All branches, and of each output the one that counts: equations can be divided."""
        branches = [self.add(jaxpr, arguments) for jaxpr in equation.params["branches"]]
        which = equation.invars[0].aval
        return [
            self.add(_selection(which, v.aval, len(branches)), (index, *values))[0]
            for v, *values in zip(equation.outvars, *branches, strict=True)
        ]

    def _constant(self, x: Any) -> int:
        number = self._number_of.setdefault(id(x), next(self._numbers))
        self.constants[number] = x
        return number

    def _node(self, equation: Any, inputs: tuple[Any, ...]) -> _Node:
        kind = equation.primitive, equation.ctx, *equation.params.values()
        if equation.effects or not _is_hashable(kind):
            kind = object()
        key = kind, *map(_identity, inputs)
        if key not in self.nodes:
            outputs = tuple(next(self._numbers) for _ in equation.outvars)
            self.nodes[key] = _Node(equation, kind, inputs, outputs)
        return self.nodes[key]


@functools.lru_cache(maxsize=1024)
def _selection(which: Any, value: Any, cases: int) -> Any:
    return jax.make_jaxpr(jax.lax.select_n)(which, *[value] * cases)


def _can_take_all_branches(cond: Any) -> bool:
    """Unless that would have effects, or might not end."""

    def may_not_end(jaxpr: Any) -> bool:
        equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
        return any(
            equation.primitive.name == "while"
            or any(map(may_not_end, core.jaxprs_in_params(equation.params)))
            for equation in equations
        )

    return not cond.effects and not any(map(may_not_end, cond.params["branches"]))


# Primitives that, where nothing is differentiated, only call a closed jaxpr.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def _small_shared(nodes: list[_Node], entries: list[Any]) -> tuple[set[int], bool]:
    """The small values that several entries need, and whether the rest that they share is cheap."""
    users: defaultdict[Any, int] = defaultdict(int)  # a bit for each entry
    for i, x in enumerate(entries):
        users[_identity(x)] |= 1 << i
    shared, cheap = set(), True
    for node in reversed(nodes):
        mask = 0
        for x in node.outputs:
            mask |= users[x]
        for x in node.inputs:
            users[_identity(x)] |= mask
        if mask & (mask - 1):
            if all(v.aval.size <= _SMALL for v in node.equation.outvars):
                shared.update(node.outputs)
            elif node.equation.effects or any(core.jaxprs_in_params(node.equation.params)):
                cheap = False
    return shared, cheap


def _needed(
    outputs: Sequence[int], given: set[int], setter: dict[int, _Node], order: dict[int, int]
) -> list[_Node]:
    """The nodes, in order, that set the outputs from what is given and the inputs."""
    found, waiting = {}, [setter[x] for x in outputs]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            read = (x for x in node.inputs if not _is_literal(x))
            waiting += [setter[x] for x in read if x in setter and x not in given]
    return sorted(found.values(), key=lambda node: order[id(node)])


def _work(nodes: Sequence[_Node]) -> int:
    """The number of elements that are computed."""
    return sum(v.aval.size for node in nodes for v in node.equation.outvars)


def _compile(nodes: list[_Node], outputs: list[int], compiled: dict[Any, Any]) -> _Part:
    """A part, compiled unless one that differs in the numbers alone is."""
    numbers: dict[Any, int] = {}

    def position(x: Any) -> Any:
        return _identity(x) if _is_literal(x) else numbers.setdefault(x, len(numbers))

    same = [(n.kind, *map(position, n.inputs), *map(position, n.outputs)) for n in nodes]
    key = (*same, *map(position, outputs))
    written = {x for node in nodes for x in node.outputs}
    inputs = [x for x in numbers if x not in written]
    if key not in compiled:

        def function(*values: Any) -> list[Any]:
            known = dict(zip(inputs, values, strict=True))
            for node in nodes:
                known.update(zip(node.outputs, _bind(node, known), strict=True))
            return [known[x] for x in outputs]

        # On CPU LLVM takes long: level 1 saves more of its time than the run loses.
        fast = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
        compiled[key] = jax.jit(function, compiler_options=fast)
    return _Part(compiled[key], inputs, outputs)


def _bind(node: _Node, known: dict[int, Any]) -> Sequence[Any]:
    primitive, equation = node.equation.primitive, node.equation
    arguments = [_value(x, known) for x in node.inputs]
    with equation.ctx.manager:
        results = primitive.bind(*arguments, **primitive.get_bind_params(equation.params))
    return results if primitive.multiple_results else [results]


def _value(x: Any, values: dict[int, Any]) -> Any:
    return x.val if _is_literal(x) else values[x]


def _identity(x: Any) -> Any:
    """Of a number itself; of a literal its type and bits, for 0.0 == -0.0."""
    return (x.aval, np.asarray(x.val).tobytes()) if _is_literal(x) else x


def _is_literal(x: Any) -> bool:
    return isinstance(x, core.Literal)


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True
