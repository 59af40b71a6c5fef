"""A function of trees that compiles once what it does to many leaves.

Parts with the same operations are compiled as one, mapped over their stacked arrays; parts with
the same arrays run once. Parts that compute each element alone may have arrays of any shapes:
those of similar sizes are stacked as vectors of one length, filled up with their last elements.
"""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled._common.graph import Graph, Part
from optax_decoupled._common.parts import equal_parts

Shape = tuple[int, ...]
# An array or a number for each leaf of a tree.
Leaves = list[Any]
# The numbers of one value in each part of a group.
Numbers = tuple[int, ...]


class Column(NamedTuple):
    """Values that are stacked as one array, as vectors of this length if it is not 0."""

    values: Numbers
    length: int = 0


class Program:
    """A function of trees of arrays, traced and compiled once for each structure.

    If `is_mapped`, it maps the function over the first axis of the first argument, an array
    of scalars. If `is_for_any_size` is set, calls with samples of arrays are not traced: they are
    computed by what `acts_on_elements` has traced.
    """

    def __init__(self, function: Callable[..., Any], is_mapped: bool = False):
        self.trace, self._is_mapped = jax.jit(function).trace, is_mapped
        self._compiled: dict[Any, list[_Compiled]] = {}
        self.is_for_any_size = False
        self._at_full_size: dict[Any, tuple[Graph, Any]] = {}

    def __call__(self, *trees: Any) -> Any:
        """The results of the function as NumPy arrays."""
        leaves, structure = jax.tree.flatten(trees)
        kinds = list(map(_kind, leaves))
        compiled = self._compiled.setdefault((structure, *kinds), [])
        for each in compiled:
            if each.fits(leaves):
                return each(leaves)
        if self.is_for_any_size:
            traced = self._at_full_size[_without_sizes(structure, kinds)]
        else:
            traced = self._traced(trees[0][0] if self._is_mapped else trees[0], *trees[1:])
        compiled.append(_Compiled(*traced, leaves, self._is_mapped))
        return compiled[-1](leaves)

    def _traced(self, *trees: Any) -> tuple[Graph, Any]:
        """The operations, and the structure of the results."""
        traced = self.trace(*trees)
        return Graph(traced.jaxpr), jax.tree.structure(traced.out_info)

    def acts_on_elements(self, *trees: Any) -> bool:
        """Whether the function does to some elements of these arrays what it does to all."""
        leaves, structure = jax.tree.flatten(trees)
        traced = self._traced(*trees)
        self._at_full_size[_without_sizes(structure, map(_kind, leaves))] = traced
        return traced[0].acts_on_elements()


def _kind(x: Any) -> Any:
    return np.shape(x), getattr(x, "dtype", type(x)), getattr(x, "weak_type", False)


def _without_sizes(structure: Any, kinds: Iterable[Any]) -> Any:
    return structure, *(tuple(others) for _, *others in kinds)


class _Group(NamedTuple):
    """Parts with the same operations: one of them, and the values of all."""

    part: Part
    outer: list[Numbers]
    results: list[Numbers]

    @property
    def varying(self) -> list[Numbers]:
        return list(filter(_varies, self.outer))


def _varies(numbers: Numbers) -> bool:
    return numbers.count(numbers[0]) < len(numbers)


class _Same:
    """By which equal value each value is replaced; chains of replacements are followed."""

    def __init__(self) -> None:
        self.replaced: dict[int, int] = {}

    def __call__(self, x: int) -> int:
        while x in self.replaced:
            x = self.replaced[x]
        return x

    def add(self, values: Numbers, others: Numbers) -> None:
        for x, y in zip(map(self, values), map(self, others), strict=True):
            if x != y:
                self.replaced[x] = y


