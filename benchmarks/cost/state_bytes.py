"""How many bytes a parameter needs on each device, from the shapes of the real optimizer states.

Nothing is allocated: `jax.eval_shape` gives the states of `tx.init`, and `opt_state_shardings` on
an abstract mesh says which part of every leaf a device holds. Parameters are those of a
transformer (12·width² a layer, a vocabulary of 65,536, tied), split over all
devices along their widest axis; gradients have the parameters' dtype and sharding.

Usage: python -m benchmarks.cost.state_bytes [--out DIR]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import optax_decoupled as od
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked

RATE, DECAY, VOCABULARY = 1e-3, 1e-4, 65_536
F32, BF16 = jnp.float32, jnp.bfloat16


class Choice(NamedTuple):
    """An optimizer and the dtype in which parameters are stored."""

    make: Callable[[], optax.GradientTransformation]
    dtype: Any


CHOICES = {
    "adamw, float32": Choice(lambda: od.adamw(RATE, DECAY), F32),
    "adamw, float32, mu in bfloat16": Choice(lambda: od.adamw(RATE, DECAY, mu_dtype=BF16), F32),
    "adamw, bfloat16": Choice(lambda: od.adamw(RATE, DECAY), BF16),
    "adamw, bfloat16, mu in float32": Choice(lambda: od.adamw(RATE, DECAY, mu_dtype=F32), BF16),
    "optax.adamw, float32": Choice(lambda: optax.adamw(RATE), F32),
    "optax.adamw, bfloat16": Choice(lambda: optax.adamw(RATE), BF16),
    "sgdw, float32": Choice(lambda: od.sgdw(RATE, DECAY), F32),
    "sgdw, bfloat16": Choice(lambda: od.sgdw(RATE, DECAY), BF16),
}
# Layers and width; devices over which everything is split.
MODELS = {"1 B": (18, 2048), "10 B": (48, 4096), "100 B": (80, 10_240), "1 T": (138, 24_576)}
DEVICES = (8, 64, 512, 4096)


def transformer(layers: int, width: int, dtype: Any, devices: int) -> dict[str, Any]:
    """The parameters' shapes and shardings, stacked over layers."""
    mesh = AbstractMesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    shapes = {
        "embed": (VOCABULARY, width),
        "attention": (layers, 4 * width, width),
        "up": (layers, 4 * width, width),
        "down": (layers, 4 * width, width),
        "norms": (layers, 2 * width),
    }

    def leaf(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        axis = max(range(len(shape)), key=lambda i: (shape[i] % devices == 0, shape[i]))
        spec = PartitionSpec(*("data" if i == axis else None for i in range(len(shape))))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return {name: leaf(shape) for name, shape in shapes.items()}


def bytes_per_device(tree: Any, shardings: Any) -> int:
    parts = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(parts))


def measure(choice: Choice, layers: int, width: int, devices: int) -> dict[str, Any]:
    params = transformer(layers, width, choice.dtype, devices)
    tx = choice.make()
    weights = bytes_per_device(params, jax.tree.map(lambda p: p.sharding, params))
    state = bytes_per_device(jax.eval_shape(tx.init, params), od.opt_state_shardings(tx, params))
    return {
        "parameters": sum(math.prod(p.shape) for p in jax.tree.leaves(params)),
        "weights": weights,
        "gradients": weights,
        "state": state,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    record = {
        "question": "How many bytes does a parameter need, and a device of a sharded run?",
        **environment(),
        "per_choice": {
            name: measure(choice, *MODELS["1 B"], 1)
            for name, choice in tracked(CHOICES.items(), "choices")
        },
        "per_device": {
            name: {
                model: {str(devices): measure(CHOICES[name], *size, devices) for devices in DEVICES}
                for model, size in tracked(MODELS.items(), name)
            }
            for name in ("adamw, float32", "adamw, bfloat16")
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "state_bytes.json", record)
    print(f"written: {out / 'state_bytes.json'}")


if __name__ == "__main__":
    main()
