"""What does a step cost, against `optax.adamw`, PyTorch's fused AdamW and the machine's limit?

Competitors are compiled first and then timed in turn, round after round, so that a noisy
machine disturbs all alike: JAX's in this process, PyTorch's and the limit (a loop that reads
4 and writes 3 numbers per parameter, as Adam must) in one that waits its turn. Of two equal
programs the one built first may run faster: JAX's are built in both orders, and a ratio is
the geometric mean of both. PyTorch's rows need `pip install torch`.

Usage: python -m benchmarks.cost.step_cost [--parts rivals dtypes ...] [--quick] [--out DIR]
"""

import argparse
import functools
import gc
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

import optax_decoupled as od
from benchmarks.cost.step_programs import (
    BASELINE,
    Program,
    Variant,
    analysed,
    build,
    count,
    run,
)
from benchmarks.cost.step_rivals import DECAY, RATE, rivals
from benchmarks.cost.step_trees import TREES, Shapes, leaves, trees
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.storage import STORAGE

LOAD_PER_ROUND = 4e8  # parameters: big trees are timed in fewer rounds


def eta(count: jax.Array) -> Any:
    return 1.0 - count / 1_000_000


def rate(count: jax.Array) -> Any:
    return RATE * eta(count)


def decayed_sgd() -> optax.GradientTransformation:
    """As much work as SGDW, from Optax's parts."""
    return optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(DECAY / RATE), optax.scale(-RATE)
    )


SCHEDULED = "optax.adamw, schedule"
VARIANTS = {
    BASELINE: Variant(lambda: optax.adamw(RATE, weight_decay=DECAY / RATE)),
    "od.adamw": Variant(lambda: od.adamw(RATE, DECAY)),
    SCHEDULED: Variant(lambda: optax.adamw(rate, weight_decay=DECAY / RATE)),
    "od.adamw, schedule": Variant(lambda: od.adamw(RATE, DECAY, schedule=eta), baseline=SCHEDULED),
    "od.adamw, mask": Variant(lambda: od.adamw(RATE, DECAY, mask=od.decay_mask)),
    "od.adamw, cautious": Variant(lambda: od.adamw(RATE, DECAY, cautious=True)),
    "od.adamwr": Variant(lambda: od.adamwr(RATE, 0.05, first_cycle_steps=1000), baseline=SCHEDULED),
    "optax.sgd + decay": Variant(decayed_sgd),
    "od.sgdw": Variant(lambda: od.sgdw(RATE, DECAY), baseline="optax.sgd + decay"),
    "optax.lion": Variant(lambda: optax.lion(RATE, weight_decay=DECAY / RATE)),
    "od.decouple(lion)": Variant(
        lambda: od.decouple(optax.lion(RATE, weight_decay=0.0), DECAY), baseline="optax.lion"
    ),
}
# How parameters, mu and nu are stored, on one tree.
DTYPES = {
    name: Variant(functools.partial(x.adamw, RATE, DECAY), x.dtype, x.stochastic)
    for name, x in STORAGE.items()
}


# What might bring XLA's step on CPU closer to the machine's limit.
XLA_OPTIONS = {
    "default": {},
    "wider vectors": {"xla_cpu_prefer_vector_width": 512},
    "fast math": {"xla_cpu_enable_fast_math": True},
    "without fusion emitters": {"xla_cpu_use_fusion_emitters": False},
    "concurrency-optimized schedule": {"xla_cpu_enable_concurrency_optimized_scheduler": True},
    "tiling propagation": {"xla_cpu_experimental_enable_tiling_propagation": True},
    "elementwise fusions by YNNPACK": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_ELTWISE"
    },
}


# On trees that take long to build.
FEW = (BASELINE, "od.adamw", SCHEDULED, "od.adamw, schedule", "od.adamw, mask")


def rounds_for(shapes: Shapes, quick: bool) -> int:
    return 3 if quick else max(11, min(101, int(LOAD_PER_ROUND / count(shapes))))


