"""The paper's optimizers, each one `optax.chain`.

The arguments are explained at the transforms: the moments at `scale_by_adam`; decay,
schedule and mask at `add_decoupled_weight_decay`. `schedule` is the paper's η_t and
multiplies step and decay alike.
"""

from __future__ import annotations

import jax
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.products import check_decay, check_step, product_schedule
from optax_decoupled._common.types import Mask, Scalar, ScalarOrSchedule, Schedule
from optax_decoupled._select.masks import hidden_matrices, where_normalized
from optax_decoupled._transforms.adam import scale_by_adam
from optax_decoupled._transforms.decay import add_decoupled_weight_decay
from optax_decoupled._transforms.momentum import momentum_sgd
from optax_decoupled._transforms.toward import Toward


def adamw(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    *,
    schedule: ScalarOrSchedule | None = None,
    decay_schedule: ScalarOrSchedule | None = None,
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
    r"""AdamW as in the paper: the decay is not multiplied by the learning rate.

    .. math:: θ_{t+1} = θ_t - η_t \left( α \hat m_t / (\sqrt{\hat v_t} + ε) + λ θ_t \right)

    The chain: :func:`scale_by_adam`, the scaling by :math:`-α η_t`,
    :func:`add_decoupled_weight_decay`.

    Args:
      learning_rate: :math:`α`, or an Optax schedule of the rate. A schedule needs
        ``decay_schedule`` beside it, or ``schedule``, which multiplies that rate too (for
        one shape of both use :func:`split_schedule`).
      weight_decay: :math:`λ`, the fraction of a weight removed per full step. For a value
        of :func:`optax.adamw` or PyTorch see :func:`weight_decay_from_pytorch`.
      schedule: :math:`η_t`, the multiplier of both step and decay: 1 for a full step. It
        is no learning rate. None for 1. A warning is given if it stays below 0.3, and if it
        is a constant other than 1 beside a ``learning_rate`` schedule that moves up to 1.
      decay_schedule: the decay's own multiplier, instead of ``schedule``.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov: see :func:`scale_by_adam`.
      mask, cautious, toward: see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: for hyperparameters out of range, and for a callable
        ``learning_rate`` without ``schedule`` or ``decay_schedule``.

    Examples:
      The decay of a step without gradient does not depend on the learning rate:

      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> def removed(learning_rate):
      ...     tx = od.adamw(learning_rate, 1e-3)
      ...     updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
      ...     return -updates[0]
      >>> assert removed(0.1) == removed(0.001) == jnp.float32(1e-3)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2.
    """
    decay = _checked_decay(learning_rate, weight_decay, schedule, decay_schedule, toward)
    return optax.chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        optax.scale_by_schedule(product_schedule(-1, learning_rate, schedule)),
        add_decoupled_weight_decay(decay, mask=mask, cautious=cautious, toward=toward),
    )


