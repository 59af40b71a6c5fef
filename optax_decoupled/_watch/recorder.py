r"""A chain member that records how each weight moves, so that a checkpoint holds its history.

Each call compares samples of the weights with those of the call before. With :math:`θ` the
sample of one weight at that call and :math:`Δ` its change since, five averages over its
elements are summed and stored for each interval of calls:

.. math::

    \overline{θ^2}, \quad \overline{θ Δ}, \quad \overline{Δ^2}, \quad \overline{(Δ - κθ)^2}
    \text{ with } κ = ⟨θ, Δ⟩ / ⟨θ, θ⟩, \quad \text{the share with } Δ = 0 \ne u
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.probing import is_probing
from optax_decoupled._common.types import Leaf
from optax_decoupled._select.names import entries_like
from optax_decoupled._select.stacked import Stacked
from optax_decoupled._transforms.decay import required
from optax_decoupled._watch import samples

COLUMNS = 5
# Rows of a weight's memory that the sums of the interval under way take.
_RESERVED = 4
# Calls that are summed before their sum is added to that of the interval: so no sum of float32
# numbers has more than some thousand terms, however long the interval.
_CHUNK = 512


class WeightHistoryState(NamedTuple):
    """State of :func:`~optax_decoupled.record_weight_dynamics`; its shapes never change.

    Attributes:
      count: number of calls so far, int32[].
      stride: calls in an interval, int32[], a power of two.
      size: intervals in ``table``, int32[].
      pending: calls compared since the last interval, int32[]; -1 before the first call.
      table: the averages of each interval, float32[intervals, weights, 5].
      total: their sum since the last interval but for ``recent``, float32[weights, 5].
      recent: their sum over the last calls, float32[weights, 5].
      idle: the share of sampled elements whose last update was 0, float32[weights].
      words: the bits of the samples at the last call, uint32[words].
      labels: JSON with the path, shape and dtype of each weight, uint8[bytes].
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  Optax's name
    stride: jax.Array
    size: jax.Array
    pending: jax.Array
    table: jax.Array
    total: jax.Array
    recent: jax.Array
    idle: jax.Array
    words: jax.Array
    labels: jax.Array


def record_weight_dynamics(
    *, capacity: int = 256, elements: int = 1024, stacked: Stacked = None
) -> optax.GradientTransformationExtraArgs:
    r"""Records size, rotation and growth of every weight over a run, in the optimizer's state.

    Put it at the end of a chain, ``optax.chain(od.adamw(...), od.record_weight_dynamics())``,
    and read the history of any state or checkpoint with
    :func:`~optax_decoupled.recorded_weight_dynamics`. Updates pass unchanged, bit for bit.

    Put ``optax.MultiSteps`` around the chain, not into it, so that a call is an update.

    At each call it compares at most ``elements`` elements of each weight with the same ones at
    the call before. It so sees what really happened to the weights: rounding, projections and
    changes by other code included. The averages of a call go into a table in the state. When
    the table is full, neighbouring intervals are merged and their length doubles, so a table
    of any capacity covers a run of any length.

    Args:
      capacity: memory for the history of each weight, in intervals of 20 bytes, >= 8. The
        table has 4 intervals fewer; that room is for sums.
      elements: the greatest number of sampled elements of a weight, of 4 bytes each (float64
        and complex64 elements take 8), >= 1. The statistical error of the averages falls like
        the square root of the number of elements and calls.
      stacked: the number of leading axes over which each slice is a weight of its own, as in
        :func:`~optax_decoupled.weight_dynamics`.

    Returns:
      An Optax transformation with a :class:`types.WeightHistoryState` of at most ``4·elements +
      20·capacity`` bytes for each weight, apart from the names in ``labels``. Its ``update``
      needs ``params``. Leaves of integers are not recorded.

    Raises:
      TypeError, ValueError: for a ``capacity`` or ``elements`` out of range; at ``init`` for a
        ``stacked`` that does not fit; at ``update`` without ``params``.

    Examples:
      Pure decay shrinks a weight and does not turn it:

      >>> import jax, jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = optax.chain(od.adamw(1e-3, 1e-3), od.record_weight_dynamics())
      >>> params = {"w": jnp.ones((8, 8))}
      >>> state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
      >>> step = jax.jit(tx.update)
      >>> for _ in range(10):
      ...     updates, state = step(zeros, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> (row,) = od.recorded_weight_dynamics(state).rows
      >>> assert jnp.allclose(row.growth, (1 - 1e-3) ** 2 - 1, rtol=1e-3)
      >>> assert row.path == "w" and row.rotation.max() < 1e-5
    """
    checks.check_whole("capacity", capacity, "256 intervals are enough for any run.")
    checks.check_whole("elements", elements, "1024 sampled elements of each weight are usual.")
    if capacity < 8:
        raise ValueError(f"capacity={capacity} must be 8 or more. 256 is enough for any run.")
    intervals = (capacity - _RESERVED) // 2 * 2

    def init_fn(params: optax.Params) -> WeightHistoryState:
        if is_probing():
            return empty_history()
        return _begun(samples.layout(params, stacked, elements), params, intervals)

    def update_fn(
        updates: optax.Updates,
        state: Any,  # Optax's protocol has the union of all states
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, WeightHistoryState]:
        params = required(params, "record_weight_dynamics")
        if not state.labels.size:  # of `explain_weight_decay`, which measures the others
            return updates, state
        at = samples.layout(params, stacked, elements)
        _check_fits(state, at)
        before = samples.from_words(at, state.words)
        now = _read_first(at, jax.tree.leaves(params), before, state.count)
        row = samples.reduced(at, _averages, (COLUMNS,), before, now)
        same = jnp.where(at.is_narrow, jnp.maximum(row[:, -1] - state.idle, 0), 0)
        idle = _idle(at, updates, params)
        row = row.at[:, -1].set(same)
        after = _advanced(state, row)
        after = after._replace(idle=idle, words=samples.to_words(now))
        return _after(updates, row), after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def empty_history() -> WeightHistoryState:
    """A state that records nothing."""
    fields = dict.fromkeys(WeightHistoryState._fields, jnp.zeros(0, jnp.uint8))
    return WeightHistoryState(**fields)


