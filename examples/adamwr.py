"""
AdamWR: warm restarts and snapshots
===================================

Training with AdamWR can stop at the end of any cycle, where the step is near zero. This example
keeps the weights at each of these steps and averages their predictions.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od

CYCLES = dict(first_cycle_steps=40, cycle_mult=2)
STEPS, TRAIN = 600, 300  # cycles end after 40, 120, 280 and 600 steps
images, labels = load_digits(return_X_y=True)
order = jax.random.permutation(jax.random.key(0), len(labels))
images, labels = jnp.asarray(images / 16, jnp.float32)[order], jnp.asarray(labels)[order]


class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.head = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


graphdef, params = nnx.split(Classifier(nnx.Rngs(0)), nnx.Param)
tx = od.adamwr(0.01, 0.05, **CYCLES, mask=od.decay_mask)


def loss_fn(params, x, y):
    logits = nnx.merge(graphdef, params, copy=True)(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, state, t):
    batch = jax.random.randint(jax.random.key(t), (50,), 0, TRAIN)
    grads = jax.grad(loss_fn)(params, images[batch], labels[batch])
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    predicted = jax.nn.softmax(nnx.merge(graphdef, params, copy=True)(images[TRAIN:]))
    return params, state, predicted


@jax.jit
def error(predicted):
    return 100 * (predicted.argmax(-1) != labels[TRAIN:]).mean()


# %%
# ``schedules.warm_restart_position`` returns the cycle of a step, the step within it and the length
# of the cycle. To resume a run, only the optimizer's state is needed: the schedules are pure
# functions of the step.

_, within, length = od.schedules.warm_restart_position(jnp.arange(STEPS), **CYCLES)
ends = jnp.flatnonzero(within == length - 1).tolist()

state, errors, decays, snapshots = tx.init(params), [], [], {}
for t in range(STEPS):
    params, state, predicted = step(params, state, t)
    errors.append(error(predicted))
    decays.append(optax.tree.get(state, "decay_rate"))
    if t in ends:
        snapshots[t] = predicted  # in a real run, save params

for t, predicted in snapshots.items():
    print(f"after {t + 1:3} steps: test error {error(predicted):.1f} %")
print(f"all {len(snapshots)} together: test error {error(sum(snapshots.values())):.1f} %")
assert ends == [39, 119, 279, 599]

# %%
# In a cycle of :math:`T_i` steps the decay begins at :math:`0.05/\sqrt{T_i}` and is annealed like
# the step.

figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
top.semilogy(errors, lw=1)
top.plot(list(snapshots), [errors[t] for t in snapshots], "o", label="kept")
top.set(ylabel="test error, %")
top.legend()
bottom.plot(decays)
bottom.set(xlabel="step", ylabel="fraction removed per step")
plt.show()
