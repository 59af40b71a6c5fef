"""
Decay layer by layer
====================

Rules set the decay of each parameter: regular expressions over whole parameter paths, of which the
first that matches applies. One network is trained with three sets of rules, to compare the norms of
its kernels.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS = 300
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(64, 64, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.embed(x))
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


graphdef, params = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
masks = {
    "kernels alike": od.decay_mask,
    "embed at half": od.decay_rules(("embed/kernel", 0.5), (".*/kernel", 1.0), (".*", 0.0)),
    "only the head": od.decay_rules(("head/kernel", 1.0), default=0.0),
}

# %%
# The report shows the parameters that a set of rules selects, before training:

print(od.explain_weight_decay(od.adamw(0.003, 0.005, mask=masks["embed at half"]), params))

# %%
# A rule that matches nothing raises an error:

try:
    od.adamw(0.003, 0.005, mask=od.decay_rules(("embd/kernel", 0.5), default=1.0)).init(params)
except ValueError as error:
    print(error)


# %%
# A kernel that decays more ends with a smaller norm.


def loss_fn(params, x, y):
    logits = nnx.merge(graphdef, params, copy=True)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(mask, params):
    tx = od.adamw(0.003, 0.005, mask=mask)

    @jax.jit
    def step(params, state, t):
        batch = jax.random.randint(jax.random.key(t), (64,), 0, len(labels))
        grads = jax.grad(loss_fn)(params, images[batch], labels[batch])
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        layers = params["embed"], params["layers"][0], params["head"]
        norms = jnp.stack([jnp.linalg.norm(layer["kernel"][...]) for layer in layers])
        return params, state, norms

    state, norms = tx.init(params), []
    for t in range(STEPS):
        params, state, now = step(params, state, t)
        norms.append(now)
    return np.stack(norms, axis=1)


figure, axes = plt.subplots(1, 3, sharey=True, figsize=(9, 3), layout="constrained")
for name, mask in masks.items():
    for ax, curve in zip(axes, train(mask, params), strict=True):
        ax.plot(curve, label=name)
for ax, kernel in zip(axes, ("embed", "layers/0", "head"), strict=True):
    ax.set(title=f"{kernel}/kernel", xlabel="step")
axes[0].set_ylabel("norm")
axes[0].legend()
plt.show()
