"""References that weights decay to: the r_t of the contract, for any `toward=` argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_decoupled._common import checks
from optax_decoupled._common.checks import brief
from optax_decoupled._common.dtypes import is_decayable, widen
from optax_decoupled._common.types import Leaf, PyTree, Scalar
from optax_decoupled._select.names import leaves_like
from optax_decoupled._select.stacked import Stacked, leading_axes, norm


class Toward(NamedTuple):
    """The reference that weights decay to, for any ``toward=`` argument.

    Attributes:
      init: a function of the parameters that returns the tree to keep in the optimizer's state.
      point: a function of that tree, the parameters and the extra arguments of ``tx.update``
        that returns the references: one array for each of ``jax.tree.leaves(params)``.
    """

    init: Callable[[optax.Params], PyTree]
    point: Callable[[PyTree, optax.Params, Mapping[str, object]], list[Leaf]]


def toward_init() -> Toward:
    r"""Weights decay to their values at ``tx.init``, :math:`r = θ_0`.

    The state holds a copy of these weights, in their dtype: as much memory as the parameters.
    With zero gradients the distance from them falls as :math:`\prod (1 - c_t)`.

    Returns:
      A :class:`types.Toward` for the ``toward=`` of any optimizer of this package.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_decoupled as od
      >>> tx = od.adamw(0.1, 1e-3, toward=od.toward_init())
      >>> start = jnp.array([3.0, -1.0])
      >>> moved = start + 1.0
      >>> updates, _ = tx.update(jnp.zeros(2), tx.init(start), moved)
      >>> assert jnp.allclose(updates, -1e-3, rtol=1e-4)

    References:
      L2-SP: Li et al., arXiv:1802.01483; L2 Init: Kumar et al., arXiv:2308.11958.
    """
    copy = lambda x: jnp.array(x, copy=True)  # not the parameter itself, which may be donated
    keep = lambda params: jax.tree.map(copy, params)
    return Toward(keep, lambda kept, params, _: leaves_like("reference", kept, params))


def toward_argument(name: str = "reference") -> Toward:
    r"""Weights decay to a tree passed to every update, :math:`r_t` = ``update(..., name=)``.

    For a moving reference, such as another network, an average of the weights or a prior's
    mean: ``tx.update(grads, state, params, reference=tree)``. :func:`optax.chain`,
    ``partition``, ``MultiSteps`` and ``nnx.Optimizer.update`` pass the argument on. The state
    holds no copy.

    Args:
      name: the keyword under which ``update`` gets the tree. It has the structure and shapes
        of the parameters, in any containers and dtype.

    Returns:
      A :class:`types.Toward`.

    Raises:
      TypeError: if ``name`` cannot be a keyword.
      ValueError: at ``update``, if the argument is missing or does not fit.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.sgdw(0.1, 1e-3, toward=od.toward_argument("teacher"))
      >>> params, teacher = jnp.zeros(2), jnp.array([1.0, 2.0])
      >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params, teacher=teacher)
      >>> assert jnp.allclose(updates, 1e-3 * teacher)
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"name={brief(name)} must be a keyword of tx.update, such as 'reference'.")

    def point(_: PyTree, params: optax.Params, extra: Mapping[str, object]) -> list[Leaf]:
        if extra.get(name) is None:
            given = f", and got {', '.join(sorted(extra))}" if extra else ""
            raise ValueError(
                f"{name}=None in tx.update{given}: the decay pulls the weights to it. Pass a tree "
                f"like the parameters: tx.update(grads, state, params, {name}=...)."
            )
        return leaves_like(name, extra[name], params)

    return Toward(lambda params: None, point)


def toward_rms(rms: Scalar | None = None, *, stacked: Stacked = None) -> Toward:
    r"""The rms of each weight decays to a target; its direction does not change.

    .. math:: r = θ · \text{rms} / \operatorname{rms}(θ), \qquad
        \operatorname{rms}(θ) = \|θ\| / \sqrt n

    Without updates the distance of a weight's rms from the target falls by :math:`1 - c_t` a
    step. A weight that is 0 stays 0.

    Args:
      rms: the target > 0, in the weights' own units. None: each weight's rms at
        ``tx.init``, one float32 number in the state.
      stacked: the number of leading axes over which each slice is a weight of its own, as in
        scanned or vmapped layers: one whole number for all, or a tree, prefix or function of
        such numbers as for a mask. None is 0.

    Returns:
      A :class:`types.Toward`.

    Raises:
      TypeError, ValueError: for an ``rms`` that is not positive; at ``init`` for a ``stacked``
        that does not fit.

    Examples:
      >>> import jax.numpy as jnp, optax_decoupled as od
      >>> tx = od.sgdw(0.1, 0.01 / 2, toward=od.toward_rms(1.0))
      >>> params = jnp.array([3.0, -3.0])
      >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
      >>> assert jnp.allclose(params + updates, jnp.array([1, -1]) * (1 + 2 * 0.995))

    References:
      Weight norm control: Loshchilov, arXiv:2311.11446.
    """
    if rms is not None:
        checks.check_positive("rms", rms, "It is the weights' target; None: their initial one.")

    def init(params: optax.Params) -> PyTree:
        axes = leading_axes(stacked, params)
        if rms is not None:
            return None
        leaves, treedef = jax.tree.flatten(params)
        rms_of = [_rms(*row) for row in zip(leaves, axes, strict=True)]
        return {"rms": treedef.unflatten(rms_of)}  # a name of its own: no weights

    def point(kept: PyTree, params: optax.Params, _: Mapping[str, object]) -> list[Leaf]:
        leaves = jax.tree.leaves(params)
        targets = jax.tree.leaves(kept["rms"]) if rms is None else [rms] * len(leaves)
        rows = zip(leaves, leading_axes(stacked, params), targets, strict=True)
        return [_with_rms(*row) for row in rows]

    return Toward(init, point)


def _rms(x: Leaf, axes: int) -> jax.Array:
    """Of every slice: of the shape of x's leading axes."""
    if not is_decayable(x):
        return jnp.zeros(jnp.shape(x)[:axes])
    size = max(1, math.prod(jnp.shape(x)[axes:]))
    return jnp.reshape(norm(jnp.asarray(x), axes), jnp.shape(x)[:axes]) / size**0.5


def _with_rms(x: Leaf, axes: int, target: Scalar) -> Leaf:
    if not is_decayable(x):
        return x
    rms = _rms(x, axes)
    target = jnp.asarray(target, rms.dtype)
    stretch = jnp.where(rms > 0, target / jnp.where(rms > 0, rms, 1), 1)
    wide = widen(jnp.asarray(x))
    return wide * jnp.expand_dims(stretch, tuple(range(axes, jnp.ndim(x)))).astype(wide.dtype)
