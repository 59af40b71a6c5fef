"""
A landscape of your own model (Flax NNX)
========================================

A network with batch norm and dropout is trained with every learning rate and every L2 coefficient
of a grid. With batch norm only the product of the two matters, so the best cells are on a diagonal.
"""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od
from optax_decoupled import sweep

STEPS = 120
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images = jnp.asarray(images[order] / 16, jnp.float32)
labels = jnp.asarray(labels[order], jnp.int32)
TRAIN = 150  # the first are for training, the others for the test


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x, key=None):
        train = key is not None
        x = nnx.relu(self.norm(self.hidden(x), use_running_average=not train))
        return self.head(self.dropout(x, deterministic=not train, rngs=key))


# NNX models are objects: split them into the static part, the parameters and all other variables.
graphdef, _, _ = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param, ...)


def init(key):
    _, params, rest = nnx.split(Classifier(nnx.Rngs(key)), nnx.Param, ...)
    return params, rest


def loss(params, rest, batch, key):
    model = nnx.merge(graphdef, params, rest, copy=True)
    logits = model(images[batch], key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
    return losses.mean(), nnx.split(model, nnx.Param, ...)[2]  # the new batch statistics


def evaluate(params, rest):
    model = nnx.merge(graphdef, params, rest, copy=True)
    wrong = model(images[TRAIN:]).argmax(-1) != labels[TRAIN:]
    return {"error": 100 * wrong.mean()}


def batches(seed):
    return np.random.default_rng(seed).integers(0, TRAIN, (STEPS, 50), np.int32)


def sgd_with_l2(learning_rate, l2):
    eta = optax.cosine_decay_schedule(1.0, STEPS)
    return od.sgd_l2(learning_rate, l2, schedule=eta, mask=od.decay_mask)


landscape = sweep.run(
    sweep.Task(init, loss, batches, evaluate, STEPS),
    sgd_with_l2,
    learning_rates=[0.02 * 2.0**k for k in range(5)],
    weight_decays=[2.0**k for k in range(-9, 1)],
    seeds=range(3),
)
best = landscape.best()
print(f"best: learning rate {best.learning_rate}, L2 {best.weight_decay:.2g}")
print(f"test error there: {best.mean:.1f} ± {best.spread:.1f} %")
try:
    found = landscape.valley_slope()
    print(f"as the rate doubles, log2 of the best L2 coefficient moves by {found.slope:+.2f}")
except ValueError as refusal:
    print(refusal)
assert best.mean < 10
landscape.plot()
plt.show()
