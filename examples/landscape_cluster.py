"""
A landscape on a cluster
========================

One sweep uses all devices of a cluster, with one process per host. Without options, this script
uses the devices of its machine. On a cluster, start it once per host. Under Slurm, on TPU pods and
under Open MPI ``jax.distributed`` detects the other processes::

    srun --ntasks-per-node=1 python examples/landscape_cluster.py --cluster

Otherwise pass the coordinator and the numbers of the processes, here two on one machine::

    python examples/landscape_cluster.py --coordinator localhost:9911 --processes 2 --process 0 &
    python examples/landscape_cluster.py --coordinator localhost:9911 --processes 2 --process 1
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import optax_decoupled as od
from optax_decoupled import sweep

FEATURES, STEPS = 20, 100
TRUTH = np.where(np.arange(FEATURES) < 5, 1.0, 0.0).astype(np.float32)


def draw(rng, size):
    """A linear relation with noise, in which three quarters of the features have no effect."""
    x = rng.normal(size=(size, FEATURES)).astype(np.float32)
    return x, x @ TRUTH + rng.normal(size=size).astype(np.float32)


def batches(seed):
    rng = np.random.default_rng(seed)
    x, y = draw(rng, 40)  # few, so that decay helps
    for _ in range(STEPS):
        batch = rng.integers(0, 40, 10)
        yield x[batch], y[batch]


def loss(params, model_state, batch, key):
    x, y = batch
    return jnp.mean((x @ params["kernel"] - y) ** 2), model_state


X_TEST, Y_TEST = draw(np.random.default_rng(1000), 1000)

task = sweep.Task(
    init=lambda key: ({"kernel": jax.random.normal(key, (FEATURES,))}, ()),
    loss=loss,
    batches=batches,
    evaluate=lambda params, state: {"error": jnp.mean((X_TEST @ params["kernel"] - Y_TEST) ** 2)},
    steps=STEPS,
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", action="store_true", help="let JAX detect the cluster")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--directory", help="where process 0 keeps finished cells")
    parser.add_argument("--save", help="where process 0 saves the landscape")
    parser.add_argument("--figure", help="where process 0 saves its picture")
    arguments = parser.parse_args()
    if arguments.cluster or arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    landscape = sweep.run(
        task,
        od.adamw,
        learning_rates=[0.01 * 2.0**k for k in range(5)],
        weight_decays=[2.0**k for k in range(-12, -1)],
        seeds=range(3),
        directory=arguments.directory,
        mesh=jax.make_mesh((jax.device_count(),), ("cells",)),
    )
    if jax.process_index() == 0:
        print(f"{jax.device_count()} devices of {jax.process_count()} processes:", landscape.best())
        axes = landscape.plot()
        if arguments.save:
            landscape.save(arguments.save)
        if arguments.figure:
            axes.figure.savefig(arguments.figure)


if __name__ == "__main__":
    main()
