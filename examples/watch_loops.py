"""
A table of the weights, from any loop
=====================================

Ten more lines write the size, rotation and growth of each weight to a CSV file, in training loops
of Flax NNX and Flax Linen. Every tenth step is enough to see a trend.
"""

import csv
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS, EVERY = 200, 10
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
tx = od.adamw(0.003, 0.005, mask=od.decay_mask)
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
folder = Path(tempfile.mkdtemp())


def write(writer, step, dynamics):
    """One line for each weight: step, name, rms, rotation, growth."""
    for (path, rms), *others in zip(
        jax.tree_util.tree_leaves_with_path(dynamics.rms),
        *map(jax.tree.leaves, dynamics[1:]),
        strict=True,
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        writer.writerow([step, name, *map(float, (rms, *others))])


# %%
# In Linen a step has the updates.

network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
params = network.init(jax.random.key(0), images[:1])["params"]


@jax.jit
def linen_step(params, state):
    loss = lambda p: cross_entropy(network.apply({"params": p}, images), labels).mean()
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state, od.weight_dynamics(params, updates)


state = tx.init(params)
with (folder / "linen.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    for t in range(STEPS):
        params, state, dynamics = linen_step(params, state)
        if t % EVERY == 0:
            write(writer, t, dynamics)

# %%
# The optimizer of NNX changes the model in place, so the update is the difference.

model = nnx.Sequential(
    nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(128, 10, rngs=nnx.Rngs(1))
)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    grads = nnx.grad(lambda m: cross_entropy(m(images), labels).mean())(model)
    optimizer.update(model, grads)
    updates = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), before)
    return od.weight_dynamics(before, updates)


with (folder / "nnx.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    for t in range(STEPS):
        dynamics = nnx_step(model, optimizer)
        if t % EVERY == 0:
            write(writer, t, dynamics)

# %%
# Above 0 a weight grows, below 0 it shrinks. In equilibrium the growth is 0 on average.

for name in ("linen.csv", "nnx.csv"):
    lines = list(csv.reader((folder / name).open()))
    print(name, len(lines), "lines, the last:", *lines[-1])
    for path in dict.fromkeys(line[1] for line in lines if line[1].endswith("kernel")):
        rows = [line for line in lines if line[1] == path]
        plt.plot([int(r[0]) for r in rows], [float(r[4]) for r in rows], label=f"{name}: {path}")
plt.gca().set(xlabel="step", title="growth of the squared length per step")
plt.legend(fontsize="small")
plt.show()
