"""How parameters and moments of AdamW may be stored: what is timed, and what is trained."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_decoupled as od


class Storage(NamedTuple):
    """Attributes:
    dtype: of the parameters.
    stochastic: whether they are rounded stochastically, else to nearest.
    master: whether the optimizer keeps a float32 copy of them.
    moments: the arguments `mu_dtype` and `nu_dtype`.
    """

    dtype: Any
    stochastic: bool = False
    master: bool = False
    moments: Mapping[str, Any] = MappingProxyType({})

    def adamw(self, *args: Any, **options: Any) -> optax.GradientTransformation:
        tx = od.adamw(*args, **self.moments, **options)
        return float32_master(tx) if self.master else tx


F32, BF16 = jnp.float32, jnp.bfloat16
STORAGE = {
    "float32": Storage(F32),
    "float32, mu bfloat16": Storage(F32, moments={"mu_dtype": BF16}),
    "bfloat16 + float32 master": Storage(BF16, master=True),
    "bfloat16, stochastic, mu float32": Storage(BF16, stochastic=True, moments={"mu_dtype": F32}),
    "bfloat16, stochastic": Storage(BF16, stochastic=True),
    "bfloat16, to nearest, mu float32": Storage(BF16, moments={"mu_dtype": F32}),
    "bfloat16, to nearest": Storage(BF16),
    "bfloat16, to nearest, nu bfloat16": Storage(BF16, moments={"nu_dtype": BF16}),
}


def float32_master(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The usual alternative to stochastic rounding: the step updates a float32 copy.

    The update, in float32, is what brings the narrow parameters to it.
    """

    def widened(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Any:
        master = widened(params)
        return master, inner.init(master)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        master, inner_state = state
        updates, inner_state = inner.update(widened(grads), inner_state, master)
        master = optax.apply_updates(master, updates)
        updates = jax.tree.map(lambda m, p: m - p.astype(jnp.float32), master, params)
        return updates, (master, inner_state)

    return optax.GradientTransformation(init, update)
