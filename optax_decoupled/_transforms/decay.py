r"""Weight decay as an Optax transform: the contract equation.

.. math::

    θ_{t+1} = θ_t + u_t - c_t · w ⊙ (θ_t - r_t), \qquad c_t = λ_t · η_t

:math:`u_t` is the update of the rest of the chain (already scaled by the learning
rate, sign included), :math:`c_t` the fraction of a weight that step :math:`t`
removes, :math:`w` the multiplier of each parameter (the mask), and :math:`r_t` the point
that the weights decay to: 0, or the reference that ``toward`` sets. Every convention of
weight decay in use is a choice of :math:`λ` and :math:`η`. The first update sees
count 0, and schedules are evaluated at the count before the increment, as in Optax.

Reference: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019
(arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.dtypes import common_dtype, converted
from optax_decoupled._common.products import check_decay, is_product, product, product_schedule
from optax_decoupled._common.types import Leaf, Mask, PyTree, Scalar, ScalarOrSchedule
from optax_decoupled._select.masks import leaf_multipliers
from optax_decoupled._select.names import entries_of
from optax_decoupled._transforms.toward import Toward


class DecoupledWeightDecayState(NamedTuple):
    """State of ``add_decoupled_weight_decay`` without ``toward``, whatever its mask.

    Attributes:
      count: number of updates so far, int32[].
      decay_rate: the :math:`c_t` last applied (0 before the first), float32[]. A copy
        for logs: ``optax.tree.get(opt_state, "decay_rate")``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  Optax's name
    decay_rate: jax.Array


class PulledWeightDecayState(NamedTuple):
    """State of :func:`~optax_decoupled.add_decoupled_weight_decay` when ``toward`` is given.

    Attributes:
      count: number of updates so far, int32[].
      decay_rate: the :math:`c_t` last applied (0 before the first), float32[].
      reference: the state of ``toward``, such as the initial weights; None if it needs none.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  Optax's name
    decay_rate: jax.Array
    reference: PyTree


def add_decoupled_weight_decay(
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None = None,
    *,
    mask: Mask = None,
    cautious: bool = False,
    toward: Toward | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds decoupled weight decay, :math:`-c_t · w ⊙ θ_t`, to finished updates.

    .. math:: u_t \leftarrow u_t - c_t · w ⊙ (θ_t - r_t), \qquad c_t = λ_t · η_t

    It stands **after** the scaling by the learning rate, at the end of a chain; before
    it, :math:`c_t` would be multiplied by minus the rate and the weights would grow
    (:func:`explain_weight_decay` reports this). The arithmetic is at least float32 and the
    updates keep their dtype.

    Args:
      weight_decay: :math:`λ_t \ge 0`, the fraction of a weight removed per full step. A
        number, a 0-d array or tracer, or a schedule (step → fraction). It is *not*
        multiplied by the learning rate; for PyTorch's and Optax's value see
        :func:`weight_decay_from_pytorch`.
      schedule: the multiplier :math:`η_t` (dimensionless, 1 = full step): a schedule
        (step → multiplier), a number, or None for 1. Usually the learning rate's shape.
      mask: which parameters decay: None (all), a tree or prefix of bools or
        multipliers :math:`w \ge 0` shaped like the parameters, or a function from the
        parameters to one, such as :func:`decay_mask` or :func:`decay_rules`. A multiplier is
        a number or an array that broadcasts to its parameter, such as one of shape
        (layers, 1, 1) for a stack of matrices, or one value for each element.
      cautious: decay only elements whose update and weight do not point the same way
        (:math:`u · (θ - r) \le 0`), that is where the step does not already grow the weight.
      toward: sets the point :math:`r_t` that the weights decay to: None for 0, or
        :func:`toward_init`, :func:`toward_argument`, :func:`toward_rms`.

    Returns:
      An Optax transformation whose ``update`` needs ``params`` and whose state is a
      :class:`types.DecoupledWeightDecayState`, with a ``reference`` besides for ``toward``.

    Raises:
      TypeError, ValueError: for a negative, infinite or NaN ``weight_decay``; at
        ``init`` for a mask that does not fit; at ``update`` without ``params``.

    Warns:
      UserWarning: if a static ``weight_decay`` is 0.01 or more, which is probably a value
        of PyTorch or Optax; if a schedule of it reaches 0.5 without ``toward``, which is
        probably a multiplier.

    Examples:
      With zero gradients :math:`T` steps leave :math:`θ_0 (1 - c)^T`:

      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = optax.chain(optax.sgd(0.1), od.add_decoupled_weight_decay(0.001))
      >>> params = jnp.full(3, 2.0)
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     updates, state = tx.update(jnp.zeros(3), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> assert jnp.allclose(params, 2.0 * 0.999**100, rtol=1e-5)
      >>> assert jnp.isclose(optax.tree.get(state, "decay_rate"), 0.001)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Algorithms 1 and 2; cautious decay: Chen
      et al., arXiv:2510.12402.
    """
    checks.check_schedule("schedule", schedule)
    if not is_product(weight_decay):  # the optimizers check the factors of their products
        check_decay(weight_decay, schedule, toward)
    checks.check_flag("cautious", cautious)
    _check_toward(toward)
    rate_at, decay = product_schedule(weight_decay, schedule), _cautious if cautious else _all

    def init_fn(params: optax.Params) -> DecoupledWeightDecayState | PulledWeightDecayState:
        leaf_multipliers(mask, params)  # raises here if the mask does not fit
        start = DecoupledWeightDecayState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))
        return PulledWeightDecayState(*start, toward.init(params)) if toward else start

    def update_fn(
        updates: optax.Updates,
        state: Any,  # Optax's protocol has the union of all states
        params: optax.Params | None = None,
        **extra: object,
    ) -> tuple[optax.Updates, DecoupledWeightDecayState | PulledWeightDecayState]:
        rate = rate_at(state.count)
        if jnp.shape(rate) != ():
            raise ValueError(
                f"weight_decay times schedule has shape {jnp.shape(rate)} at a step; both must be "
                "scalars. Scale single parameters by the multipliers of a mask."
            )
        params = required(params, "add_decoupled_weight_decay")
        points = [toward.point(state.reference, params, extra)] if toward else []
        updates = map_decaying(decay, rate, mask, updates, params, *points)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, state._replace(count=count, decay_rate=jnp.asarray(rate, jnp.float32))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _all(u: jax.Array, p: jax.Array, c: jax.Array, *r: jax.Array) -> jax.Array:
    return u - c * (p - r[0] if r else p)