def _groups(
    graph: Graph, equal: dict[int, int], size: Callable[[int], int]
) -> tuple[list[_Group], _Same]:
    """Groups of parts with the same operations, in an order in which they can run.

    Of parts with the same values only the first is kept, and the values of the others are
    replaced by its own. `equal` maps each argument to the first that is the same array.
    """
    groups: list[_Group] = []
    same = _Same()
    for parts in equal_parts(graph):
        alike: dict[int, dict[Numbers, Part]] = {}  # by the size to within a factor of four
        for part in parts:
            distinct = alike.setdefault(max(map(size, part.outer), default=0).bit_length() // 2, {})
            outer = map(same, part.outer)
            first = distinct.setdefault(tuple(equal.get(x, x) for x in outer), part)
            same.add(part.outer, first.outer)
            same.add(part.results, first.results)
        for distinct in map(list, map(dict.values, alike.values())):
            outer = [tuple(map(same, part.outer)) for part in distinct]
            results = [part.results for part in distinct]
            columns = (list(zip(*rows, strict=True)) for rows in (outer, results))
            groups.append(_Group(distinct[0], *columns))
    return groups, same


class _Compiled:
    """A graph as one compiled function, for leaves of which certain pairs are one array.

    The leaves may be samples of the arrays that the graph is for.
    """

    def __init__(self, graph: Graph, structure: Any, leaves: Leaves, is_mapped: bool):
        self.graph, self.structure, self._is_mapped = graph, structure, is_mapped
        given = list(zip(graph.arguments, leaves, strict=True))
        self._sampled: dict[Shape, Any] = {
            graph.avals[x].shape: np.shape(leaf) for x, leaf in given[is_mapped:]
        }
        firsts: dict[int, int] = {}
        equal = {x: firsts.setdefault(id(leaf), x) for x, leaf in given}
        self.groups, same = _groups(graph, equal, self._size)
        index = {x: i for i, x in enumerate(graph.arguments)}
        self._repeated = [(index[x], index[same(x)]) for x in same.replaced if x in index]
        self.arguments = [*graph.arguments, *graph.constants]
        loops = [group for group in self.groups if group.varying]
        varying = (column for group in loops for column in self._columns(group, group.varying))
        whole = set(filter(graph.is_plain, self.arguments[is_mapped:]))
        self.columns = list(dict.fromkeys(x for x in varying if whole.issuperset(x.values)))
        made = (column for group in loops for column in self._columns(group, group.results))
        # The column of a value, and where the value is in it.
        self.rows = {x: (c, i) for c in (*self.columns, *made) for i, x in enumerate(c.values)}
        self.single = [x for x in self.arguments if x not in self.rows]
        self.leaves = list(map(same, graph.results))
        self.fills = {x: same(scalar) for x, scalar in graph.fills.items()}
        taken = ((x, *self.rows[x]) for x in dict.fromkeys(self.leaves) if x in self.rows)
        self._taken = [(*found, self._size(found[0]), self.shape(found[0])) for found in taken]
        self.results = list(dict.fromkeys(self.rows.get(x, (x,))[0] for x in self.leaves))
        run = self._run
        if is_mapped:  # over the first argument, a scalar in the graph
            axes = [None if i else 0 for i in range(len(self.single))]
            run = jax.vmap(run, (axes, None), [int(isinstance(x, Column)) for x in self.results])
        self._run_compiled = jax.jit(run)

    def shape(self, x: int) -> Shape:
        shape = self.graph.avals[x].shape
        return self._sampled.get(shape, shape)

    def _size(self, x: int) -> int:
        return math.prod(self.shape(x))

    def _columns(self, group: _Group, rows: Iterable[Numbers]) -> list[Column]:
        length = self._length(group)
        return [Column(row, length if self.shape(row[0]) else 0) for row in rows]

    def _length(self, group: _Group) -> int:
        """That of the longest array of a group whose arrays are vectors, or 0."""
        if not group.varying or not group.part.is_elementwise(self.graph):
            return 0
        return max(self._size(x) for row in group.outer for x in row)

    def fits(self, leaves: Leaves) -> bool:
        """Whether the pairs of leaves that were one array, so that one part runs for both, are."""
        return all(leaves[i] is leaves[first] for i, first in self._repeated)

    def __call__(self, leaves: Leaves) -> Any:
        given = dict(zip(self.arguments, [*leaves, *self.graph.constants.values()], strict=True))
        if not self.groups and not self._is_mapped:
            known = given | self.graph.literals
            results = {x: self._without_operations(x, known) for x in set(self.leaves)}
            return self.structure.unflatten(results[x] for x in self.leaves)
        columns = [_as_rows([given[x] for x in values], length) for values, length in self.columns]
        found = self._run_compiled([given[x] for x in self.single], columns)
        values = dict(zip(self.results, map(_on_host, found), strict=True))
        for x, column, i, size, shape in self._taken:
            row = values[column][i]
            values[x] = row[..., :size].reshape(row.shape[:-1] + shape) if column.length else row
        return self.structure.unflatten(values[x] for x in self.leaves)

    def _without_operations(self, x: int, known: dict[int, Any]) -> Any:
        """A result that is an argument, a number or an array of one number: nothing to compile."""
        value, dtype = known[self.graph.scalar(x)], self.graph.avals[x].dtype
        if not self.graph.is_plain(x):
            return value
        filled = x in self.graph.fills
        return np.full(self.shape(x), value, dtype) if filled else np.asarray(value, dtype)

    def _run(self, single: Leaves, columns: Leaves) -> Leaves:
        values = _Values(self, dict(zip(self.columns, columns, strict=True)))
        values.known |= self.graph.literals | dict(zip(self.single, single, strict=True))
        for group in self.groups:
            outer, length = self._columns(group, group.outer), self._length(group)
            fixed = [None if _varies(column.values) else values.first(column) for column in outer]

            def run(
                rows: Leaves, part: Part = group.part, fixed: Leaves = fixed, length: int = length
            ) -> Leaves:
                rest = iter(rows)
                outer = [next(rest) if x is None else x for x in fixed]
                shape = lambda x: (length,) if length else self.shape(x)
                return part.run(outer, self.graph, shape)

            if group.varying:
                rows = [values.stacked(column) for column in outer if _varies(column.values)]
                found = _mapped(run, rows, group.part.is_simple)
                values.known.update(zip(self._columns(group, group.results), found, strict=True))
            else:
                values.known.update(zip((x for (x,) in group.results), run([]), strict=True))
        return [values.known[x] if isinstance(x, Column) else values.read(x) for x in self.results]


class _Values:
    """What a run has computed: values by number, and columns of values."""

    def __init__(self, compiled: _Compiled, known: dict[Any, Any]):
        self.known, self._compiled, self._rows = known, compiled, compiled.rows

    def read(self, x: int) -> Any:
        """One value in its own shape."""
        shape = self._compiled.shape(x)
        if x in self._compiled.fills:
            return jax.lax.broadcast(self.read(self._compiled.fills[x]), shape)
        if x in self.known:
            return self.known[x]
        column, i = self._rows[x]
        row = jax.lax.index_in_dim(self.known[column], i, keepdims=False)
        return row[: math.prod(shape)].reshape(shape) if column.length else row

    def first(self, column: Column) -> Any:
        """The first value of a column, as a vector if the column has vectors."""
        x, length = column.values[0], column.length
        return self.stacked(Column((x,), length))[0] if length else self.read(x)

    def stacked(self, column: Column) -> Any:
        """All values of a column as rows of one array."""
        if column in self.known:
            return self.known[column]
        places: dict[Column | None, list[int]] = {}  # by the column that the values are in
        for i, x in enumerate(column.values):
            places.setdefault(self._rows.get(x, (None, 0))[0], []).append(i)
        blocks = [
            self._block(column, source, [column.values[i] for i in at])
            for source, at in places.items()
        ]
        order = np.argsort(np.concatenate(list(places.values())))
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks)[order]

    def _block(self, column: Column, source: Column | None, numbers: list[int]) -> Any:
        """Some values of a column, which are all in one other column or in none."""
        if source is None:
            rows = list(map(self.read, numbers))
            if column.length:
                rows = [_to_length(x[None], column.length)[0] for x in rows]
            return jnp.stack(rows)
        rows = self.known[source][np.array([self._rows[x][1] for x in numbers])]
        if column.length == source.length:
            return rows
        shape = (column.length,) if column.length else self._compiled.shape(numbers[0])
        return _to_length(rows, math.prod(shape)).reshape(len(rows), *shape)


