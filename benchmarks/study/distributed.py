"""Does training on many processes take the steps of one? Prints the losses.

An MLP on scikit-learn's digits, AdamW with warm restarts; batches are split over all devices,
and so are the parameters and the optimizer's moments. On one machine:

    python -m benchmarks.study.distributed

On a cluster (Slurm, Cloud TPU, Kubernetes…) start the same command with `--cluster` on every
host: JAX finds the others. Anywhere else, name the coordinator:

    python -m benchmarks.study.distributed --coordinator HOST:PORT --processes 2 --process 0
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od
from benchmarks.lib.data import digits
from benchmarks.lib.progress import tracked

STEPS, BATCH, WIDTH = 60, 64, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cluster", action="store_true", help="let JAX find the other processes")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--out", type=Path, help="where process 0 writes the losses, as JSON")
    arguments = parser.parse_args()
    if arguments.cluster:
        jax.distributed.initialize()
    elif arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    losses, history = train(mesh)
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, {jax.device_count()} devices:", end=" ")
        print(f"loss {losses[0]:.6f} → {losses[-1]:.6f}")
        if arguments.out:
            rms = {row.path: row.rms.tolist() for row in history.rows}
            arguments.out.write_text(json.dumps({"losses": losses, "rms": rms}) + "\n")


def train(mesh: Mesh) -> tuple[list[float], od.types.WeightHistory]:
    """The losses, and the history of the weights."""
    images, labels = digits()
    eta = od.schedules.warm_restarts(10)
    adamw = od.adamw(0.003, 1e-3, schedule=eta, mask=od.decay_mask)
    tx = optax.chain(adamw, od.record_weight_dynamics())
    abstract = jax.eval_shape(init_params)
    layout = jax.tree.map(lambda p: NamedSharding(mesh, spec(mesh, p)), abstract)
    params = jax.jit(init_params, out_shardings=layout)()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(0)  # the same in every process
    losses = []
    for _ in tracked(range(STEPS), "steps"):
        batch = rng.integers(len(images), size=BATCH)
        x, y = (shard(mesh, data[batch]) for data in (images, labels))
        params, state, value = step(params, state, x, y)
        losses.append(float(value))
    return losses, od.recorded_weight_dynamics(state)


def shard(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """Spreads a batch that every process holds over the devices of all of them."""
    sharding = NamedSharding(mesh, P("data"))
    return jax.make_array_from_callback(batch.shape, sharding, lambda index: batch[index])


def spec(mesh: Mesh, param: Any) -> P:
    """Splits the first axis over the devices where it can be split evenly."""
    return P("data") if param.shape[0] % mesh.size == 0 else P()


def init_params() -> dict[str, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, WIDTH)) / 8, "bias": jnp.zeros(WIDTH)},
        "head": {"kernel": jax.random.normal(keys[1], (WIDTH, 10)) / 16, "bias": jnp.zeros(10)},
    }


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jnp.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None], 0)
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


if __name__ == "__main__":
    main()