def timed(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds and quartiles of each step, all of them in turn."""
    seconds = {name: [] for name in steps}
    for round_, (name, step) in tracked(
        itertools.product(range(rounds + 1), steps.items()), "timing"
    ):
        taken = step()
        if round_:  # the first is a warm-up
            seconds[name].append(taken)
    return {
        name: {
            "seconds": statistics.median(column),
            "quartiles": statistics.quantiles(column, n=4)[::2],
        }
        for name, column in seconds.items()
    }


def jax_steps(variants: dict[str, Variant], shapes: Shapes) -> dict[str, Callable[[], float]]:
    return in_place({name: build(variant, shapes) for name, variant in variants.items()})


def in_place(programs: dict[str, Program]) -> dict[str, Callable[[], float]]:
    """A function for each program that takes its next step and returns the seconds."""

    def step(name: str) -> float:
        seconds, programs[name] = run(programs[name])
        return seconds

    return {name: lambda name=name: step(name) for name in programs}


def against_baselines(
    variants: dict[str, Variant], shapes: Shapes, rounds: int
) -> dict[str, dict[str, Any]]:
    """Each variant beside its baseline, in both build orders."""
    found = analysed(variants, shapes, rounds=1 if rounds < 10 else 5 if len(shapes) < 50 else 2)
    for name, variant in variants.items():
        if name == variant.baseline:
            continue
        pair = {key: variants[key] for key in (variant.baseline, name)}
        orders = [pair, dict(reversed(pair.items()))]
        runs = [timed(jax_steps(order, shapes), rounds) for order in orders]
        gc.collect()
        ratios = [x[name]["seconds"] / x[variant.baseline]["seconds"] for x in runs]
        base = found[variant.baseline]
        found[name] |= {
            "baseline": variant.baseline,
            "step": [x[name] for x in runs],
            "baseline_step": [x[variant.baseline] for x in runs],
            "time_ratio": statistics.geometric_mean(ratios),
            "bytes_ratio": found[name]["bytes_accessed"] / base["bytes_accessed"],
            "compile_ratio": found[name]["seconds"]["compile"] / base["seconds"]["compile"],
        }
        report = {key: found[name][key] for key in ("time_ratio", "bytes_ratio", "compile_ratio")}
        print(f"  {name:42}", *(f"{k} {v:.3f} " for k, v in report.items()), flush=True)
    return found


def against_rivals(shapes: Shapes, rounds: int) -> dict[str, dict[str, Any]]:
    ours = jax_steps({name: VARIANTS[name] for name in (BASELINE, "od.adamw")}, shapes)
    with rivals(shapes, gpu=jax.default_backend() == "gpu") as theirs:
        found = timed({**ours, **theirs}, rounds)
    for name, x in found.items():
        print(f"  {name:42} {1e3 * x['seconds']:.2f} ms", flush=True)
    return found


def with_xla_options(shapes: Shapes, rounds: int) -> dict[str, dict[str, Any]]:
    programs = {
        name: build(VARIANTS[BASELINE], shapes, options) for name, options in XLA_OPTIONS.items()
    }
    with rivals(shapes, gpu=False) as theirs:
        limit = {name: step for name, step in theirs.items() if "limit" in name}
        found = timed({**in_place(programs), **limit}, rounds)
    for name, x in found.items():
        print(f"  {name:42} {1e3 * x['seconds']:.2f} ms", flush=True)
    return found


def growth(sizes: list[tuple[int, int]], quick: bool) -> list[dict[str, Any]]:
    """Step and compile time of AdamW over (number of leaves, parameters in each)."""
    variants = {name: VARIANTS[name] for name in (BASELINE, "od.adamw")}
    rows = []
    for number, size in sizes:
        shapes = leaves(number, size)
        analysis = analysed(variants, shapes, rounds=1)
        times = timed(jax_steps(variants, shapes), min(31, rounds_for(shapes, quick)))
        row = {name: {**times[name], "build": analysis[name]["seconds"]} for name in variants}
        rows.append({"leaves": number, "parameters": number * size, **row})
        print(
            f"  {number} leaves of {size}: {1e3 * times['od.adamw']['seconds']:.3f} ms", flush=True
        )
    return rows


def measure_rivals(quick: bool) -> dict[str, Any]:
    found = {}
    for name, shapes in trees(quick).items():
        print(f" {name}", flush=True)
        found[name] = against_rivals(shapes, rounds_for(shapes, quick))
    return {"trees": found}


def measure_variants(quick: bool) -> dict[str, Any]:
    found = {}
    for name, shapes in trees(quick).items():
        print(f" {name}", flush=True)
        variants = {key: VARIANTS[key] for key in FEW} if len(shapes) > 500 else VARIANTS
        found[name] = against_baselines(variants, shapes, rounds_for(shapes, quick))
    return {"trees": found}


def measure_dtypes(quick: bool) -> dict[str, Any]:
    shapes = next(iter(trees(quick).values())) if quick else TREES["ViT-B, 86 M"]
    variants = {BASELINE: VARIANTS[BASELINE], **DTYPES}
    return {"choices": against_baselines(variants, shapes, rounds_for(shapes, quick))}


def measure_xla_options(quick: bool) -> dict[str, Any]:
    shapes = leaves(1, 2**14 if quick else 2**23)
    return {"options": with_xla_options(shapes, rounds_for(shapes, quick))}


def measure_growth(quick: bool) -> dict[str, Any]:
    by_leaves = [10, 100] if quick else [10, 100, 1000]  # 3,000 compile for ten minutes
    by_size = [4, 5] if quick else [4, 5, 6, 7, 8]
    return {
        "by_leaves": growth([(n, 1000) for n in by_leaves], quick),
        "by_parameters": growth([(1, 10**k) for k in by_size], quick),
    }


PARTS = {
    "rivals": measure_rivals,
    "dtypes": measure_dtypes,
    "variants": measure_variants,
    "growth": measure_growth,
    "xla_options": measure_xla_options,  # of the CPU backend
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small trees and few rounds")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others stay as they are"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = "" if jax.default_backend() == "cpu" else f"_{jax.default_backend()}"
    path = options.out / f"step_cost{device}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record["question"] = (__doc__ or "").partition("\n")[0]
    for name in options.parts:
        print(name, flush=True)
        setting = {**environment(), "load": os.getloadavg()[0]}
        record[name] = setting | PARTS[name](options.quick)
        write_json(path, record)


if __name__ == "__main__":
    main()
