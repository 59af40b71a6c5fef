"""L2 regularization, the coupled twin of weight decay, to compare with.

Its gradient is added before momentum and preconditioner. Both rescale it, as the learning rate
does: that is the coupling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.types import Leaf, Mask, PyTree, Scalar
from optax_decoupled._select.masks import entries_without_parameter, leaf_multipliers
from optax_decoupled._select.multipliers import broadcasts
from optax_decoupled._select.names import named_leaves
from optax_decoupled._transforms.decay import map_decaying, required


def l2_to_grad(l2: Scalar, *, mask: Mask = None) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of an L2 penalty, :math:`g + λ' w ⊙ θ`: the *coupled* form.

    The gradient of :math:`f(θ) + \tfrac{λ'}{2} \sum w ⊙ θ^2`. It stands **first** in a
    chain, so momentum and preconditioner see it. For plain SGD of rate :math:`α` it
    equals a decay of :math:`λ = λ' α` (Proposition 1, :func:`convert.to_l2`);
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
        if np.size(leaf) and (isinstance(leaf, np.ndarray) or checks.is_static(leaf)):
            name = f"scale at {'/'.join(path)!r}"
            way_out = "It is the inverse of the preconditioner."
            checks.check_positive(name, np.min(leaf), way_out)
    return _stateless_l2(
        "scale_adjusted_l2_to_grad", l2, mask, lambda params: (_scale_leaves(scale, params),)
    )


def _stateless_l2(
    name: str, l2: Scalar, mask: Mask, scales: Callable[[optax.Params], Sequence[list[Leaf]]]
) -> optax.GradientTransformationExtraArgs:
    checks.check_nonnegative("l2", l2, "It is the L2 coefficient λ', e.g. 1e-4.")

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
    foreign = entries_without_parameter(entries, {path for path, _ in leaves}, empty)
    if missing or foreign:
        raise ValueError(
            "scale does not have the structure of the parameters: it lacks "
            f"{['/'.join(path) for path in missing]} and has besides "
            f"{['/'.join(path) for path in foreign]}. Build it with jax.tree.map over them."
        )
    for path, leaf in leaves:
        shape, target = jnp.shape(entries[path]), jnp.shape(leaf)
        if not broadcasts(shape, target):
            raise ValueError(
                f"scale at {'/'.join(path)!r} has shape {shape}; it must broadcast to the "
                f"parameter's shape {target}. Pass one positive value for each element."
            )
    return [entries[path] for path, _ in leaves]