def _begun(at: samples.Layout, params: optax.Params, intervals: int) -> WeightHistoryState:
    """The state before the first call; no two fields are one buffer, so all can be donated."""
    number = lambda x: jnp.full([], x, jnp.int32)
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
    return WeightHistoryState(
        count=number(0),
        stride=number(1),
        size=number(0),
        pending=number(-1),
        table=zeros(intervals, at.rows, COLUMNS),
        total=zeros(at.rows, COLUMNS),
        recent=zeros(at.rows, COLUMNS),
        idle=zeros(at.rows),
        words=samples.to_words(samples.gathered(at, jax.tree.leaves(params))),
        labels=jnp.asarray(samples.labels(at)),
    )


def _check_fits(state: WeightHistoryState, at: samples.Layout) -> None:
    sizes = state.words.size, state.idle.size, state.labels.size
    if sizes != (at.words, at.rows, samples.labels(at).size):
        raise ValueError(
            "params are not those of this weight history: record_weight_dynamics was initialized "
            "with other parameters, elements or stacked. Begin a new history with "
            "tx.init(params), or carry the moments over with migrate_opt_state."
        )


def _read_first(
    at: samples.Layout, leaves: list[Leaf], before: list[jax.Array], count: jax.Array
) -> list[jax.Array]:
    """The samples of the weights, as arrays of their own.

    XLA changes donated weights in place. If it fused the slices into the operations on the
    samples, which come later, it would first copy the weights. It fuses nothing into a `cond`,
    whose condition is always true here.
    """
    read = lambda: samples.gathered(at, leaves)
    return jax.lax.cond(count >= 0, read, lambda: [jnp.zeros_like(x) for x in before])


def _after(updates: optax.Updates, row: jax.Array) -> optax.Updates:
    """The updates, computed after the samples were read (see `_read_first`)."""
    is_read = jnp.sum(row[:, -1]) >= 0  # shares: always true, but XLA cannot know
    return jax.tree.map(lambda u: jnp.where(is_read, u, jnp.zeros_like(u)), updates)


def _averages(before: jax.Array, now: jax.Array) -> jax.Array:
    """float32[rows, 5] for samples of [rows, elements]."""
    change = now - before
    square, along = _mean(before, before), _mean(before, change)
    share = (along / jnp.where(square > 0, square, 1)).astype(before.dtype)
    across = change - share[:, None] * before
    same = jnp.mean(change == 0, axis=1, dtype=square.dtype)
    columns = square, along, _mean(change, change), _mean(across, across), same
    return jnp.stack(columns, axis=-1)


def _mean(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.real(jnp.conj(x) * y), axis=1)


def _idle(at: samples.Layout, updates: optax.Updates, params: optax.Params) -> jax.Array:
    """The share of elements whose update is 0: float32[rows], 0 for weights of 32 bits and more.

    Updates of those are not read, because XLA would have to write them to memory first.
    """
    narrow = at.narrow()
    if not narrow.weights:
        return jnp.zeros(at.rows, jnp.float32)
    way_out = "Put the recorder at the end of the chain of these params."
    moves = entries_like("updates", updates, params, way_out)
    leaves = jax.tree.leaves(params)
    given = [jnp.zeros_like(p) if u is None else u for u, p in zip(moves, leaves, strict=True)]
    share = lambda u: jnp.mean(u == 0, axis=1, dtype=jnp.float32)
    shares = samples.reduced(narrow, share, (), samples.gathered(narrow, given))
    return jnp.zeros(at.rows, jnp.float32).at[np.flatnonzero(at.is_narrow)].set(shares)


def _advanced(state: WeightHistoryState, row: jax.Array) -> WeightHistoryState:
    """The state after one more call; at the first there is nothing to compare with."""
    pending = state.pending + 1
    recent = state.recent + jnp.where(pending > 0, row, 0)
    is_chunk = pending % _CHUNK == 0
    total = state.total + jnp.where(is_chunk, recent, 0)
    recent = jnp.where(is_chunk, 0, recent)
    is_interval = pending == state.stride
    mean = (total + recent) / state.stride.astype(jnp.float32)
    table = state.table.at[state.size].set(jnp.where(is_interval, mean, state.table[state.size]))
    size = state.size + is_interval.astype(jnp.int32)
    is_full = size == table.shape[0]
    return state._replace(
        count=jnp.asarray(optax.safe_increment(state.count)),
        stride=jnp.where(is_full, 2 * state.stride, state.stride),
        size=jnp.where(is_full, size // 2, size),
        pending=jnp.where(is_interval, 0, pending),
        table=jax.lax.cond(is_full, _merged, lambda x: x, table),
        total=jnp.where(is_interval, 0, total),
        recent=jnp.where(is_interval, 0, recent),
    )


def _merged(table: jax.Array) -> jax.Array:
    """Each two neighbouring intervals as one; the second half is free again."""
    means = (table[0::2] + table[1::2]) / 2
    return jnp.concatenate([means, jnp.zeros_like(means)])
