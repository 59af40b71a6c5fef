"""A function of trees that compiles once what it does to many leaves.

Parts with the same operations are compiled as one, mapped over their stacked arrays; parts with
the same arrays run once.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled._common.graph import Graph, Part, equal_parts

# An array or a number for each leaf of a tree.
Leaves = list[Any]
# The numbers of one value in each part of a group. Stacked, the values are one array.
Column = tuple[int, ...]


class Program:
    """A function of trees of arrays, traced and compiled once for each structure.

    If `is_mapped`, it maps the function over the first axis of the first argument, an array
    of scalars.
    """

    def __init__(self, function: Callable[..., Any], is_mapped: bool = False):
        self.trace, self._is_mapped = jax.jit(function).trace, is_mapped
        self._compiled: dict[Any, list[_Compiled]] = {}

    def __call__(self, *trees: Any) -> Any:
        """The results of the function as NumPy arrays."""
        leaves, structure = jax.tree.flatten(trees)
        key = structure, tuple(map(_kind, leaves))
        compiled = self._compiled.setdefault(key, [])
        for each in compiled:
            if each.fits(leaves):
                return each(leaves)
        traced = self.trace(trees[0][0], *trees[1:]) if self._is_mapped else self.trace(*trees)
        results = jax.tree.structure(traced.out_info)
        compiled.append(_Compiled(Graph(traced.jaxpr), results, leaves, self._is_mapped))
        return compiled[-1](leaves)


def _kind(x: Any) -> Any:
    return np.shape(x), getattr(x, "dtype", type(x)), getattr(x, "weak_type", False)


class _Group(NamedTuple):
    """Parts with the same operations: one of them, and the values of all as columns."""

    part: Part
    outer: list[Column]
    results: list[Column]

    @property
    def varying(self) -> list[Column]:
        return list(filter(_varies, self.outer))


def _varies(column: Column) -> bool:
    return column.count(column[0]) < len(column)


class _Same:
    """By which equal value each value is replaced; chains of replacements are followed."""

    def __init__(self) -> None:
        self.replaced: dict[int, int] = {}

    def __call__(self, x: int) -> int:
        while x in self.replaced:
            x = self.replaced[x]
        return x

    def add(self, values: Column, others: Column) -> None:
        for x, y in zip(map(self, values), map(self, others), strict=True):
            if x != y:
                self.replaced[x] = y


def _groups(graph: Graph, equal: dict[int, int]) -> tuple[list[_Group], _Same]:
    """Groups of parts with the same operations, in an order in which they can run.

    Of parts with the same values only the first is kept, and the values of the others are
    replaced by its own. `equal` maps each argument to the first that is the same array.
    """
    groups: list[_Group] = []
    same = _Same()
    for parts in equal_parts(graph):
        distinct: dict[Column, Part] = {}
        for part in parts:
            outer = map(same, part.outer)
            first = distinct.setdefault(tuple(equal.get(x, x) for x in outer), part)
            same.add(part.outer, first.outer)
            same.add(part.results, first.results)
        outer = [tuple(map(same, part.outer)) for part in distinct.values()]
        results = [part.results for part in distinct.values()]
        columns = (list(zip(*rows, strict=True)) for rows in (outer, results))
        groups.append(_Group(parts[0], *columns))
    return groups, same


class _Compiled:
    """A graph as one compiled function, for leaves of which certain pairs are one array."""

    def __init__(self, graph: Graph, structure: Any, leaves: Leaves, is_mapped: bool):
        self.graph, self.structure = graph, structure
        firsts: dict[int, int] = {}
        arguments = zip(graph.arguments, leaves, strict=True)
        equal = {x: firsts.setdefault(id(leaf), x) for x, leaf in arguments}
        self.groups, same = _groups(graph, equal)
        index = {x: i for i, x in enumerate(graph.arguments)}
        self._repeated = [(index[x], index[same(x)]) for x in same.replaced if x in index]
        self.arguments = [*graph.arguments, *graph.constants]
        loops, single = [group for group in self.groups if group.varying], set(self.arguments)
        single -= set(graph.arguments[:is_mapped])
        self.columns: list[Column] = []  # of arguments
        for column in (column for group in loops for column in group.varying):
            if single.issuperset(column) and graph.is_plain(column[0]):
                self.columns.append(column)
                single.difference_update(column)
        self.single = [*graph.arguments[:is_mapped], *(x for x in self.arguments if x in single)]
        made = [column for group in loops for column in group.results]
        # The column of a value, and where the value is in it.
        self.rows = {x: (c, i) for c in (*self.columns, *made) for i, x in enumerate(c)}
        self.leaves = list(map(same, graph.results))
        self.results = list(dict.fromkeys(self.rows.get(x, (x,))[0] for x in self.leaves))
        run = self._run
        if is_mapped:  # over the first argument, a scalar in the graph
            axes = [None if i else 0 for i in range(len(self.single))]
            run = jax.vmap(run, (axes, None), [int(isinstance(x, tuple)) for x in self.results])
        self._run_compiled = jax.jit(run)

    def fits(self, leaves: Leaves) -> bool:
        """Whether the pairs of leaves that were one array, so that one part runs for both, are."""
        return all(leaves[i] is leaves[first] for i, first in self._repeated)

    def __call__(self, leaves: Leaves) -> Any:
        given = dict(zip(self.arguments, [*leaves, *self.graph.constants.values()], strict=True))
        columns = [np.stack([given[x] for x in column]) for column in self.columns]
        found = self._run_compiled([given[x] for x in self.single], columns)
        values = dict(zip(self.results, map(_on_host, found), strict=True))
        for x in set(self.leaves).intersection(self.rows):
            column, i = self.rows[x]
            values[x] = values[column][i]
        return self.structure.unflatten(values[x] for x in self.leaves)

    def _run(self, single: Leaves, columns: Leaves) -> Leaves:
        values: dict[int | Column, Any] = dict(zip(self.columns, columns, strict=True))
        values |= self.graph.literals | dict(zip(self.single, single, strict=True))

        def read(x: int | Column) -> Any:
            if x in values:
                return values[x]
            if isinstance(x, tuple):
                rows = [self.rows.get(i, ((), 0)) for i in x]
                column, _ = rows[0]
                if not column or {c for c, _ in rows} != {column}:
                    return jnp.stack(list(map(read, x)))
                return values[column][np.array([i for _, i in rows])]
            column, i = self.rows[x]
            return jax.lax.index_in_dim(values[column], i, keepdims=False)

        for group in self.groups:
            fixed = [None if _varies(column) else read(column[0]) for column in group.outer]

            def run(rows: Leaves, part: Part = group.part, fixed: Leaves = fixed) -> Leaves:
                rest = iter(rows)
                outer = [next(rest) if x is None else x for x in fixed]
                return part.run(outer, self.graph.literals)

            if group.varying:
                columns = list(map(read, group.varying))
                found = _mapped(run, columns, group.part.is_simple)
                values.update(zip(group.results, found, strict=True))
            else:
                values.update(zip((x for (x,) in group.results), run([]), strict=True))
        return list(map(read, self.results))


def _mapped(function: Callable[[Leaves], Leaves], columns: Leaves, is_simple: bool) -> Leaves:
    if is_simple:
        with contextlib.suppress(NotImplementedError):  # an operation that JAX cannot map
            return jax.vmap(function)(columns)  # compiles in half of the time of the loop below
    return jax.lax.map(function, columns)


def _on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)
