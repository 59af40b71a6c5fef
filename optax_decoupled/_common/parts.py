"""A traced function in parts, so that equal parts are compiled once.

An optimizer does most operations to one parameter alone. These operations are found in the
traced function: two belong together if an array goes from one to the other. Scalars (a count,
a rate, a global norm) connect nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

from optax_decoupled._common.graph import Graph, Operation, Part, Values

# The owner of scalars that are computed from several owners, and from none. They run before all
# other operations of their level, so these numbers are smaller than those of the other owners.
_JOINT, _FREE = -2, -1


def equal_parts(graph: Graph) -> Iterable[list[Part]]:
    """Lists of parts with the same operations, in an order in which they can run."""
    stages = _stages(graph)
    outer = {key: _outer(operations, graph) for key, operations in stages.items()}
    needed = {x for column in outer.values() for x in column}
    needed.update(map(graph.scalar, graph.results))
    alike: dict[Any, list[Part]] = {}
    for (level, owner), operations in sorted(stages.items(), key=lambda item: item[0]):
        made = (x for operation in operations for x in operation.outputs)
        part = Part(operations, outer[level, owner], tuple(x for x in made if x in needed))
        key = graph.key(part, has_shapes=not part.is_elementwise(graph))
        alike.setdefault((level, owner < 0, key), []).append(part)
    return alike.values()


def _outer(operations: list[Operation], graph: Graph) -> Values:
    made = {x for operation in operations for x in operation.outputs}
    inputs = (x for operation in operations for x in operation.inputs)
    needed = dict.fromkeys(map(graph.scalar, inputs))
    return tuple(x for x in needed if x not in made and x not in graph.literals)


def _stages(graph: Graph) -> dict[tuple[int, int], list[Operation]]:
    """The operations by level and owner.

    Operations that arrays connect have one owner. So have scalars that are computed from one
    owner's values, as the norm of a parameter; scalars of several owners are joint. What an
    operation needs of another owner has a lower level, or is a joint scalar of its own level.
    """
    if graph.has_effects:
        return {(0, _FREE): graph.operations}
    root, shared = _connected(graph), (_JOINT, _FREE)
    given = (*graph.arguments, *graph.constants, *graph.literals)
    owner, level, stages = dict.fromkeys(given, _FREE), dict.fromkeys(given, 0), {}
    for operation in graph.operations:
        arrays = filter(graph.connects, (*operation.inputs, *operation.outputs))
        inputs = list(map(graph.scalar, operation.inputs))
        owners = {owner[x] for x in inputs} - {_FREE}
        of_scalar = _JOINT if len(owners) > 1 else min(owners, default=_FREE)
        own = next(map(root, arrays), of_scalar)
        levels = (level[x] + (owner[x] not in (own, *shared)) for x in inputs)
        at = max(levels, default=0)
        owner.update(dict.fromkeys(operation.outputs, own))
        level.update(dict.fromkeys(operation.outputs, at))
        stages.setdefault((at, own), []).append(operation)
    return stages


def _connected(graph: Graph) -> Callable[[int], int]:
    """A function that returns the same number for all arrays that operations connect."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while x in parent:
            parent[x] = x = parent.get(parent[x], parent[x])
        return x

    for operation in graph.operations:
        first, *others = [*filter(graph.connects, (*operation.inputs, *operation.outputs)), -1]
        for x in others[:-1]:
            a, b = root(first), root(x)
            if a != b:
                parent[b] = a
    return root
