"""
Quickstart
==========

A small network in plain JAX is trained on scikit-learn's diabetes data, with and without decay.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import scale

import optax_decoupled as od

STEPS, TRAIN = 600, 200
inputs, targets = load_diabetes(return_X_y=True)  # 442 patients, 10 features
order = np.random.default_rng(0).permutation(len(targets))
inputs = jnp.asarray(scale(inputs[order]), jnp.float32)
targets = jnp.asarray(scale(targets[order]), jnp.float32)[:, None]
keys = jax.random.split(jax.random.key(0))
params = {
    "hidden": {"kernel": jax.random.normal(keys[0], (10, 64)) / 3, "bias": jnp.zeros((1, 64))},
    "head": {"kernel": jax.random.normal(keys[1], (64, 1)) / 8, "bias": jnp.zeros((1, 1))},
}

# %%
# A full step removes half a percent of a weight. :math:`η_t` anneals step and decay alike, and
# ``decay_mask`` spares the biases.

eta = optax.cosine_decay_schedule(1.0, STEPS)
optimizers = {
    "with decay": od.adamw(0.01, 0.005, schedule=eta, mask=od.decay_mask),
    "without": od.adamw(0.01, 0.0, schedule=eta, mask=od.decay_mask),
}
print(od.explain_weight_decay(optimizers["with decay"], params))

# %%
# The training loop is the usual one of Optax. ``update`` must get the parameters.


def mean_squared_error(params, x, y):
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.mean((x @ params["head"]["kernel"] + params["head"]["bias"] - y) ** 2)


def train(tx, params):
    @jax.jit
    def step(params, state):
        grads = jax.grad(mean_squared_error)(params, inputs[:TRAIN], targets[:TRAIN])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        norm = jnp.linalg.norm(params["hidden"]["kernel"])
        error = mean_squared_error(params, inputs[TRAIN:], targets[TRAIN:])
        return params, state, jnp.stack([norm, error, optax.tree.get(state, "decay_rate")])

    state, history = tx.init(params), []
    for _ in range(STEPS):
        params, state, measured = step(params, state)
        history.append(measured)
    return np.stack(history, axis=1)


# %%
# Log the state's ``decay_rate``: it is the fraction that the last step removed. Targets have
# variance 1, so a constant prediction has an error of 1.

figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for name, tx in optimizers.items():
    history = train(tx, params)
    print(f"{name}: error on held-out patients {history[1, -1]:.2f}")
    for ax, curve in zip(axes, history, strict=True):
        ax.plot(curve, label=name)
for ax, title in zip(axes, ("norm of a kernel", "error, held out", "decay rate"), strict=True):
    ax.set(title=title, xlabel="step")
axes[1].legend()
plt.show()
