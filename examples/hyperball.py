"""
Steps on a sphere
=================

``hyperball`` sets directly the angle by which a step turns a matrix. Each matrix keeps its initial
norm, and the learning rate is the length of a step relative to it. In a layer with a norm behind it
decay has no other effect. ``optax.partition`` gives all other parameters to AdamW.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS, BATCH, WIDTH = 600, 64, 64
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
train, test = slice(0, 1000), slice(1000, None)


def layer(key, inputs, outputs):
    kernel = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"kernel": kernel, "scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "first": layer(keys[0], 64, WIDTH),
    "second": layer(keys[1], WIDTH, WIDTH),
    "head": layer(keys[2], WIDTH, 10),
}


def normed(x, part):
    x = x @ part["kernel"]
    x = (x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 1e-5)  # batch norm
    return x * part["scale"][None] + part["bias"][None]


def logits(params, x):
    for name in ("first", "second"):
        x = jax.nn.relu(normed(x, params[name]))
    return x @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params, batch):
    found = logits(params, images[batch])
    return optax.softmax_cross_entropy_with_integer_labels(found, labels[batch]).mean()


# %%
# ``hyperball`` trains the matrices with a norm behind them, AdamW the head, scales and biases. The
# schedule is part of the relative step.

eta = optax.cosine_decay_schedule(1.0, STEPS)
where = {
    name: {key: "sphere" if key == "kernel" and name != "head" else "rest" for key in part}
    for name, part in params.items()
}
rest = od.adamw(0.003, 1e-3, schedule=eta, mask=od.decay_mask)
sphere = od.hyperball(optax.scale_by_adam(), lambda step: 0.03 * eta(step))
optimizers = {
    "AdamW for all": rest,
    "hyperball for the matrices": optax.partition({"sphere": sphere, "rest": rest}, where),
}


def step(tx, carry, batch):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
    measured = od.weight_dynamics(params, updates)
    return (optax.apply_updates(params, updates), state), measured


# %%
# The norm stays, and the rotation is known before training: a step turns the matrix by about 0.03
# radians times the schedule. AdamW's rotation depends on gradients and norm.

batches = np.random.default_rng(1).integers(0, train.stop, (STEPS, BATCH))
_, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for color, (name, tx) in enumerate(optimizers.items()):
    run = jax.jit(
        lambda params, tx=tx: jax.lax.scan(
            lambda carry, batch: step(tx, carry, batch), (params, tx.init(params)), batches
        )
    )
    (trained, _), measured = run(params)
    error = 100 * jnp.mean(jnp.argmax(logits(trained, images[test]), -1) != labels[test])
    print(f"{name}: test error {error:.1f} %")
    for panel, tree in zip(panels, (measured.rms, measured.rotation), strict=True):
        panel.plot(tree["second"]["kernel"], color=f"C{color}", label=name)
panels[0].set(xlabel="step", title="rms of the second matrix", ylim=(0, None))
panels[1].set(xlabel="step", title="rotation per step, radians", yscale="log", ylim=(1e-5, 1))
panels[0].legend()
plt.show()
