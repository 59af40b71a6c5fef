"""Which share of a decay c is applied to bfloat16 weights, by rounding."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od

decays = 2.0 ** np.arange(-16, -3.9, 0.25)
weights = jnp.exp2(jax.random.uniform(jax.random.key(0), (200_000,))).astype(jnp.bfloat16)


def kept(apply, c):
    """The mean of the fraction removed, relative to c."""
    new = apply(weights, -c * weights.astype(jnp.float32))
    removed = 1 - new.astype(jnp.float32) / weights.astype(jnp.float32)
    return float(removed.mean()) / c


key = jax.random.key(1)
stochastic = lambda p, u: od.apply_updates_with_stochastic_rounding(p, u, key)
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for name, apply in {"to nearest": optax.apply_updates, "stochastic": stochastic}.items():
    ax.semilogx(decays, [kept(apply, c) for c in decays], "o-", ms=3, base=2, label=name)
ax.set(xlabel="decay per step, $c$", ylabel="share of it that is applied")
ax.legend()
