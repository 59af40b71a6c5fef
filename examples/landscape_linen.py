"""
A landscape that survives a kill (Flax Linen)
=============================================

A sweep with a ``directory`` continues where it was killed, because it stores each finished cell.
Every cell of the grid of learning rates and decays is trained with one compilation.
"""

import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import optax_decoupled as od
from optax_decoupled import sweep

STEPS = 120
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images = jnp.asarray(images[order] / 16, jnp.float32)
labels = jnp.asarray(labels[order], jnp.int32)
TRAIN = 150  # the first are for training, the others for the test


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(64)(x))
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x)


model = Classifier()


def init(key):
    variables = model.init(key, images[:1], train=False)
    return variables["params"], variables["batch_stats"]


def loss(params, batch_stats, batch, key):
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images[batch],
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
    return losses.mean(), changed["batch_stats"]


def evaluate(params, batch_stats):
    logits = model.apply(
        {"params": params, "batch_stats": batch_stats}, images[TRAIN:], train=False
    )
    return {"error": 100 * (logits.argmax(-1) != labels[TRAIN:]).mean()}


def batches(seed):
    return np.random.default_rng(seed).integers(0, TRAIN, (STEPS, 50), np.int32)


def adamw(learning_rate, weight_decay):
    eta = optax.cosine_decay_schedule(1.0, STEPS)
    return od.adamw(learning_rate, weight_decay, schedule=eta, mask=od.decay_mask)


task = sweep.Task(init, loss, batches, evaluate, STEPS)
grid = {
    "learning_rates": [0.001 * 2.0**k for k in range(5)],
    "weight_decays": [2.0**k for k in range(-10, 0)],
    "seeds": range(3),
}
with tempfile.TemporaryDirectory() as directory:  # use a permanent one
    landscape = sweep.run(task, adamw, **grid, directory=directory)
    again = sweep.run(task, adamw, **grid, directory=directory)  # trains no cell
assert np.array_equal(again.metrics["error"], landscape.metrics["error"])

best = landscape.best()
print(f"best: learning rate {best.learning_rate}, weight decay {best.weight_decay:.2g}")
print(f"test error there: {best.mean:.1f} ± {best.spread:.1f} %")
assert best.mean < 10
landscape.plot()
plt.show()
