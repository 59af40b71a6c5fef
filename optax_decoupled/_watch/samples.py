"""A few elements of each weight, all of a tree in one array, for statistics over a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_decoupled._common.dtypes import is_decayable, widen
from optax_decoupled._common.types import Leaf
from optax_decoupled._select.names import named_leaves
from optax_decoupled._select.stacked import Stacked, leading_axes

Shape = tuple[int, ...]


class Weight(NamedTuple):
    """A leaf that is recorded: one weight, or one of each slice over its leading axes."""

    leaf: int  # its number in the flattened tree
    path: str
    shape: Shape
    dtype: Any  # at least float32: the one in which it is compared
    name: str  # of its own dtype
    axes: int  # how many leading axes number its slices
    steps: Shape  # the distance of sampled elements along each of the other axes

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: self.axes])

    @property
    def counts(self) -> Shape:
        """Sampled elements along each axis of a slice."""
        lengths = self.shape[self.axes :]
        return tuple(n // step for n, step in zip(lengths, self.steps, strict=True))

    @property
    def is_narrow(self) -> bool:
        return self.name != np.dtype(self.dtype).name

    @property
    def words(self) -> int:
        """Numbers of 32 bits that hold the sample of a slice."""
        return math.prod(self.counts) * self.dtype.itemsize // 4

    @property
    def key(self) -> tuple[int, str]:
        """The length and dtype of a sample: those that are alike are one array."""
        return math.prod(self.counts), np.dtype(self.dtype).name


class Layout(NamedTuple):
    """The recorded weights of a tree, and where their samples are."""

    weights: list[Weight]

    @property
    def rows(self) -> int:
        return sum(weight.rows for weight in self.weights)

    @property
    def words(self) -> int:
        """Numbers of 32 bits that hold all samples."""
        return sum(w.rows * w.words for w in self.weights)

    @property
    def is_narrow(self) -> np.ndarray:
        """Whether each row's weight has fewer than 32 bits, bool[rows]."""
        return np.repeat([w.is_narrow for w in self.weights], [w.rows for w in self.weights])

    def narrow(self) -> Layout:
        return Layout([weight for weight in self.weights if weight.is_narrow])

    @property
    def groups(self) -> list[list[Weight]]:
        """Weights whose samples are alike; samples are stored group by group."""
        found: dict[tuple[int, str], list[Weight]] = {}
        for weight in self.weights:
            found.setdefault(weight.key, []).append(weight)
        return list(found.values())

    @property
    def order(self) -> np.ndarray:
        """For each row in the tree's order, its number among the stored ones: int[rows]."""
        firsts, first = {}, 0
        for weight in (weight for group in self.groups for weight in group):
            firsts[weight.leaf], first = first, first + weight.rows
        order = [np.arange(w.rows) + firsts[w.leaf] for w in self.weights]
        return np.concatenate([np.zeros(0, int), *order])


def layout(params: optax.Params, stacked: Stacked, elements: int) -> Layout:
    """How the floating leaves of a tree are sampled; empty ones are left out."""
    rows = zip(named_leaves(params)[0], leading_axes(stacked, params), strict=True)
    return Layout(
        [
            _weight(i, "/".join(path), leaf, axes, elements)
            for i, ((path, leaf), axes) in enumerate(rows)
            if is_decayable(leaf) and math.prod(jnp.shape(leaf))
        ]
    )


