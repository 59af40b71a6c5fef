"""L2 regularization, the coupled twin of weight decay, to compare with: transforms, optimizers.

Its gradient is added before momentum and preconditioner, which is what couples it to them and
to the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled import _checks
from optax_decoupled._adam import scale_by_adam
from optax_decoupled._decay import map_decaying, required
from optax_decoupled._masks import foreign_entries, leaf_multipliers
from optax_decoupled._paths import named_leaves
from optax_decoupled._products import check_step, product_schedule
from optax_decoupled._sgd import momentum_sgd
from optax_decoupled._types import Leaf, Mask, PyTree, Scalar, ScalarOrSchedule


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
    return _stateless_l2("l2_to_grad", l2, mask, lambda params: ())


def scale_adjusted_l2_to_grad(
    l2: Scalar, scale: PyTree, *, mask: Mask = None
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of the scale-adjusted L2 penalty, :math:`g + λ' s ⊙ w ⊙ θ`.

    The gradient of :math:`f(θ) + \tfrac{λ'}{2} \|θ ⊙ \sqrt s\|^2`. Before a *fixed*
    preconditioner :math:`M = \mathrm{diag}(s)^{-1}` and rate :math:`α` it equals a decay
    of :math:`λ = λ' α` (Proposition 3).

    Args:
      l2, mask: see :func:`l2_to_grad`.
      scale: :math:`s > 0`, a tree of arrays (or scalars) that broadcast to the
        parameters' shapes.

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
    for path, leaf in named_leaves(scale)[0]:
        if np.size(leaf) and (isinstance(leaf, np.ndarray) or _checks.is_static(leaf)):
            name = f"scale at {'/'.join(path)!r}"
            way_out = "It is the inverse of the preconditioner."
            _checks.check_positive(name, np.min(leaf), way_out)
    return _stateless_l2(
        "scale_adjusted_l2_to_grad", l2, mask, lambda params: (_scale_leaves(scale, params),)
    )


def adam_l2(
    learning_rate: ScalarOrSchedule,
    l2: Scalar,
    *,
    schedule: ScalarOrSchedule | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with L2 regularization, the coupled twin of :func:`adamw`, to compare with.

    .. math:: g_t = ∇f_t(θ_t) + λ' θ_t, \quad
        θ_{t+1} = θ_t - η_t α \hat m_t / (\sqrt{\hat v_t} + ε)

    The chain: :func:`l2_to_grad`, :func:`scale_by_adam`, the scaling by
    :math:`-α η_t`.

    Args:
      learning_rate: :math:`α`, or an Optax schedule of the rate.
      l2: :math:`λ' \ge 0`, see :func:`l2_to_grad`. It has no schedule of its own.
      schedule: :math:`η_t`, the multiplier of the step; None for 1.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov: see :func:`scale_by_adam`.
      mask: which parameters are penalized; see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: for hyperparameters out of range.

    Examples:
      The first step is of size :math:`α` whatever the penalty: Adam normalizes it away.

      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.adam_l2(0.01, 0.5)
      >>> updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> assert jnp.allclose(updates, -0.01)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2 (with L2 regularization).
    """
    check_step(learning_rate, schedule)
    return optax.chain(
        l2_to_grad(l2, mask=mask),
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        optax.scale_by_schedule(product_schedule(-1, learning_rate, schedule)),
    )


def sgd_l2(
    learning_rate: ScalarOrSchedule,
    l2: Scalar,
    *,
    schedule: ScalarOrSchedule | None = None,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    scale_before_momentum: bool = True,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum and L2 regularization, the coupled twin of :func:`sgdw`.

    .. math:: m_t = β_1 m_{t-1} + η_t α (∇f_t(θ_t) + λ' θ_t), \qquad θ_{t+1} = θ_t - m_t

    The chain: :func:`l2_to_grad`, then SGD as in :func:`sgdw`.

    Args:
      learning_rate, l2, schedule: see :func:`adam_l2`.
      momentum, nesterov, scale_before_momentum: see :func:`sgdw`.
      mask: which parameters are penalized; see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: for hyperparameters out of range.

    Examples:
      Without momentum it equals decay (Proposition 1):

      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> coupled = od.sgd_l2(0.1, od.l2_from_weight_decay(1e-3, 0.1), momentum=0.0)
      >>> decoupled = od.sgdw(0.1, 1e-3, momentum=0.0)
      >>> params, grads = jnp.ones(1), jnp.full(1, 0.3)
      >>> steps = [tx.update(grads, tx.init(params), params)[0] for tx in (coupled, decoupled)]
      >>> assert jnp.allclose(*steps)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Algorithm 1 (with L2 regularization).
    """
    check_step(learning_rate, schedule)
    return optax.chain(
        l2_to_grad(l2, mask=mask),
        *momentum_sgd(learning_rate, schedule, momentum, nesterov, scale_before_momentum),
    )


def _stateless_l2(
    name: str, l2: Scalar, mask: Mask, scales: Callable[[optax.Params], Sequence[list[Leaf]]]
) -> optax.GradientTransformationExtraArgs:
    _checks.check_nonnegative("l2", l2, "It is the L2 coefficient λ', e.g. 1e-4.")

    def init_fn(params: optax.Params) -> optax.EmptyState:
        leaf_multipliers(mask, params)
        scales(params)
        return optax.EmptyState()

    def penalize(g: jax.Array, p: jax.Array, c: jax.Array, *s: Leaf) -> jax.Array:
        return g + c * math.prod(s, start=p)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **_: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = required(params, name)
        return map_decaying(penalize, l2, mask, updates, params, *scales(params)), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _scale_leaves(scale: PyTree, params: optax.Params) -> list[Leaf]:
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
