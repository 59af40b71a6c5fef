"""Control of the norm: steps on a sphere, and a factor for what an update changes of the norm."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.dtypes import is_decayable, widen
from optax_decoupled._common.products import product_schedule
from optax_decoupled._common.types import Leaf, PyTree, Scalar, ScalarOrSchedule
from optax_decoupled._select.names import entries_of, listing, named_leaves
from optax_decoupled._select.stacked import (
    FACTORS,
    LIMIT,
    Stacked,
    divided,
    inner_product,
    leading_axes,
    root,
    safe_norm,
    squared,
    totals,
)
from optax_decoupled._transforms.decay import required
from optax_decoupled._transforms.first_update import Rows, probe_once

# If step and weight cancel to less than 1 % of either, rounding would decide about the direction.
_CENTER = 1e-4


class HyperballState(NamedTuple):
    """State of :func:`~optax_decoupled.hyperball`.

    Attributes:
      count: number of updates so far, int32[].
      radius: of each weight its norm at ``init``, float32[] or of its stacked axes' shape.
      direction: the state of the direction.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  Optax's name
    radius: PyTree
    direction: optax.OptState


def hyperball(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    stacked: Stacked = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Moves each weight on the sphere of its initial norm, by a fixed angle a step.

    .. math::

        θ_{t+1} = R \frac{θ_t - α_t R\, u_t / \|u_t\|}{\|θ_t - α_t R\, u_t / \|u_t\|\|},
        \qquad R = \|θ_0\|

    Weight decay in a normalized layer only sets how far each step turns the weights. Here
    the learning rate sets that angle directly: the step before the projection is :math:`α`
    times the weight's norm, whatever the size of the gradient. Made for the matrices of normalized
    networks; give embeddings, biases and scales to another optimizer with
    :func:`optax.partition`.

    Args:
      direction: the transformation that produces :math:`u`, such as
        :func:`optax.scale_by_adam` or ``optax.contrib.scale_by_muon()``. Its size does not
        matter, from about 1e-31 to 1e31 in float32. It must not be scaled by a learning rate,
        which would reverse its sign.
      learning_rate: :math:`α \ge 0`, dimensionless: the length of a step relative to the
        weight; or a schedule (step → α).
      stacked: the number of leading axes over which each slice is a weight of its own, as in
        :func:`toward_rms`.

    Returns:
      An Optax optimizer with a :class:`types.HyperballState`; its ``update`` needs ``params``.
      Weights that are 0 stay 0, a direction of 0 moves nothing, integer leaves are left alone. A
      step that cancels the weight to less than 1 % of it is left out.

    Raises:
      TypeError, ValueError: for a ``direction`` that is no Optax transformation, a negative
        ``learning_rate``, or an ``update`` without ``params``.

    Warns:
      UserWarning: at ``init``, if the direction is a finished optimizer, which has the sign of
        a step, and for weights that are 0.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = od.hyperball(optax.scale_by_adam(), 0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, -2.0]), tx.init(params), params)
      >>> assert jnp.isclose(jnp.linalg.norm(params + updates), 5.0)

    References:
      arXiv:2606.16899.
    """
    checks.check_transformation("direction", direction, "Pass e.g. optax.scale_by_adam().")
    checks.check_learning_rate(learning_rate)
    inner, rate_at = optax.with_extra_args_support(direction), product_schedule(learning_rate)
    probe = probe_once(inner, _climbing)

    def init_fn(params: optax.Params) -> HyperballState:
        probe(params)
        _warn_of_zeros(params)
        leaves, treedef = jax.tree.flatten(params)
        rows = zip(leaves, leading_axes(stacked, params), strict=True)
        radius = treedef.unflatten([_radius(*row) for row in rows])
        return HyperballState(jnp.zeros([], jnp.int32), radius, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: Any,  # Optax's protocol has the union of all states
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, HyperballState]:
        params = required(params, "hyperball")
        directions, after = inner.update(updates, state.direction, params, **extra)
        radius = jax.tree.structure(params).flatten_up_to(state.radius)
        way_out = "The direction must return updates like the gradients it gets."
        step = functools.partial(_step, rate_at(state.count))
        moved = _map_weights(step, directions, params, way_out, radius)
        count = jnp.asarray(optax.safe_increment(state.count))
        return moved, HyperballState(count, state.radius, after)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _climbing(rows: Rows) -> str:
    """A warning if all updates point against the gradient, as a finished optimizer's do."""
    both = [(np.asarray(up), np.asarray(down)) for _, _, up, down in rows]
    # A decay cancels in the sum, because it turns with the parameters; noise has both signs.
    if not (both and all(np.all(x + y < -1e-3 * np.abs(x - y)) for x, y in both)):
        return ""
    return (
        "direction points down the gradient, as a finished optimizer does, so hyperball, which "
        "subtracts it, climbs. Pass the direction alone, e.g. optax.scale_by_adam()."
    )