def adamc(
    learning_rate: ScalarOrSchedule,
    weight_decay: Scalar,
    *,
    schedule: Schedule,
    normalized: Mask = hidden_matrices,
    mask: Mask = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    nesterov: bool = False,
    cautious: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with the decay corrected for a moving rate: :math:`η_t^2` on normalized layers.

    .. math:: θ_{t+1} = θ_t - η_t α \hat m_t / (\sqrt{\hat v_t} + ε) - λ η_t^{k} θ_t, \qquad
        k = 2 \text{ for normalized layers, else } 1

    Where a norm follows a layer, its weights settle at a size of
    :math:`\sqrt{α η_t / 2 λ_t}` times the step: as the rate falls and the decay with it, the
    weights shrink and the gradients grow against them at the end of a run. With
    :math:`η_t^2` the size stays put.

    The chain: :func:`scale_by_adam`, the scaling by :math:`-α η_t`, two
    :func:`add_decoupled_weight_decay`: of the normalized layers, then of the others.

    Args:
      learning_rate: :math:`α`, the peak rate.
      weight_decay: :math:`λ`, the fraction of a weight removed per full step, see :func:`adamw`.
      schedule: :math:`η_t`, 1 for a full step.
      normalized: which parameters are followed by a norm, a mask as for
        :func:`add_decoupled_weight_decay`. The default goes by name and shape: parameters
        of two axes or more that :func:`decay_mask` selects, without embeddings and heads
        (names with a word such as ``embed``, ``wte``, ``head`` or ``logits``).
      mask: which parameters decay at all.
      cautious: see :func:`add_decoupled_weight_decay`.
      b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov: see :func:`scale_by_adam`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: as :func:`adamw`.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> params = {"dense": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
      >>> tx = od.adamc(1e-3, 1e-3, schedule=lambda step: 0.5)
      >>> grads = optax.tree.zeros_like(params)
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> assert jnp.allclose(updates["dense"]["kernel"], -1e-3 * 0.5**2)
      >>> assert jnp.allclose(updates["head"]["kernel"], -1e-3 * 0.5)

    References:
      Defazio, Why Gradients Rapidly Increase Near the End of Training, arXiv:2506.02285.
    """
    decay = _checked_decay(learning_rate, weight_decay, schedule)
    corrected = product_schedule(weight_decay, product_schedule(schedule, schedule))
    decays = [
        add_decoupled_weight_decay(
            rate, mask=where_normalized(mask, normalized, holds), cautious=cautious
        )
        for rate, holds in ((corrected, True), (decay, False))
    ]
    return optax.chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        optax.scale_by_schedule(product_schedule(-1, learning_rate, schedule)),
        *decays,
    )


def sgdw(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    *,
    schedule: ScalarOrSchedule | None = None,
    decay_schedule: ScalarOrSchedule | None = None,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    scale_before_momentum: bool = True,
    mask: Mask = None,
    cautious: bool = False,
    toward: Toward | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum and decoupled weight decay.

    .. math:: m_t = β_1 m_{t-1} + η_t α g_t, \qquad θ_{t+1} = θ_t - m_t - η_t λ θ_t

    The chain: the scaling by :math:`η_t α`, :func:`optax.trace`, a change of sign,
    :func:`add_decoupled_weight_decay`. With ``scale_before_momentum=False`` the buffer
    holds plain gradients and is scaled when it is used, as in PyTorch and
    :func:`optax.sgd`. The two agree while :math:`η_t` is constant and only then.

    Args:
      learning_rate, weight_decay, schedule, decay_schedule: see :func:`adamw`.
      momentum: :math:`β_1`, in [0, 1).
      nesterov: whether to use Nesterov's momentum.
      scale_before_momentum: True is the paper's Algorithm 1, False PyTorch's buffer.
      mask, cautious, toward: see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: as :func:`adamw`.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.sgdw(0.1, 1e-3)
      >>> updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> assert jnp.allclose(updates, -0.1 - 1e-3)

    References:
      Loshchilov & Hutter, arXiv:1711.05101, Algorithm 1.
    """
    decay = _checked_decay(learning_rate, weight_decay, schedule, decay_schedule, toward)
    return optax.chain(
        *momentum_sgd(learning_rate, schedule, momentum, nesterov, scale_before_momentum),
        add_decoupled_weight_decay(decay, mask=mask, cautious=cautious, toward=toward),
    )


def _checked_decay(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None,
    decay_schedule: ScalarOrSchedule | None = None,
    toward: Toward | None = None,
) -> Schedule:
    """The schedule of c_t, from arguments that are checked here."""
    check_step(learning_rate, schedule)
    checks.check_schedule("decay_schedule", decay_schedule)
    multiplier = schedule if decay_schedule is None else decay_schedule
    name = None if decay_schedule is None else "decay_schedule"
    check_decay(weight_decay, multiplier, toward, learning_rate, name)
    if callable(learning_rate) and schedule is None and decay_schedule is None:
        raise ValueError(
            f"learning_rate={learning_rate!r} is a schedule, but neither schedule nor "
            "decay_schedule is given, so the decay would stay constant while the rate moves. "
            "Choose one: (1) peak, eta = split_schedule(learning_rate, peak), then "
            "learning_rate=peak, schedule=eta moves both together, as in the paper; (2) "
            "decay_schedule=... gives the decay a schedule of its own; (3) decay_schedule=1.0 "
            "keeps it constant on purpose."
        )
    return product_schedule(weight_decay, multiplier)