def _as_rows(arrays: Leaves, length: int) -> np.ndarray:
    """Arrays as rows, as vectors of this length if it is not 0."""
    if not length:
        return np.stack(arrays)
    vectors = [np.asarray(x).reshape(-1) for x in arrays]
    if all(vector.size == length for vector in vectors):
        return np.concatenate(vectors).reshape(-1, length)
    rows = np.empty((len(vectors), length), vectors[0].dtype)
    for row, vector in zip(rows, vectors, strict=True):
        row[: vector.size], row[vector.size :] = vector, vector[-1]
    return rows


def _to_length(rows: jax.Array, length: int) -> jax.Array:
    """Rows as vectors of this length, cut or filled up."""
    vectors = rows.reshape(len(rows), -1)
    missing = max(length - vectors.shape[1], 0)
    return jnp.pad(vectors, ((0, 0), (0, missing)), mode="edge")[:, :length]


def _mapped(function: Callable[[Leaves], Leaves], columns: Leaves, is_simple: bool) -> Leaves:
    if is_simple:
        with contextlib.suppress(NotImplementedError):  # an operation that JAX cannot map
            return jax.vmap(function)(columns)  # compiles in half of the time of the loop below
    return jax.lax.map(function, columns)


def _on_host(x: Any) -> Any:
    return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.asarray(x)