def _warn_of_zeros(params: optax.Params) -> None:
    leaves = [row for row in named_leaves(params)[0] if is_decayable(row[1])]
    zero = ["/".join(path) for path, x in leaves if _is_zero(x)]
    if 0 < len(zero) < len(leaves):  # all of them: a template for a checkpoint
        checks.warn(
            f"hyperball keeps the norm, so weights of 0 stay 0: {listing(zero, limit=3)}. "
            "Give such weights to another optimizer with optax.partition."
        )


def _is_zero(x: Leaf) -> bool:
    if isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct):
        return False
    with jax.ensure_compile_time_eval():  # init may be traced over weights that are known
        return jnp.size(x) > 0 and not jnp.any(jnp.asarray(x))


def _radius(p: Leaf, axes: int) -> jax.Array:
    shape = jnp.shape(p)[:axes]
    if not is_decayable(p):
        return jnp.zeros(shape)
    return safe_norm(jnp.asarray(p), axes).reshape(shape)


def _map_weights(
    fn: Callable[..., Leaf],
    updates: optax.Updates,
    params: optax.Params,
    way_out: str,
    column: Sequence[Any],
) -> optax.Updates:
    """Updates after ``fn(u, θ, entry)``; integer leaves and parameters without update keep theirs.

    The column has one entry per leaf of params.
    """
    leaves, treedef = jax.tree.flatten(params)
    rows = zip(entries_of("updates", updates, params, way_out), leaves, column, strict=True)
    is_left = lambda u, p: u is None or isinstance(u, optax.MaskedNode) or not is_decayable(p)
    return treedef.unflatten([u if is_left(u, p) else fn(u, p, x) for u, p, x in rows])


def _step(rate: Scalar, u: Leaf, p: Leaf, radius: jax.Array) -> Leaf:
    """The update that moves p to its new place on the sphere, in the dtype of u.

    It is 0 where the radius or u is 0, and where the step ends at the center of the sphere. The
    norm before the projection comes from sums that one pass over p and u computes; the update is
    a second pass.
    """
    axes, (theta, step) = radius.ndim, _in_one_dtype(p, u)
    radius = jnp.expand_dims(radius, tuple(range(axes, theta.ndim)))
    unit = divided(theta, radius)
    at_scales = (squared(step * k) for k in FACTORS)
    *squares, along, own = totals(axes, *at_scales, inner_product(unit, step), squared(unit))
    size, rate = root(*squares), jnp.asarray(rate, own.dtype)
    moved = own - 2 * rate * divided(along, size) + rate**2  # its square
    stays = (radius == 0) | (size == 0) | (moved <= _CENTER * (own + rate**2))
    length = jnp.sqrt(jnp.where(stays, 1, moved))
    of_step = divided(rate * radius.astype(rate.dtype) / length, size).astype(theta.dtype)
    update = (1 / length - 1).astype(theta.dtype) * theta - of_step * step
    return jnp.where(stays, 0, update).astype(jnp.result_type(u))


