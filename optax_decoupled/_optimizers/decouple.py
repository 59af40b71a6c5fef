"""`decouple`: decoupled weight decay for any other optimizer."""

from __future__ import annotations

import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.types import Leaf, Mask, ScalarOrSchedule
from optax_decoupled._select.names import listing
from optax_decoupled._state import foreign
from optax_decoupled._transforms.decay import add_decoupled_weight_decay
from optax_decoupled._transforms.first_update import Rows, probe_once
from optax_decoupled._transforms.toward import Toward


def decouple(
    inner: optax.GradientTransformation,
    weight_decay: ScalarOrSchedule,
    schedule: ScalarOrSchedule | None = None,
    *,
    mask: Mask = None,
    cautious: bool = False,
    toward: Toward | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Any finished optimizer plus decoupled weight decay, in the right order.

    .. math:: θ_{t+1} = θ_t + u_t - c_t · w ⊙ (θ_t - r_t)

    The chain: ``inner``, :func:`add_decoupled_weight_decay`.

    Args:
      inner: an optimizer whose updates are ready to be added, e.g. ``optax.lion(1e-4,
        weight_decay=0.0)``. Turn its own decay off: ``init`` warns if it finds one.
      weight_decay: see :func:`add_decoupled_weight_decay`.
      schedule: see :func:`add_decoupled_weight_decay`. Give the shape of the inner
        learning rate if that moves (:func:`split_schedule`).
      mask, cautious, toward: see :func:`add_decoupled_weight_decay`.

    Returns:
      An Optax optimizer; its ``update`` needs ``params``.

    Raises:
      TypeError, ValueError: if ``inner`` is not an Optax transformation; as
        :func:`add_decoupled_weight_decay`.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = od.decouple(optax.sgd(0.1), 1e-3)
      >>> updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
      >>> assert jnp.allclose(updates, -1e-3)
    """
    way_out = "Call the optimizer's factory first, e.g. decouple(optax.sgd(0.1), ...)."
    checks.check_transformation("inner", inner, way_out)
    return optax.chain(
        _watched(inner),
        add_decoupled_weight_decay(
            weight_decay, schedule, mask=mask, cautious=cautious, toward=toward
        ),
    )


def _watched(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer with a check at its first `init`: it must not accumulate, nor decay itself."""
    inner = optax.with_extra_args_support(inner)
    probe = probe_once(inner, _own_decay)

    def init_fn(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        if foreign.accumulates(state):
            raise TypeError(
                "inner accumulates gradients or updates and moves the weights only now and then, "
                "while decay around it would act at every call. Put the accumulation outside: "
                "optax.MultiSteps(decouple(...), every_k_schedule)."
            )
        probe(params)
        return state

    return optax.GradientTransformationExtraArgs(init_fn, inner.update)


def _own_decay(rows: Rows) -> str:
    """A warning that names the parameters which the optimizer decays by itself; "" if none."""
    paths = [path for path, *leaves in rows if _is_decay(*leaves)]
    if not paths:
        return ""
    return (
        f"inner decays {listing(paths, limit=3)} by itself, so that decay acts twice. Turn "
        "it off there, e.g. weight_decay=0.0, or do without decouple."
    )


def _is_decay(v: Leaf, up: Leaf, down: Leaf) -> bool:
    """Whether a part of the update turns with the sign of the parameters.

    A projection does too, but is no decay: it keeps the norm, or replaces the parameters.
    """
    v, up, down = (np.asarray(x, np.complex128).ravel() for x in (v, up, down))
    odd = (up - down) / 2
    removed = -np.vdot(v, odd).real / max(np.vdot(v, v).real, 1e-30)
    is_odd = np.linalg.norm(odd) > 1e-3 * np.linalg.norm(up)
    held = abs(np.linalg.norm(v + up) / max(np.linalg.norm(v), 1e-30) - 1) < 1e-6
    return bool(is_odd and 8e-8 < removed < 0.25 and not (held and removed > 1e-5))
