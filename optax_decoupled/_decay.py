r"""Weight decay as Optax transforms: the contract equation and its three relatives.

.. math::

    θ_{t+1} = θ_t + u_t - c_t · w ⊙ θ_t, \qquad c_t = λ_t · η_t

:math:`u_t` is what the rest of the chain produced (already scaled by the learning
rate, sign included), :math:`c_t` the fraction of a weight that step :math:`t`
removes, :math:`w` the multipliers of the parameters (the mask). Every convention of
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
import numpy as np
import optax

from optax_decoupled import _checks
from optax_decoupled._dtypes import widen
from optax_decoupled._masks import foreign_entries, leaf_multipliers
from optax_decoupled._paths import named_leaves
from optax_decoupled._schedules import product_schedule
from optax_decoupled._types import Mask, Scalar, ScalarOrSchedule


class DecoupledWeightDecayState(NamedTuple):
    """State of :func:`add_decoupled_weight_decay`; the same tree for all its options.

    Attributes:
      count: number of updates so far, int32[].
      decay_rate: the :math:`c_t` last applied (0 before the first), float32[]. A copy
        for logs: ``optax.tree.get(opt_state, "decay_rate")``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]  Optax's name
    decay_rate: jax.Array


def add_decoupled_weight_decay(
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None = None,
    *,
    mask: Mask = None,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds decoupled weight decay, :math:`-c_t · w ⊙ θ_t`, to finished updates.

    .. math:: u_t \leftarrow u_t - c_t · w ⊙ θ_t, \qquad c_t = λ_t · η_t

    It stands **after** the scaling by the learning rate, at the end of a chain; before
    it, :math:`c_t` would be multiplied by minus the rate and the weights would grow
    (:func:`explain_weight_decay` tells). The arithmetic is at least float32 and the
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
        parameters to one, such as :func:`decay_mask` or :func:`decay_rules`.
      cautious: decay only elements whose update and weight do not point the same way
        (:math:`u · θ \le 0`), that is where the step does not already grow the weight.

    Returns:
      An Optax transformation whose ``update`` needs ``params`` and whose state is a
      :class:`DecoupledWeightDecayState`.

    Raises:
      TypeError, ValueError: for a negative, infinite or NaN ``weight_decay``; at
        ``init`` for a mask that does not fit; at ``update`` without ``params``.

    Warns:
      UserWarning: if a static ``weight_decay`` is 0.01 or more, which looks like
        PyTorch's.

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
    _checks.check_weight_decay(weight_decay)
    return unchecked_decay(weight_decay, schedule, mask, cautious)


def unchecked_decay(
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None,
    mask: Mask,
    cautious: bool,
) -> optax.GradientTransformationExtraArgs:
    """`add_decoupled_weight_decay` for callers that have checked the decay themselves."""
    _checks.check_schedule("schedule", schedule)
    _checks.check_flag("cautious", cautious)

    def init_fn(params: Any) -> DecoupledWeightDecayState:
        leaf_multipliers(mask, params)  # a mask that does not fit fails here
        return DecoupledWeightDecayState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32))

    def update_fn(updates: Any, state: Any, params: Any = None, **_: Any):
        rate = product_schedule(weight_decay, schedule)(state.count)
        if jnp.shape(rate) != ():
            raise ValueError(
                f"weight_decay times schedule has shape {jnp.shape(rate)} at a step; both must be "
                "scalars. Scale single parameters by the multipliers of a mask."
            )

        def decay(u: jax.Array, p: jax.Array, c: jax.Array) -> jax.Array:
            removed = c * p
            if cautious:
                removed = jnp.where(_same_direction(u, p), 0, removed)
            return u - removed

        updates = _map_decaying(decay, rate, mask, updates, params, "add_decoupled_weight_decay")
        applied = jnp.asarray(rate, jnp.float32)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, DecoupledWeightDecayState(count, applied)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def l2_to_grad(l2: Scalar, *, mask: Mask = None) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of an L2 penalty, :math:`g + λ' w ⊙ θ`: the *coupled* form.

    The gradient of :math:`f(θ) + \tfrac{λ'}{2} \sum w ⊙ θ^2`. It stands **first** in a
    chain, so momentum and preconditioner see it. For plain SGD of rate :math:`α` it
    equals a decay of :math:`λ = λ' α` (Proposition 1, :func:`l2_from_weight_decay`);
    with momentum or an adaptive preconditioner it does not (Proposition 2).

    Args:
      l2: :math:`λ' \ge 0`, in units of the loss per squared weight. A number, a 0-d
        array or a tracer.
      mask: as in :func:`add_decoupled_weight_decay`.

    Returns:
      A stateless Optax transformation whose ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: for a negative, infinite or NaN ``l2``, a mask that does
        not fit, or an ``update`` without ``params``.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.l2_to_grad(0.5)
      >>> grads, _ = tx.update(jnp.zeros(2), tx.init(jnp.ones(2)), jnp.ones(2))
      >>> assert jnp.array_equal(grads, jnp.full(2, 0.5))

    References:
      Loshchilov & Hutter, arXiv:1711.05101, section 2 and Algorithms 1 and 2.
    """
    _check_l2(l2)
    return _stateless_l2(l2, mask, lambda params: None, "l2_to_grad")


def scale_adjusted_l2_to_grad(
    l2: Scalar, scale: Any, *, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of the scale-adjusted L2 penalty, :math:`g + λ' s ⊙ w ⊙ θ`.

    The gradient of :math:`f(θ) + \tfrac{λ'}{2} \|θ ⊙ \sqrt s\|^2`. Before a *fixed*
    preconditioner :math:`M = \mathrm{diag}(s)^{-1}` and rate :math:`α` it equals a decay
    of :math:`λ = λ' α` (Proposition 3).

    Args:
      l2: :math:`λ' \ge 0`, as in :func:`l2_to_grad`.
      scale: :math:`s > 0`, a tree of arrays (or scalars) that broadcast to the
        parameters' shapes.
      mask: as in :func:`add_decoupled_weight_decay`.

    Returns:
      A stateless Optax transformation whose ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: as :func:`l2_to_grad`; also for a ``scale`` that has
        another structure, does not broadcast, or is a static number :math:`\le 0`.

    Note:
      The body of the paper prints this penalty (its Eq. 2) with a coefficient
      :math:`λ'/(2α)` and :math:`λ' = λ/α`: one :math:`1/α` too many. Its appendix proves
      the form above, which is the one that holds.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.scale_adjusted_l2_to_grad(0.5, jnp.array([1.0, 4.0]))
      >>> grads, _ = tx.update(jnp.zeros(2), tx.init(jnp.ones(2)), jnp.ones(2))
      >>> assert jnp.array_equal(grads, jnp.array([0.5, 2.0]))

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Proposition 3 and appendix A.
    """
    _check_l2(l2)
    for path, leaf in named_leaves(scale)[0]:
        if np.size(leaf) and (isinstance(leaf, np.ndarray) or _checks.is_static(leaf)):
            name = f"scale at {'/'.join(path)!r}"
            way_out = "It is the inverse of the preconditioner."
            _checks.check_positive(name, np.min(leaf), way_out)
    return _stateless_l2(
        l2, mask, lambda params: _scale_leaves(scale, params), "scale_adjusted_l2_to_grad"
    )


