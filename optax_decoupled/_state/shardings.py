"""Shardings of optimizer states."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from optax_decoupled._common.types import Leaf, Path
from optax_decoupled._select.names import named_leaves, unboxed


def opt_state_shardings(tx: optax.GradientTransformation, params: optax.Params) -> Any:
    """Shardings for an optimizer state: moments like their parameters, the rest replicated.

    ``jax.jit(tx.init)(params)`` may leave the moments on one device, because they are
    zeros that depend on no sharded value. Pass their shardings instead::

        init = jax.jit(tx.init, out_shardings=opt_state_shardings(tx, params))

    Args:
      tx: an Optax transformation whose ``init`` can be traced.
      params: the parameters, or :class:`jax.ShapeDtypeStruct` for them, each with a
        ``sharding``.

    Returns:
      A tree of :class:`jax.sharding.Sharding` of the structure of ``tx.init(params)``.
      A leaf with the shape of a parameter and a path that ends like the parameter's has the
      parameter's sharding. Every other leaf is replicated over the same mesh.

    Raises:
      ValueError: for a parameter without a sharding, or parameters on several meshes.

    Examples:
      >>> import jax, jax.numpy as jnp, optax_decoupled as od
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
      >>> params = {"w": jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)}
      >>> shardings = od.opt_state_shardings(od.adamw(1e-3, 1e-4), params)
      >>> assert shardings[0].mu["w"] == shardings[0].nu["w"] == sharding
      >>> assert shardings[0].count.spec == jax.sharding.PartitionSpec()
    """
    replicated = _replicated(params)
    flat, treedef = jax.tree_util.tree_flatten_with_path(jax.eval_shape(tx.init, params))
    paths = unboxed([keys for keys, _ in flat])
    named = [(path, leaf) for path, (_, leaf) in zip(paths, flat, strict=True)]
    by_path = {(path, leaf.shape): leaf.sharding for path, leaf in named_leaves(params)[0]}
    found = _matched(named, by_path)
    if not any(found):  # the optimizer inside optax.lookahead sees a part of the tree alone
        found = _matched(named, _by_suffix(params))
    return jax.tree.unflatten(treedef, [sharding or replicated for sharding in found])


_Shardings = dict[tuple[Path, tuple[int, ...]], Sharding]


def _matched(named: list[tuple[Path, Leaf]], like: _Shardings) -> list[Sharding | None]:
    """For each leaf of a state, the sharding of the parameter whose path ends its own.

    One more key may follow the parameter's path, as in SM3's lists.
    """
    ends = lambda path, leaf: [*_suffixes(path, leaf), *_suffixes(path[:-1], leaf)]
    return [next((like[x] for x in ends(*each) if x in like), None) for each in named]


def _by_suffix(params: optax.Params) -> _Shardings:
    """Shardings by every ending of the parameters' paths: a state may begin paths otherwise."""
    found: _Shardings = {}
    for path, leaf in named_leaves(params)[0]:
        for end in _suffixes(path, leaf)[:-1]:  # the last has no key
            found.setdefault(end, leaf.sharding)
    return found


def _suffixes(path: Path, leaf: Leaf) -> list[tuple[Path, tuple[int, ...]]]:
    """All endings of a path, the longest first."""
    return [(path[n:], leaf.shape) for n in range(len(path) + 1)]


def _replicated(params: optax.Params) -> Sharding:
    leaves, _ = named_leaves(params)
    for path, leaf in leaves:
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(
                f"params at {'/'.join(path)!r} has no sharding. Pass placed arrays, or "
                "jax.eval_shape of an init function jitted with out_shardings, or "
                "jax.ShapeDtypeStruct(shape, dtype, sharding=...)."
            )
    shardings = {leaf.sharding for _, leaf in leaves}
    if shardings and all(isinstance(s, NamedSharding) for s in shardings):
        meshes = {s.mesh for s in shardings}
        if len(meshes) == 1:
            return NamedSharding(meshes.pop(), PartitionSpec())
    elif len(shardings) == 1:
        return shardings.pop()
    raise ValueError(
        f"params lie on different meshes or devices: {shardings}. "
        "Scalars must be replicated over one mesh: place all parameters on it."
    )
