"""A program for the checkpoint tests: AdamWR on a small network, saved with Orbax as it goes.

python checkpointed_run.py DIRECTORY FIRST LAST OUT restores step FIRST (0: starts afresh),
trains up to step LAST, saving every 10 steps, and writes the final parameters to OUT.npz.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import optax_decoupled as od

# Megabytes of state, so that a save takes long enough to be interrupted.
SHAPES = {"up": (64, 4096), "down": (4096, 64), "bias": (64,)}


def make():
    return od.adamwr(0.003, 0.05, first_cycle_steps=15, mask=od.decay_mask)


def start():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    params = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    return {"params": params, "opt_state": make().init(params)}


@jax.jit
def step(train_state, t):
    x = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), (32, 64))

    def loss(params):
        return jnp.mean(
            (jnp.tanh(x @ params["up"]) @ params["down"] + params["bias"][None] - x) ** 2
        )

    params, opt_state = train_state["params"], train_state["opt_state"]
    updates, opt_state = make().update(jax.grad(loss)(params), opt_state, params)
    return {"params": optax.apply_updates(params, updates), "opt_state": opt_state}


def main(directory, first, last, out):
    path = pathlib.Path(directory)
    train_state = start()
    with ocp.CheckpointManager(
        path, options=ocp.CheckpointManagerOptions(max_to_keep=3)
    ) as manager:
        if first:
            train_state = manager.restore(first, args=ocp.args.StandardRestore(train_state))
        for t in range(first, last):
            train_state = step(train_state, t)
            if (t + 1) % 10 == 0:
                print(f"saving {t + 1}", flush=True)
                manager.save(t + 1, args=ocp.args.StandardSave(train_state))
                manager.wait_until_finished()
                print(f"saved {t + 1}", flush=True)
    np.savez(out, **train_state["params"])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
