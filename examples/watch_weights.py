"""
Watch the weights
=================

In a layer with batch norm, rms and rotation of the weights can be predicted before training: the
output does not depend on their length, so decay sets both. In a layer without norm the loss sets
the length, and the prediction is only a scale to compare with. The network learns digits.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS, BATCH, RATE, DECAY, B1 = 3000, 64, 0.001, 0.002, 0.9
images, labels = load_digits(return_X_y=True)
images = images[:, images.std(axis=0) > 0]  # black pixels give no gradient
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)


class Digits(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(images.shape[1], 128, rngs=rngs)
        self.second = nnx.Linear(128, 128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(128, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return self.head(x)


graph, params, rest = nnx.split(Digits(nnx.Rngs(0)), nnx.Param, ...)
eta = optax.cosine_decay_schedule(1.0, STEPS)
tx = od.adamw(RATE, DECAY, schedule=eta, b1=B1, mask=od.decay_mask)


def loss(params, rest, key):
    model = nnx.merge(graph, params, rest, copy=True)
    batch = jax.random.randint(key, (BATCH,), 0, len(images))
    noise = 0.5 * jax.random.normal(key, (BATCH, images.shape[1]))  # or the loss vanishes
    logits = model(images[batch] + noise)
    error = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()
    return error, nnx.split(model, nnx.Param, ...)[2]


@jax.jit
def step(carry, key):
    params, rest, state = carry
    (error, rest), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, key)
    updates, state = tx.update(grads, state, params)
    measured = od.weight_dynamics(params, updates)
    return (optax.apply_updates(params, updates), rest, state), (error, measured)


carry, log = (params, rest, tx.init(params)), []
for key in jax.random.split(jax.random.key(1), STEPS):
    carry, report = step(carry, key)
    log.append(report)
errors, measured = jax.tree.map(lambda *x: np.stack(x), *log)

# %%
# The prediction starts from the rms at init. The predicted rotation is the size of AdamW's update
# divided by the length of the weight.

_, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for i, name in enumerate(("first", "second", "head")):
    rms, rotation, growth = (np.asarray(tree[name]["kernel"][...]) for tree in measured)
    expected = od.equilibrium.rms_over_run(RATE, DECAY, eta, STEPS, rms[0])[:-1]
    turns = RATE * np.asarray(eta(np.arange(STEPS))) * ((1 - B1) / (1 + B1)) ** 0.5 / expected
    for panel, values, line in zip(panels, (rms, rotation), (expected, turns), strict=True):
        panel.plot(values, color=f"C{i}", alpha=0.5, lw=1, label=name)
        panel.plot(line, color=f"C{i}", ls="--")
    late = slice(STEPS // 4, STEPS * 3 // 4)
    off = np.mean(rms[late] / expected[late]), np.mean(rotation[late] / turns[late])
    print(f"{name:7} measured over predicted: rms {off[0]:.2f}, rotation {off[1]:.2f}")
print(f"training loss {errors[-100:].mean():.4f}")
panels[0].set(xlabel="step", title="rms of the weights (predicted: dashed)", ylim=(0, None))
panels[1].set(xlabel="step", title="rotation per step, radians", yscale="log", ylim=(1e-5, 1e-1))
panels[0].legend()
plt.show()
