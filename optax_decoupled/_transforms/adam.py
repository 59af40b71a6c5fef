"""Adam's preconditioner: Optax's rule, computed in float32 for narrower gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.dtypes import cast_like, in_float32, is_narrow
from optax_decoupled._common.types import Leaf, Scalar
from optax_decoupled._transforms.rounding import cast_first_moment


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    nu_dtype: jax.typing.DTypeLike | None = None,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    r"""Rescales gradients by Adam's rule, :math:`\hat m_t / (\sqrt{\hat v_t + ε_r} + ε)`.

    .. math::
        m_t = β_1 m_{t-1} + (1-β_1) g_t, \quad v_t = β_2 v_{t-1} + (1-β_2) g_t^2, \quad
        \hat m_t = \frac{m_t}{1-β_1^t}, \quad \hat v_t = \frac{v_t}{1-β_2^t}

    :func:`optax.scale_by_adam`, bit for bit, for float32 gradients and moments. For
    narrower ones the arithmetic is float32 and :math:`v` is stored in float32 by default:
    in bfloat16 :math:`0.999 v` rounds back to :math:`v`, so it would never decay.

    Args:
      b1, b2: :math:`β_1, β_2`, in [0, 1). Like every hyperparameter here, a number, a 0-d
        array or a tracer.
      eps, eps_root: :math:`ε, ε_r \ge 0`, outside and inside the root.
      mu_dtype: dtype in which :math:`m` is stored. None: the parameter's. Use float32 for
        ``b1`` above 0.99: the changes of a slow average are lost in fewer bits.
      nu_dtype: dtype in which :math:`v` is stored. None: the parameter's, but at least
        float32.
      nesterov: whether to use Nesterov's momentum (Dozat, 2016).

    Returns:
      An Optax transformation with an :class:`optax.ScaleByAdamState`. Updates have the
      gradients' shapes and dtypes.

    Raises:
      TypeError, ValueError: for a static ``b1`` or ``b2`` outside [0, 1), a negative or
        NaN epsilon; at ``init`` for a real ``mu_dtype`` with complex parameters.

    Examples:
      The first update is the sign of the gradient:

      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.scale_by_adam()
      >>> grads = jnp.array([3.0, -0.01])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> assert jnp.allclose(updates, jnp.sign(grads), atol=1e-5)

    References:
      Kingma & Ba, arXiv:1412.6980; Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        checks.check_fraction(name, value, "It is the decay rate of a moving average.")
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        checks.check_nonnegative(name, value, "It keeps the denominator from zero, e.g. 1e-8.")
    checks.check_flag("nesterov", nesterov)
    checks.check_moment_dtype("mu_dtype", mu_dtype, jnp.inexact)
    checks.check_moment_dtype("nu_dtype", nu_dtype)

    def store(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda m: _stored_moment(m, mu_dtype), state.mu)
        nu = jax.tree.map(lambda v: _stored_square(v, nu_dtype), state.nu)
        return state._replace(mu=mu, nu=nu)

    def narrow(new: optax.ScaleByAdamState, old: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
        return new._replace(mu=cast_first_moment(new.mu, old.mu), nu=cast_like(new.nu, old.nu))

    stock = optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)
    return in_float32(stock, narrow, store)


def _stored_moment(m: Leaf, dtype: jax.typing.DTypeLike | None) -> Any:
    if dtype is None:
        return m
    if jnp.iscomplexobj(m) != jnp.issubdtype(dtype, jnp.complexfloating):
        kind = "complex" if jnp.iscomplexobj(m) else "real"
        raise ValueError(
            f"mu_dtype={dtype!r} cannot hold the first moment of {kind} parameters; it must be "
            f"{kind}, as they are. Leave it None to use the parameters' dtype."
        )
    return m.astype(dtype)


def _stored_square(v: Leaf, dtype: jax.typing.DTypeLike | None) -> Any:
    if dtype is None:
        return v.astype(jnp.float32) if is_narrow(v) else v
    return jnp.real(v).astype(dtype)