def _check_l2(l2: Scalar) -> None:
    _checks.check_nonnegative("l2", l2, "It is the L2 coefficient λ', e.g. 1e-4.")


def _stateless_l2(
    l2: Scalar, mask: Mask, scales: Callable[[Any], Any], name: str
) -> optax.GradientTransformationExtraArgs:
    def init_fn(params: Any) -> optax.EmptyState:
        leaf_multipliers(mask, params)
        scales(params)
        return optax.EmptyState()

    def update_fn(updates: Any, state: Any, params: Any = None, **_: Any):
        def penalize(g: jax.Array, p: jax.Array, c: jax.Array, s: Any = None) -> jax.Array:
            return g + c * (p if s is None else s * p)

        extra = [] if params is None else scales(params)
        return _map_decaying(penalize, l2, mask, updates, params, name, extra), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scale_leaves(scale: Any, params: Any) -> list[Any]:
    """The entry of `scale` for each leaf of params, by path, checked to broadcast to it."""
    leaves, empty = named_leaves(params)
    if not leaves:
        return []
    entries = dict(named_leaves(scale)[0])
    missing = [path for path, _ in leaves if path not in entries]
    foreign = foreign_entries(entries, {path for path, _ in leaves}, empty)
    if missing or foreign:
        raise ValueError(
            "scale does not have the structure of the parameters: it lacks "
            f"{['/'.join(path) for path in missing]} and has besides "
            f"{['/'.join(path) for path in foreign]}. Build it with jax.tree.map over them."
        )
    for path, leaf in leaves:
        shape, target = jnp.shape(entries[path]), jnp.shape(leaf)
        if len(shape) > len(target) or np.broadcast_shapes(shape, target) != target:
            raise ValueError(
                f"scale at {'/'.join(path)!r} has shape {shape}; it must broadcast to the "
                f"parameter's shape {target}. Pass one positive value for each element."
            )
    return [entries[path] for path, _ in leaves]


def _map_decaying(
    fn: Callable[..., jax.Array],
    rate: jax.typing.ArrayLike,
    mask: Mask,
    updates: Any,
    params: Any,
    name: str,
    extra: list[Any] | None = None,
) -> Any:
    """Applies ``fn(update, param, rate · multiplier)`` wherever the multiplier is not 0.

    In at least float32 (the parameters' and updates' wider dtype); the result has the
    update's dtype. Other leaves pass through untouched.
    """
    if params is None:
        raise ValueError(
            f"params=None in {name}: weight decay needs the current parameters. "
            "Call tx.update(grads, state, params)."
        )
    if _checks.is_static_zero(rate):
        return updates  # nor may an added 0 change how XLA rounds the step
    leaves, treedef = jax.tree.flatten(params)
    updates_flat = treedef.flatten_up_to(updates)
    multipliers = leaf_multipliers(mask, params)
    rest = [[s] for s in extra] if extra else [[] for _ in leaves]
    out = []
    for u, p, w, s in zip(updates_flat, leaves, multipliers, rest, strict=True):
        if u is None or w is False:
            out.append(u)
            continue
        u = jnp.asarray(u)
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*(jnp.result_type(widen(x)) for x in (u, p)), jnp.float32)
        c = jnp.asarray(rate if w is True else widen(rate) * widen(w), jnp.finfo(dtype).dtype)
        wide = [jnp.asarray(x, dtype) for x in (u, p)]
        out.append(fn(*wide, c, *s).astype(u.dtype))
    return jax.tree.unflatten(treedef, out)


def _same_direction(u: jax.Array, p: jax.Array) -> jax.Array:
    """u·p > 0 by signs, because the product of two small numbers underflows to 0."""
    if jnp.iscomplexobj(u):
        return jnp.real(jnp.sign(u) * jnp.conj(jnp.sign(p))) > 0
    return ((u > 0) & (p > 0)) | ((u < 0) & (p < 0))
