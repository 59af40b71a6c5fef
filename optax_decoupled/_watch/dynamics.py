"""The motion of weights in training: how far a step turns and stretches each of them.

Where a layer is normalized its function feels only the angle. `_equilibrium` says where angle and
length settle.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common.dtypes import is_decayable, widen
from optax_decoupled._common.types import Leaf, PyTree, Scalar
from optax_decoupled._select.masks import scalar_multipliers
from optax_decoupled._select.names import entries_like
from optax_decoupled._select.stacked import Stacked, leading_axes


class WeightDynamics(NamedTuple):
    r"""The effect of one update on each weight; every field is a tree like the parameters.

    Attributes:
      rms: root mean square of the weight before the update, float32[] (or with the leading
        axes that ``stacked`` names).
      rotation: the angle between the weight before and after it, in radians.
      growth: the relative change of the squared length, :math:`\|θ + u\|^2 / \|θ\|^2 - 1`.
        Above 0 the weight grows; in equilibrium it is 0 on average.
    """

    rms: Any
    rotation: Any
    growth: Any


class WeightForces(NamedTuple):
    r"""The effect of one update on each weight, and the three parts of its growth.

    Attributes:
      rms: see :class:`WeightDynamics`.
      rotation: see there.
      growth: see there.
      alignment: :math:`2⟨θ, v⟩ / \|θ\|^2`, where :math:`v = u + cθ` is the update without decay.
      injection: :math:`\|v\|^2 / \|θ\|^2`.
      removal: :math:`2c`.
    """

    rms: Any
    rotation: Any
    growth: Any
    alignment: Any
    injection: Any
    removal: Any


def weight_dynamics(
    params: optax.Params,
    updates: optax.Updates,
    *,
    decay: Scalar | PyTree | None = None,
    stacked: Stacked = None,
) -> WeightDynamics | WeightForces:
    r"""How far an update turns and stretches each weight.

    .. math::

        κ = \frac{⟨θ, u⟩}{\|θ\|^2}, \qquad q = \frac{\|u - κθ\|^2}{\|θ\|^2}, \qquad
        \text{rotation} = \operatorname{atan2}(\sqrt q, 1 + κ), \qquad
        \text{growth} = κ (2 + κ) + q

    With ``decay`` also the three forces that balance in equilibrium,

    .. math::

        \text{growth} = \text{alignment} + \text{injection} - \text{removal} + O(c^2, cκ)

    A pure function for use inside a jitted step, on sharded arrays too. Sums have at least
    float32, and no two nearly equal numbers are subtracted: an update that only shrinks the
    weight turns it by 0. Each array is read twice, no other array is kept. It makes a bare
    optimizer step several times as long on a CPU: call it every so many steps, from a step of
    its own, or under ``jax.lax.cond`` inside a scan.

    Args:
      params: the weights before the update; leaves of any shape and dtype. Integer leaves do
        not train: all their results are 0.
      updates: the result of ``tx.update``, a tree like ``params``. None or
        ``optax.MaskedNode`` in the place of a leaf means no update.
      decay: :math:`c`, the fraction that decay removed of each weight in this update, so
        :math:`λ_t η_t`: a scalar, or a tree, prefix or function of scalars as for a mask.
        None: unknown.
      stacked: the number of leading axes over which each slice is a weight of its own, as in
        scanned or vmapped layers: one whole number for all, or a tree, prefix or function of
        such numbers as for a mask. None is 0.

    Returns:
      A :class:`types.WeightDynamics`, with ``decay`` a :class:`types.WeightForces`, of float32
      arrays of the stacked axes' shape, () for 0. None and ``optax.MaskedNode`` in ``params``
      stay what they are. A weight that is 0 has no direction: its rotation is 0, and its growth
      infinite if it moves at all.

    Raises:
      TypeError, ValueError: if the trees or their shapes do not match, or ``stacked`` is not
        a whole number of axes that the leaf has.

    Examples:
      A quarter turn that doubles the squared length, and pure decay:

      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> theta = jnp.array([3.0, 4.0])
      >>> turned = od.weight_dynamics(theta, jnp.array([-4.0, 3.0]))
      >>> assert jnp.isclose(turned.rotation, jnp.pi / 4) and jnp.isclose(turned.growth, 1.0)
      >>> shrunk = od.weight_dynamics(theta, -0.1 * theta)
      >>> assert shrunk.rotation < 1e-6 and jnp.isclose(shrunk.growth, 0.9**2 - 1)
    """
    leaves, treedef = jax.tree.flatten(params)
    way_out = "Pass what tx.update returned for these params, before it is applied."
    moves = entries_like("updates", updates, params, way_out)
    axes = leading_axes(stacked, params)
    rows = zip(leaves, moves, axes, strict=True)
    motions = _columns([_motion(*row) for row in rows], 5)
    trees = [treedef.unflatten(column) for column in motions[:3]]
    if decay is None:
        return WeightDynamics(*trees)
    is_one = isinstance(decay, int | float | np.generic | np.ndarray | jax.Array)
    rates = [decay] * len(leaves) if is_one else scalar_multipliers("decay", decay, params)
    rows = zip(leaves, rates, *motions[3:], strict=True)
    forces = _columns([_forces(*row) for row in rows], 3)
    return WeightForces(*trees, *map(treedef.unflatten, forces))


def _columns(rows: list[tuple[jax.Array, ...]], n: int) -> list[list[jax.Array]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[]] * n


def _forces(param: Leaf, c: Any, along: jax.Array, turned: jax.Array) -> tuple[jax.Array, ...]:
    """Alignment, injection and removal of one leaf, from its κ and q."""
    if not is_decayable(param):
        return (jnp.zeros_like(along),) * 3
    c = jnp.asarray(c, jnp.float32)
    return 2 * (along + c), turned + (along + c) ** 2, jnp.broadcast_to(2 * c, along.shape)


def _motion(param: Leaf, update: Leaf, axes: int) -> tuple[jax.Array, ...]:
    """rms, rotation, growth, κ and q of one leaf, by slices over its first axes."""
    if not is_decayable(param):
        return (jnp.zeros(jnp.shape(param)[:axes], jnp.float32),) * 5
    theta, u = _widened(param, update)
    inner = tuple(range(axes, theta.ndim))

    def inner_product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.real(jnp.conj(x) * y), axis=inner, keepdims=True)

    square = inner_product(theta, theta)
    nonzero = jnp.where(square > 0, square, 1)
    along = inner_product(theta, u) / nonzero
    across = u - along.astype(theta.dtype) * theta
    turned = inner_product(across, across) / nonzero
    rms = jnp.sqrt(square / float(max(1, math.prod(theta.shape[axes:]))))  # may not fit an int32
    rotation = jnp.arctan2(jnp.sqrt(turned), 1 + along)
    growth = along * (2 + along) + turned
    from_zero = jnp.where(turned > 0, jnp.inf, 0)
    rotation = jnp.where(square > 0, rotation, 0)
    growth, turned = (jnp.where(square > 0, x, from_zero) for x in (growth, turned))
    results = rms, rotation, growth, along, turned
    return tuple(x.squeeze(inner).astype(jnp.float32) for x in results)


def _widened(param: Leaf, update: Leaf) -> tuple[jax.Array, jax.Array]:
    """Both in one dtype of at least 32 bits; no update is an update of 0."""
    update = jnp.zeros_like(param) if update is None else update
    with jax.numpy_dtype_promotion("standard"):
        wide = (jnp.result_type(widen(jnp.asarray(x))) for x in (param, update))
        dtype = jnp.result_type(*wide, jnp.float32)
    return jnp.asarray(param, dtype), jnp.asarray(update, dtype)
