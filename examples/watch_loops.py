"""
A history of the weights, from any loop
=======================================

One more member of the optimizer's chain records the size, rotation and growth of each weight, in
Linen's TrainState and in Flax NNX alike. The loop stays as it is. Ten lines write the last interval
to TensorBoard, or the whole history to a CSV file.
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
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits
from tensorboardX import SummaryWriter

import optax_decoupled as od

RATE, DECAY, STEPS, EVERY = 0.003, 0.005, 300, 20
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
tx = optax.chain(od.adamw(RATE, DECAY, mask=od.decay_mask), od.record_weight_dynamics())
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
folder = Path(tempfile.mkdtemp())

# %%
# In Linen, to TensorBoard. The metrics are a flat dict, as W&B and clu take it, too.

network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
params = network.init(jax.random.key(0), images[:1])["params"]
train_state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)


@jax.jit
def linen_step(state):
    loss = lambda p: cross_entropy(state.apply_fn({"params": p}, images), labels).mean()
    return state.apply_gradients(grads=jax.grad(loss)(state.params))


with SummaryWriter(str(folder)) as writer:
    for t in range(STEPS):
        train_state = linen_step(train_state)
        if t % EVERY == EVERY - 1:
            history = od.recorded_weight_dynamics(train_state)
            for name, value in history.metrics().items():
                writer.add_scalar(name, value, t)
print(*(f"{name}: {value:.3g}" for name, value in list(history.metrics().items())[:5]), sep="\n")

# %%
# In NNX, to a CSV file at the end of the run. The optimizer changes the model in place; the
# recorder keeps the samples that it needs.

model = nnx.Sequential(
    nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(128, 10, rngs=nnx.Rngs(1))
)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def nnx_step(model, optimizer):
    grads = nnx.grad(lambda m: cross_entropy(m(images), labels).mean())(model)
    optimizer.update(model, grads)


for _ in range(STEPS):
    nnx_step(model, optimizer)

known = dict(weight_decay=DECAY, learning_rate=RATE, mask=od.decay_mask)
history = od.recorded_weight_dynamics(optimizer, **known)
with (folder / "history.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["updates", "weight", "rms", "rotation", "growth"])
    for row in history.rows:
        columns = zip(history.steps, row.rms, row.rotation, row.growth, strict=True)
        writer.writerows([step, row.path, *numbers] for step, *numbers in columns)

# %%
# The printed history says what to make of it. Here the run is too short for its decay.

print(history)
history.plot()
plt.show()
