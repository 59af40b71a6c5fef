"""The paper's optimizers with warm restarts and normalized weight decay."""

from __future__ import annotations

import jax
import optax

from optax_decoupled import schedules
from optax_decoupled._common.types import Mask, Scalar, ScalarOrSchedule
from optax_decoupled._optimizers.decoupled import adamw, sgdw
from optax_decoupled._transforms.toward import Toward


def adamwr(
    learning_rate: ScalarOrSchedule,
    normalized_weight_decay: Scalar,
    *,
    first_cycle_steps: int,
    cycle_mult: float = 2,
    eta_min: Scalar = 0.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
    mask: Mask = None,
    cautious: bool = False,
    toward: Toward | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with warm restarts and normalized weight decay.

    :func:`adamw` with :math:`η_t` from :func:`schedules.warm_restarts` and :math:`λ_i` from
    :func:`schedules.normalized_weight_decay`. The weights to keep are those after a
    cycle's last step (:func:`schedules.warm_restart_position`).

    Args:
      learning_rate: :math:`α`; an Optax schedule multiplies the rate alone, not the decay.
      normalized_weight_decay: :math:`λ_{norm}`; 0.025 to 0.05 in the paper.
      first_cycle_steps: see :func:`schedules.warm_restarts`. Static: under
        ``optax.inject_hyperparams`` name it and ``cycle_mult`` in ``static_args``.
      cycle_mult, eta_min: see :func:`schedules.warm_restarts`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov: see :func:`scale_by_adam`.
      mask, cautious, toward: see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``. Resuming needs only its state.

    Raises:
      TypeError, ValueError: as :func:`adamw` and :func:`schedules.warm_restarts`.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = od.adamwr(1e-3, 0.05, first_cycle_steps=100)
      >>> _, state = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> assert jnp.isclose(optax.tree.get(state, "decay_rate"), 0.05 / 100**0.5)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.
    """
    return adamw(
        learning_rate,
        schedules.normalized_weight_decay(normalized_weight_decay, first_cycle_steps, cycle_mult),
        schedule=schedules.warm_restarts(first_cycle_steps, cycle_mult, eta_min=eta_min),
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        mu_dtype=mu_dtype,
        nu_dtype=nu_dtype,
        nesterov=nesterov,
        mask=mask,
        cautious=cautious,
        toward=toward,
    )


def sgdwr(
    learning_rate: ScalarOrSchedule,
    normalized_weight_decay: Scalar,
    *,
    first_cycle_steps: int,
    cycle_mult: float = 2,
    eta_min: Scalar = 0.0,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    scale_before_momentum: bool = True,
    mask: Mask = None,
    cautious: bool = False,
    toward: Toward | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGDW with warm restarts and normalized weight decay.

    :func:`sgdw` with :math:`η_t` from :func:`schedules.warm_restarts` and :math:`λ_i` from
    :func:`schedules.normalized_weight_decay`.

    Args:
      learning_rate: :math:`α`; an Optax schedule multiplies the rate alone, not the decay.
      normalized_weight_decay, first_cycle_steps, cycle_mult, eta_min: see :func:`adamwr`.
      momentum, nesterov, scale_before_momentum: see :func:`sgdw`.
      mask, cautious, toward: see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``. Resuming needs only its state.

    Raises:
      TypeError, ValueError: as :func:`sgdw` and :func:`schedules.warm_restarts`.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = od.sgdwr(0.05, 0.05, first_cycle_steps=100)
      >>> _, state = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> assert jnp.isclose(optax.tree.get(state, "decay_rate"), 0.05 / 100**0.5)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, appendix B.
    """
    return sgdw(
        learning_rate,
        schedules.normalized_weight_decay(normalized_weight_decay, first_cycle_steps, cycle_mult),
        schedule=schedules.warm_restarts(first_cycle_steps, cycle_mult, eta_min=eta_min),
        momentum=momentum,
        nesterov=nesterov,
        scale_before_momentum=scale_before_momentum,
        mask=mask,
        cautious=cautious,
        toward=toward,
    )
