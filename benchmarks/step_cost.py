"""What does a step cost, relative to `optax.adamw`'s, in time and in bytes moved?

Every variant is compiled in one process and timed in turn, round after round, so that a noisy
machine disturbs all alike. Of two equal programs the one built first may run faster: the
variants are built in both orders, and the ratio is the geometric mean of both.

Usage: python benchmarks/step_cost.py [--quick] [--out DIR]
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _harness import ROOT, environment, write_json

import optax_decoupled as od

RATE, DECAY = 1e-3, 1e-4
ROUNDS, QUICK_ROUNDS = 21, 3


class Variant(NamedTuple):
    """A step to time: an optimizer, the parameters' dtype, and how updates are applied."""

    make: Callable[[], optax.GradientTransformation]
    dtype: Any = jnp.float32
    stochastic: bool = False


def eta(count: jax.Array) -> Any:
    return 1.0 - count / 1_000_000


BASELINE = "optax.adamw"
VARIANTS = {
    BASELINE: Variant(lambda: optax.adamw(RATE, weight_decay=DECAY / RATE)),
    "od.adamw": Variant(lambda: od.adamw(RATE, DECAY)),
    "od.adamw, schedule": Variant(lambda: od.adamw(RATE, DECAY, schedule=eta)),
    "od.adamw, mask": Variant(lambda: od.adamw(RATE, DECAY, mask=od.decay_mask)),
    "od.adamw, cautious": Variant(lambda: od.adamw(RATE, DECAY, cautious=True)),
    "od.adamwr": Variant(lambda: od.adamwr(RATE, 0.05, first_cycle_steps=1000)),
    "optax.sgd": Variant(lambda: optax.sgd(RATE, momentum=0.9)),
    "od.sgdw": Variant(lambda: od.sgdw(RATE, DECAY)),
    "optax.lion": Variant(lambda: optax.lion(RATE, weight_decay=DECAY / RATE)),
    "od.decouple(lion)": Variant(lambda: od.decouple(optax.lion(RATE, weight_decay=0.0), DECAY)),
    "od.adamw, bfloat16, to nearest": Variant(lambda: od.adamw(RATE, DECAY), jnp.bfloat16),
    "od.adamw, bfloat16, stochastic": Variant(
        lambda: od.adamw(RATE, DECAY), jnp.bfloat16, stochastic=True
    ),
}


def one_leaf(size: int) -> dict[str, Any]:
    return {"kernel": (size,)}


def transformer(depth: int, width: int) -> dict[str, Any]:
    """The leaves of a ViT; 12 layers of width 768 are ViT-B's 86 M parameters."""
    square, wide, vector = (width, width), (width, 4 * width), (width,)
    layer = {
        **{f"{name}/kernel": square for name in ("query", "key", "value", "out")},
        **{f"{name}/bias": vector for name in ("query", "key", "value", "out", "down")},
        "up/kernel": wide,
        "up/bias": (4 * width,),
        "down/kernel": wide[::-1],
        **{f"norm_{i}/{name}": vector for i in range(2) for name in ("scale", "bias")},
    }
    layers = {f"{i}/{name}": shape for i in range(depth) for name, shape in layer.items()}
    return {"embed/kernel": (768, width), "place/embedding": (197, width), **layers}


TREES = {"one leaf of 32 M": one_leaf(2**25), "ViT-B, 86 M": transformer(12, 768)}
QUICK_TREES = {"one leaf of 1 M": one_leaf(2**20), "a small transformer": transformer(2, 64)}


class Program(NamedTuple):
    """A compiled step, what it runs on, and what XLA says of it."""

    step: Any
    carry: Any
    grads: Any
    compile_seconds: float
    bytes_accessed: float


def build(variant: Variant, shapes: dict[str, Any]) -> Program:
    tx = variant.make()
    params = {name: jnp.full(shape, 0.1, variant.dtype) for name, shape in shapes.items()}
    grads = jax.tree.map(lambda p: 0.01 * p, params)
    carry = (params, jax.jit(tx.init)(params), jax.random.key(0))

    def step(carry: Any, grads: Any) -> Any:
        params, state, key = carry
        updates, state = tx.update(grads, state, params)
        if variant.stochastic:
            key, now = jax.random.split(key)
            params = od.apply_updates_with_stochastic_rounding(params, updates, now)
        else:
            params = optax.apply_updates(params, updates)
        return params, state, key

    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(carry, grads).compile()
    seconds = time.perf_counter() - start
    cost: Any = compiled.cost_analysis()
    return Program(compiled, carry, grads, seconds, cost["bytes accessed"])


def time_all(names: list[str], shapes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds, variants built in the given order."""
    programs = {name: build(VARIANTS[name], shapes) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            carry = jax.block_until_ready(program.step(program.carry, program.grads))
            if round_:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
            programs[name] = program._replace(carry=carry)
    results = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "quartiles": statistics.quantiles(seconds[name], n=4)[::2],
            "compile_seconds": program.compile_seconds,
            "bytes_accessed": program.bytes_accessed,
        }
        for name, program in programs.items()
    }
    del programs
    gc.collect()
    return results


def measure(shapes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Each variant beside the baseline, in both build orders: ratios to the baseline."""
    found = {}
    for name in VARIANTS:
        if name == BASELINE:
            continue
        runs = [time_all(order, shapes, rounds) for order in ([BASELINE, name], [name, BASELINE])]
        ratios = [run[name]["seconds"] / run[BASELINE]["seconds"] for run in runs]
        found[name] = {
            "time_ratio": statistics.geometric_mean(ratios),
            "time_ratio_each_order": ratios,
            "bytes_ratio": runs[0][name]["bytes_accessed"] / runs[0][BASELINE]["bytes_accessed"],
            "compile_ratio": statistics.geometric_mean(
                run[name]["compile_seconds"] / run[BASELINE]["compile_seconds"] for run in runs
            ),
            "runs": runs,
        }
        print(f"  {name:32} time × {found[name]['time_ratio']:.3f}", end="  ", flush=True)
        print(f"bytes × {found[name]['bytes_ratio']:.4f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="small trees and few rounds")
    arguments = parser.parse_args()
    trees, rounds = (QUICK_TREES, QUICK_ROUNDS) if arguments.quick else (TREES, ROUNDS)
    record: dict[str, Any] = {"question": (__doc__ or "").partition("\n")[0], **environment()}
    record |= {"rounds": rounds, "baseline": BASELINE, "trees": {}}
    for name, shapes in trees.items():
        print(name, flush=True)
        record["trees"][name] = measure(shapes, rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "step_cost.json", record)


if __name__ == "__main__":
    main()
