"""Optimizers with L2 regularization: the coupled twins of `decoupled`, to compare with."""

from __future__ import annotations

import jax
import optax

from optax_decoupled._common.products import check_step, product_schedule
from optax_decoupled._common.types import Mask, Scalar, ScalarOrSchedule
from optax_decoupled._transforms.adam import scale_by_adam
from optax_decoupled._transforms.l2 import l2_to_grad
from optax_decoupled._transforms.momentum import momentum_sgd


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
      >>> coupled = od.sgd_l2(0.1, od.convert.to_l2(1e-3, 0.1), momentum=0.0)
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