def _weight(index: int, path: str, leaf: Leaf, axes: int, elements: int) -> Weight:
    dtype = jnp.result_type(leaf)
    wide = widen(np.zeros((), dtype)).dtype
    shape = jnp.shape(leaf)
    steps = _steps(shape[axes:], max(elements * 4 // wide.itemsize, 1))
    return Weight(index, path, shape, wide, np.dtype(dtype).name, axes, steps)


def _steps(shape: Shape, most: int) -> Shape:
    """The distances of at most so many elements, about as many along each axis as the others."""
    steps = [1] * len(shape)
    order = sorted(range(len(shape)), key=shape.__getitem__)
    for place, axis in enumerate(order):  # the shortest first: others use what it leaves
        share = max(math.floor(most ** (1 / (len(order) - place)) + 1e-9), 1)
        steps[axis] = min(_step(-(-shape[axis] // share)), shape[axis])
        most //= shape[axis] // steps[axis]
    return tuple(steps)


def _step(at_least: int) -> int:
    """A distance without the factors 2 and 3 of the usual sizes of heads and channels.

    With 128 the sample of 128 x heads would see one dimension of each head only.
    """
    step = at_least
    while step > 1 and (step % 2 == 0 or step % 3 == 0):
        step += 1
    return step


def sampled(weight: Weight, x: Leaf) -> jax.Array:
    """[rows, elements] of an array, at even distances, in the dtype in which it is compared."""
    x, ones = jnp.asarray(x), (1,) * weight.axes
    spans = [
        range((step - 1) // 2, n - n % step, step)
        for n, step in zip(weight.shape, ones + weight.steps, strict=True)
    ]
    return _elements(x, spans).reshape(weight.rows, -1).astype(weight.dtype)


def _elements(x: jax.Array, spans: Sequence[range]) -> jax.Array:
    sharding = jax.typeof(x).sharding
    if any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types):
        # A slice of explicitly sharded axes must be divisible by the mesh; JAX itself gathers
        # the elements of arrays on other meshes on every device.
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        return x.at[np.ix_(*spans)].get(out_sharding=everywhere)
    starts, ends = [span[0] for span in spans], [span[-1] + 1 for span in spans]
    return jax.lax.slice(x, starts, ends, [span.step for span in spans])


def gathered(at: Layout, leaves: Sequence[Leaf]) -> list[jax.Array]:
    """The samples of all leaves: one array [rows, elements] for each length and dtype."""
    return [jnp.concatenate([sampled(w, leaves[w.leaf]) for w in group]) for group in at.groups]


def reduced(
    at: Layout,
    function: Callable[..., jax.Array],
    shape: Shape,
    *columns: Sequence[jax.Array],
) -> jax.Array:
    """float32[rows, *shape]: a function of the groups' arrays, its rows in the tree's order."""
    parts = [function(*arrays).astype(jnp.float32) for arrays in zip(*columns, strict=True)]
    return jnp.concatenate([jnp.zeros((0, *shape), jnp.float32), *parts])[at.order]


def to_words(groups: Sequence[jax.Array]) -> jax.Array:
    """The bits of all samples: uint32[words]."""
    words = [_parts(x) for x in groups]
    return jnp.concatenate([jnp.zeros(0, jnp.uint32), *words])


def _parts(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], -1)
    return jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)


def from_words(at: Layout, words: jax.Array) -> list[jax.Array]:
    """The samples as they were."""
    groups, first = [], 0
    for group in at.groups:
        weight, rows = group[0], sum(w.rows for w in group)
        size = rows * weight.words
        groups.append(_whole(words[first : first + size], weight.dtype, (rows, -1)))
        first += size
    return groups


def _whole(words: jax.Array, dtype: Any, shape: Shape) -> jax.Array:
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    real = np.finfo(dtype).dtype
    pieces = words.reshape(-1, real.itemsize // 4)
    pieces = pieces[:, 0] if real.itemsize == 4 else pieces
    x = jax.lax.bitcast_convert_type(pieces, real)
    if is_complex:
        x = jax.lax.complex(x.reshape(-1, 2)[:, 0], x.reshape(-1, 2)[:, 1])
    return x.reshape(shape)


def labels(at: Layout) -> np.ndarray:
    """uint8[bytes]: JSON with each weight's path, shape, dtype and stacked axes."""
    entries = [[w.path, list(w.shape), w.name, w.axes] for w in at.weights]
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    return np.frombuffer(text.encode(), np.uint8)
