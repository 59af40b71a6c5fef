"""
Sharded training on eight devices
=================================

Training on eight devices takes the same steps as on one. The parameters are split over a mesh, and
the optimizer's moments with them. The eight devices are parts of this machine's CPU; on
accelerators remove the first setting.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before JAX starts

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS = 30
images, labels = load_digits(return_X_y=True)
images, labels = images[:1792].astype(np.float32) / 16, labels[:1792]  # 8 equal parts
keys = jax.random.split(jax.random.key(0))
params = {
    "hidden": {"kernel": jax.random.normal(keys[0], (64, 512)) / 8, "bias": jnp.zeros(512)},
    "head": {"kernel": jax.random.normal(keys[1], (512, 16)) / 23, "bias": jnp.zeros(16)},
}
tx = od.adamw(0.01, 1e-3, schedule=optax.cosine_decay_schedule(1.0, STEPS), mask=od.decay_mask)


def loss_fn(params, x, y):
    x = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    logits = x @ params["head"]["kernel"] + params["head"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(params, state, x, y):
    losses = []
    for _ in range(STEPS):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return params, state, losses


# %%
# The data and every parameter are split over one axis. ``opt_state_shardings`` places each moment
# like its parameter and the counters on all devices. Without it ``init`` may put the whole state on
# one device.

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
sharded_params = jax.device_put(params, split)
init = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, sharded_params))
sharded_params, sharded_state, sharded_losses = train(
    sharded_params, init(sharded_params), *jax.device_put((images, labels), split)
)

# %%
# The same training on one device, for comparison.

single_params, single_state, losses = train(params, tx.init(params), images, labels)
np.testing.assert_allclose(sharded_losses, losses, rtol=1e-3)
print(f"loss after {STEPS} steps: {sharded_losses[-1]:.4f} on 8 devices, {losses[-1]:.4f} on one")


def kilobytes(tree):
    """The kilobytes of the tree's arrays on each device."""
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    sizes = np.zeros(8)
    for shard in shards:
        sizes[shard.device.id] += shard.data.nbytes / 1000
    return sizes


figure, axes = plt.subplots(1, 2, sharey=True, figsize=(8, 3), layout="constrained")
runs = {"one device": (single_params, single_state), "eight": (sharded_params, sharded_state)}
for ax, (title, (weights, state)) in zip(axes, runs.items(), strict=True):
    ax.bar(range(8), kilobytes(state), bottom=kilobytes(weights), label="optimizer state")
    ax.bar(range(8), kilobytes(weights), label="parameters")
    ax.set(title=title, xlabel="device", xticks=range(8))
axes[0].set_ylabel("kB")
axes[0].legend()
plt.show()