def _in_one_dtype(p: Leaf, u: Leaf) -> tuple[jax.Array, jax.Array]:
    """Both in the dtype of the arithmetic on them, at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*(jnp.result_type(widen(jnp.asarray(x))) for x in (u, p)))
    return jnp.asarray(p, dtype), jnp.asarray(u, dtype)


def norm_change(
    *, outward: Scalar = 1.0, inward: Scalar = 1.0, stacked: Stacked = None
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the change of each weight's norm, and keeps the direction of the new weight.

    .. math::

        θ_{t+1} = n \frac{θ_t + u_t}{\|θ_t + u_t\|}, \qquad
        n = \|θ_t\| + f \, (\|θ_t + u_t\| - \|θ_t\|)

    with :math:`f` = ``outward`` if the update makes the norm longer and ``inward`` if it makes
    it shorter; :math:`n` is at least 0. It stands after a finished optimizer, at the end of the
    chain, so a decay of that optimizer is part of :math:`u_t`.

    | outward, inward | effect |
    | --- | --- |
    | 1, 1 | none: the updates come back as they are |
    | 0.5, 1 | half of each growth, the radial brake of modded-nanogpt and Emerging-Optimizers |
    | 0, 0 | each weight keeps its norm |

    Args:
      outward: :math:`\ge 0` (dimensionless), a number, a 0-d array or a tracer: the part of a
        growth that remains.
      inward: :math:`\ge 0`, the same for a shrinkage.
      stacked: the number of leading axes over which each slice is a weight of its own, as in
        :func:`toward_rms`.

    Returns:
      A stateless Optax transformation; its ``update`` needs ``params``. The updates keep their
      dtype, and the arithmetic is at least float32. A weight of 0 grows, from 0; where
      :math:`θ_t + u_t` is 0, the weight keeps its own direction. An update of 0 stays 0, and
      integer leaves are left alone.

    Raises:
      TypeError, ValueError: for a factor that is no finite number :math:`\ge 0`, a ``stacked``
        that does not fit, or an ``update`` without ``params``.

    Note:
      Without state, rounding adds up: over many steps of (0, 0) the norm moves by about the
      parameters' rounding errors. :func:`hyperball` returns to the initial norm at each step.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> params, grads = jnp.array([3.0, 4.0]), jnp.array([-3.0, -4.0])
      >>> tx = optax.chain(optax.sgd(0.2), od.norm_change(outward=0.5))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> assert jnp.isclose(jnp.linalg.norm(params + updates), 5.5)  # and not 6

    References:
      modded-nanogpt (github.com/KellerJordan/modded-nanogpt); NVIDIA Emerging-Optimizers
      (docs.nvidia.com/nemo/emerging-optimizers).
    """
    way_out = "It multiplies the change of the norm; inject_hyperparams makes it a schedule."
    checks.check_nonnegative("outward", outward, way_out)
    checks.check_nonnegative("inward", inward, way_out)
    is_nothing = all(checks.is_static(x) and x == 1 for x in (outward, inward))

    def init_fn(params: optax.Params) -> optax.EmptyState:
        leading_axes(stacked, params)  # raises here if it does not fit
        return optax.EmptyState()

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **_: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = required(params, "norm_change")
        if is_nothing:
            return updates, state
        change = functools.partial(_with_norm_change, outward, inward)
        way_out = "Pass the gradients of these params to tx.update; None only for single leaves."
        return _map_weights(change, updates, params, way_out, leading_axes(stacked, params)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _with_norm_change(outward: Scalar, inward: Scalar, u: Leaf, p: Leaf, axes: int) -> Leaf:
    """The update to n (θ + u)/‖θ + u‖, in the dtype of u.

    It is u + g (θ + u), where g = n/‖θ + u‖ - 1 is computed without a difference of norms.
    """
    theta, step = _in_one_dtype(p, u)
    pairs = [(theta * k, step * k) for k in FACTORS]
    sums = totals(axes, *(x for pair in pairs for x in _squares(*pair)))
    fits = jnp.maximum(*sums[:2]) < LIMIT
    chosen = [jnp.where(fits, *pair) for pair in zip(sums[:3], sums[3:], strict=True)]
    # The size cancels in g. With it, terms of the derivative would overflow or vanish.
    most = jax.lax.stop_gradient(jnp.maximum(*chosen[:2]))
    before, after, squares = (divided(x, most) for x in chosen)
    before, after = jnp.sqrt(before), jnp.sqrt(after)
    change = divided(squares, before + after)
    f = jnp.where(change > 0, *(jnp.asarray(x, change.dtype) for x in (outward, inward)))
    g = jnp.maximum((f - 1) * jnp.where(before > 0, divided(change, after), 1), -1)
    # Where θ + u is 0 it has no direction: θ keeps its own, n = (1 - f) ‖θ‖.
    of_step = jnp.where(after > 0, 1 + g, jnp.minimum(f, 1)).astype(theta.dtype)
    of_theta = jnp.where(after > 0, g, 0).astype(theta.dtype)
    return (of_step * step + of_theta * theta).astype(jnp.result_type(u))


def _squares(theta: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The squares of θ, of θ + u, and their difference, which is rounded less than both."""
    return squared(theta), squared(theta + step), inner_product(step, 2 * theta + step)