def _cautious(u: jax.Array, p: jax.Array, c: jax.Array, *r: jax.Array) -> jax.Array:
    distance = p - r[0] if r else p
    return u - jnp.where(_same_direction(u, distance), 0, c * distance)


def _check_toward(toward: object) -> None:
    if toward is not None and not isinstance(toward, Toward):
        raise TypeError(
            f"toward={brief(toward)} must be None (0) or the result of toward_init(), "
            "toward_argument(name) or toward_rms(rms). To decay to a tree of your own, use "
            "toward_argument()."
        )


def required(params: optax.Params | None, name: str) -> optax.Params:
    if params is None:
        raise ValueError(
            f"params=None in {name}, which needs the current parameters. "
            "Call tx.update(grads, state, params)."
        )
    return params


def map_decaying(
    fn: Callable[..., jax.Array],
    rate: Scalar,
    mask: Mask,
    updates: optax.Updates,
    params: optax.Params,
    *columns: list[Leaf],
) -> optax.Updates:
    """Updates after ``fn(u, θ, c · w, *others)``; parameters that do not decay keep theirs.

    Each of the columns is a list with one entry per leaf of params.
    """
    leaves, treedef = jax.tree.flatten(params)
    rates = [product(rate, w) for w in leaf_multipliers(mask, params)]
    way_out = "Pass the gradients of these params to tx.update; None only for single leaves."
    rows = zip(
        entries_of("updates", updates, params, way_out), leaves, rates, *columns, strict=True
    )
    return treedef.unflatten([_in_full_precision(fn, *row) for row in rows])


def _in_full_precision(
    fn: Callable[..., jax.Array], u: Leaf, p: Leaf, c: Scalar, *others: Leaf
) -> Leaf:
    """``fn(u, θ, c, …)`` computed in at least float32, returned in the dtype of u.

    A static c of 0 returns u itself: XLA may round u + 0 · θ differently from u.
    """
    if u is None or checks.is_static_zero(c):
        return u
    u = jnp.asarray(u)
    dtype = common_dtype(u.dtype, jnp.result_type(p))
    return converted(fn(*(converted(x, dtype) for x in (u, p, c, *others))), u.dtype)


def _same_direction(u: jax.Array, p: jax.Array) -> jax.Array:
    """u·p > 0 by signs, because the product of two small numbers underflows to 0."""
    if jnp.iscomplexobj(u):
        return jnp.real(jnp.sign(u) * jnp.conj(jnp.sign(p))) > 0
    return ((u > 0) & (p > 0)) | ((u < 0) & (p < 0))
