"""A function of trees that compiles once what it does to many leaves.

Parts with the same operations are compiled as one, mapped over their stacked arrays; parts with
the same arrays run once.
"""

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
        key = structure, tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
        compiled = self._compiled.setdefault(key, [])
        for each in compiled:
            if each.fits(leaves):
                return each(leaves)
        first = trees[0][0] if self._is_mapped else trees[0]
        traced = self.trace(first, *trees[1:])
        results = jax.tree.structure(traced.out_info)
        compiled.append(_Compiled(Graph(traced.jaxpr), results, leaves, self._is_mapped))
        return compiled[-1](leaves)


class _Group(NamedTuple):
    """Parts with equal operations: one of them, and the values of all as columns."""

    part: Part
    outer: list[Column]
    results: list[Column]

    @property
    def varying(self) -> list[Column]:
        return list(filter(_varies, self.outer))


def _varies(column: Column) -> bool:
    return column.count(column[0]) < len(column)


def _groups(graph: Graph, equal: dict[int, int]) -> tuple[list[_Group], dict[int, int]]:
    """Groups of parts with the same operations, in an order in which they can run.

    Of parts with the same values only the first is kept. Also returns by which values those of
    the others are replaced. `equal` maps each argument to the first that is the same array.
    """
    groups: list[_Group] = []
    same: dict[int, int] = {}
    for parts in equal_parts(graph):
        distinct: dict[Column, Part] = {}
        for part in parts:
            outer = (same.get(x, x) for x in part.outer)
            first = distinct.setdefault(tuple(equal.get(x, x) for x in outer), part)
            pairs = zip((*part.outer, *part.results), (*first.outer, *first.results), strict=True)
            same.update(pair for pair in pairs if first is not part)
        outer = [[same.get(x, x) for x in part.outer] for part in distinct.values()]
        results = [part.results for part in distinct.values()]
        columns = (list(zip(*rows, strict=True)) for rows in (outer, results))
        groups.append(_Group(parts[0], *columns))
    return groups, same


class _Compiled:
    """A graph as one compiled function, for leaves of which the same are the same array."""

    def __init__(self, graph: Graph, structure: Any, leaves: Leaves, is_mapped: bool):
        self.graph, self.structure = graph, structure
        firsts: dict[int, int] = {}
        arguments = zip(graph.arguments, leaves, strict=True)
        equal = {x: firsts.setdefault(id(leaf), x) for x, leaf in arguments}
        self.groups, same = _groups(graph, equal)
        index = {x: i for i, x in enumerate(graph.arguments)}
        self._repeated = [(index[x], index[y]) for x, y in same.items() if x in index and x != y]
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
        self.leaves = [same.get(x, x) for x in graph.results]
        self.results = list(dict.fromkeys(self.rows.get(x, (x,))[0] for x in self.leaves))
        run = self._run
        if is_mapped:  # over the first argument, a scalar in the graph
            axes = [None if i else 0 for i in range(len(self.single))]
            run = jax.vmap(run, (axes, None), [int(isinstance(x, tuple)) for x in self.results])
        self._run_compiled = jax.jit(run)

    def fits(self, leaves: Leaves) -> bool:
        """Whether leaves are the same array again wherever a part was left out for it."""
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
                return jnp.stack(list(map(read, x)))
            column, i = self.rows[x]
            return jax.lax.index_in_dim(values[column], i, keepdims=False)

        for group in self.groups:
            fixed = [None if _varies(column) else read(column[0]) for column in group.outer]

            def run(rows: Leaves, part: Part = group.part, fixed: Leaves = fixed) -> Leaves:
                rest = iter(rows)
                outer = [next(rest) if x is None else x for x in fixed]
                return part.run(outer, self.graph.literals)

            if group.varying:
                found = _mapped(run, list(map(read, group.varying)))
                values.update(zip(group.results, found, strict=True))
            else:
                values.update(zip((x for (x,) in group.results), run([]), strict=True))
        return list(map(read, self.results))


def _mapped(function: Callable[[Leaves], Leaves], columns: Leaves) -> Leaves:
    try:
        return jax.vmap(function)(columns)  # compiles in half of the time of the loop below
    except Exception:  # some operations cannot be mapped, as some callbacks
        return jax.lax.map(function, columns)


def _on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)
