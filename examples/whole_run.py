"""
A whole run, from the plan to the history
=========================================

A small network in bfloat16 with gradient accumulation on scikit-learn's digits. Its decay is
planned, checked, recorded, saved with Orbax, moved from ``optax.adamw`` to this package in the
middle of the run, looked at in the end, and compared with other values.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od
from optax_decoupled import sweep

UPDATES, MICRO, BATCH, RATE, PYTORCH = 600, 2, 32, 0.004, 0.4
images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.bfloat16), jnp.asarray(labels)

# %%
# The plan: what does a decay of 0.4 in PyTorch's convention do in 600 updates?

decay = od.weight_decay_from_pytorch(PYTORCH, RATE)
plan = od.plan_weight_decay(UPDATES, weight_decay=decay, learning_rate=RATE)
print(plan)
plan.plot()
plt.show()

# %%
# The network, and rules for what decays. A rule that matches nothing would raise an error. The
# report warns that bfloat16 rounds such a decay away, so the updates are rounded stochastically.


def network(rngs):
    hidden = [
        layer
        for size in (64, 96)
        for layer in (nnx.Linear(size, 96, rngs=rngs), nnx.LayerNorm(96, rngs=rngs), nnx.relu)
    ]
    return nnx.Sequential(*hidden, nnx.Linear(96, 10, rngs=rngs))


graphdef, params = nnx.split(network(nnx.Rngs(0)), nnx.Param)
params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
mask = od.decay_rules((".*/kernel", 1.0), (".*/(bias|scale)", 0.0))
theirs, ours = optax.adamw(RATE, weight_decay=PYTORCH, mask=mask), od.adamw(RATE, decay, mask=mask)
print(od.explain_weight_decay(ours, params))


def loss(params, x, y):
    logits = nnx.merge(graphdef, params, copy=True)(x).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


# %%
# Training records itself: one more member of the chain, inside of the accumulation.


def recorded(optimizer):
    return optax.MultiSteps(optax.chain(optimizer, od.record_weight_dynamics()), MICRO)


def train(tx, params, state, first, last):
    @jax.jit
    def step(params, state, key):
        batch = jax.random.randint(key, (BATCH,), 0, len(labels))
        grads = jax.grad(loss)(params, images[batch], labels[batch])
        updates, state = tx.update(grads, state, params)
        return od.apply_updates_with_stochastic_rounding(params, updates, key), state

    for t in range(first * MICRO, last * MICRO):
        params, state = step(params, state, jax.random.fold_in(jax.random.key(1), t))
    return params, state


before, after = recorded(theirs), recorded(ours)
params, state = train(before, params, before.init(params), 0, UPDATES // 2)
folder = Path(tempfile.mkdtemp(), "halfway")
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, {"params": params, "opt_state": state})

# %%
# The run is killed and resumed, now with this package's optimizer. Moments, counts and history are
# carried over. The next steps are those of ``optax.adamw``, up to rounding, which adds up in
# bfloat16. ``python -m optax_decoupled history FOLDER`` prints the history of such a checkpoint.

like = jax.tree.map(jnp.zeros_like, {"params": params, "opt_state": before.init(params)})
del params, state
with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(folder, like)
state = od.migrate_opt_state(restored["opt_state"], after, restored["params"])
params, state = train(after, restored["params"], state, UPDATES // 2, UPDATES)
print(f"loss {loss(params, images, labels):.3f}")
history = od.recorded_weight_dynamics(state, weight_decay=decay, learning_rate=RATE, mask=mask)
print(history)
history.plot()
plt.show()

# %%
# Would another decay or rate have been better? A sweep trains the network over a grid, each cell on
# a smaller task: 200 updates in float32 on 150 images, so its errors are higher. ``shorter`` is the
# decay that has the budget of the whole run.


def task(steps=200, few=150):
    draw = lambda key: nnx.split(network(nnx.Rngs(key)), nnx.Param)[1]
    batches = lambda seed: np.random.default_rng(seed).integers(0, few, (steps, BATCH), np.int32)
    x = images.astype(jnp.float32)

    def evaluate(params, _):
        wrong = nnx.merge(graphdef, params, copy=True)(x[few:]).argmax(-1) != labels[few:]
        return {"error": 100 * wrong.mean()}

    objective = lambda params, rest, batch, key: (loss(params, x[batch], labels[batch]), rest)
    return sweep.Task(lambda key: (draw(key), ()), objective, batches, evaluate, steps)


shorter = od.convert.transfer(decay, steps=(UPDATES, 200))
landscape = sweep.run(
    task(),
    lambda rate, decay: od.adamw(rate, decay, mask=mask),
    learning_rates=[RATE / 2, RATE, 2 * RATE],
    weight_decays=[shorter / 16, shorter / 4, shorter, 4 * shorter],
    seeds=range(4),
    progress=False,
)
print(landscape)
landscape.plot()
plt.show()
