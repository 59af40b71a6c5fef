"""
Flax Linen's TrainState, with warm restarts
===========================================

SGDW with warm restarts works in a ``TrainState`` like any Optax optimizer. This example keeps the
weights at the end of each cycle, where the step is near zero.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import optax_decoupled as od

CYCLES = dict(first_cycle_steps=50, cycle_mult=2)
STEPS = 350  # cycles end after 50, 150 and 350 steps
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
train_images, train_labels = images[:1200], labels[:1200]


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.LayerNorm()(nn.Dense(128)(x)))
        return nn.Dense(10)(x)


model = Classifier()
state = TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), images[:1])["params"],
    tx=od.sgdwr(0.1, 0.02, **CYCLES, mask=od.decay_mask),
)


@jax.jit
def step(state, x, y):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


_, within, length = od.schedules.warm_restart_position(jnp.arange(STEPS), **CYCLES)
ends = jnp.flatnonzero(within == length - 1).tolist()
kept, losses = {}, []
for t in range(STEPS):
    batch = jax.random.randint(jax.random.key(t), (64,), 0, len(train_images))
    state, loss = step(state, train_images[batch], train_labels[batch])
    losses.append(loss)
    if t in ends:
        kept[t] = state.params

for t, params in kept.items():
    logits = model.apply({"params": params}, images[1200:])
    error = (logits.argmax(-1) != labels[1200:]).mean()
    print(f"after {t + 1} steps: test error {100 * error:.1f} %")
assert list(kept) == [49, 149, 349]
assert error < 0.12

plt.semilogy(losses)
plt.plot(list(kept), [losses[t] for t in kept], "o", label="kept")
plt.gca().set(xlabel="step", ylabel="training loss")
plt.legend()
plt.show()
