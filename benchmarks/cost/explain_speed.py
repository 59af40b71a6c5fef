"""How long does it take to explain a transformer's optimizer, and how much memory?

The parameters have the shapes of a decoder of 15 layers and 100 million weights in 300
leaves. Each case runs in a process of its own, three times: the time is that of the first
call, compilation included, and the memory is the peak of the process above what it held
before the call, in copies of the parameters. Asked for: at most 3 s on 2 CPU cores and half
a copy. The work is on one core but for part of the compilation, so on busy cores
the processor time stands for the time. Beside it: how long JAX takes to trace one update of
the same optimizer. A slow machine lengthens both; a report needs two such traces.

Usage: python -m benchmarks.cost.explain_speed [--out DIR] [--quick]
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib.harness import RESULTS, environment, in_new_process, write_json
from benchmarks.lib.progress import tracked

REPEATS = 3
SECONDS, COPIES = 3.0, 0.5


class Model(NamedTuple):
    """The sizes of a decoder: biases and layer norms throughout, tied embeddings."""

    layers: int
    width: int
    vocabulary: int


FULL, QUICK = Model(15, 736, 7000), Model(2, 32, 100)


class Case(NamedTuple):
    """An optimizer, and whether it is explained with its state after a first update."""

    make: Callable[[], optax.GradientTransformation]
    running: bool = False


def broken() -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3))


WARMUP = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 10_000)
CASES = {
    "optax.adamw": Case(lambda: optax.adamw(1e-3, weight_decay=0.1)),
    "optax.adamw, warmup from 0": Case(lambda: optax.adamw(WARMUP, weight_decay=0.1)),
    "optax.adamw, its state given": Case(lambda: optax.adamw(WARMUP, weight_decay=0.1), True),
    "adamw, decay_mask": Case(lambda: od.adamw(1e-3, 1e-4, mask=od.decay_mask)),
    "adamw, decay_mask, its state given": Case(
        lambda: od.adamw(1e-3, 1e-4, mask=od.decay_mask), True
    ),
    "broken: decay before Adam": Case(broken),
    "broken: decay before Adam, its state given": Case(broken, True),
}


def parameters(model: Model) -> dict[str, Any]:
    rng, width = np.random.default_rng(0), model.width

    def kernel(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)

    def dense(rows: int, columns: int) -> dict[str, np.ndarray]:
        return {"kernel": kernel(rows, columns), "bias": np.zeros(columns, np.float32)}

    def norm() -> dict[str, np.ndarray]:
        return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}

    def layer() -> dict[str, Any]:
        attention = {name: dense(width, width) for name in ("query", "key", "value", "out")}
        head = {f"{name}_norm": {"scale": np.ones(64, np.float32)} for name in ("query", "key")}
        gates = {f"{name}_gate": np.ones(width, np.float32) for name in ("attention", "mlp")}
        mlp = {"up": dense(width, 4 * width), "down": dense(4 * width, width)}
        return {
            "attention": {**attention, **head},
            "mlp": mlp,
            "norm_1": norm(),
            "norm_2": norm(),
            **gates,
        }

    layers = {f"layer_{i}": layer() for i in range(model.layers)}
    return {"embed": kernel(model.vocabulary, width), "final_norm": norm(), **layers}


def measure(name: str, model: Model) -> dict[str, float]:
    """Explains once; seconds, processor seconds and peak memory in copies of the parameters."""
    case, params = CASES[name], jax.device_put(parameters(model))
    tx = case.make()
    first = jax.jit(lambda p: tx.update(p, tx.init(p), p)[1])
    state = jax.block_until_ready(first(params)) if case.running else None
    size = sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(params)))
    held, wall, cpu = _memory(reset_peak=True), time.perf_counter(), time.process_time()
    report = od.explain_weight_decay(tx, params, state=state)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    copies = (_memory() - held) / size
    own = state if case.running else jax.eval_shape(tx.init, params)
    start = time.perf_counter()
    jax.jit(lambda *trees: tx.update(*trees)).trace(params, own, params)
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "trace_seconds": time.perf_counter() - start,
        "copies": max(copies, 0.0),
        "leaves": len(report.rows),
        "weights": size // 4,
    }


def _memory(reset_peak: bool = False) -> int:
    """The most bytes of memory that this process has had since the last reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--case", choices=CASES, help="measure one case here and print it")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, QUICK if options.quick else FULL)))
        return
    load = os.getloadavg()[0]  # other work on these cores lengthens the times
    results = {}
    for name in tracked(CASES, "optimizers"):
        case = ("--case", name, *["--quick"] * options.quick)
        runs = [in_new_process("benchmarks.cost.explain_speed", *case) for _ in range(REPEATS)]
        columns = {key: [round(run[key], 3) for run in runs] for key in runs[0]}
        results[name] = {k: v[0] if k in ("leaves", "weights") else v for k, v in columns.items()}
        seconds, cpu, trace, copies = (
            statistics.median(columns[key])
            for key in ("seconds", "cpu_seconds", "trace_seconds", "copies")
        )
        within = min(seconds, cpu) <= SECONDS and copies <= COPIES
        verdict = "ok" if within else "over the budget"
        times = f"{seconds:6.1f} s ({cpu:.1f} s of CPU, {trace:.1f} s a trace)"
        print(f"{name:36} {times}  {copies:.2f} copies  {verdict}")
    budget = {"seconds": SECONDS, "copies": COPIES}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(
        options.out / "explain_speed.json",
        {**environment(), "load": load, "budget": budget, "results": results},
    )


if __name__ == "__main__":
    main()
