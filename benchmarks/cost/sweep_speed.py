"""How many cells a minute does a sweep train, against a fresh jitted step per cell?

Digits, the MLP with batch norm of `figure2_digits.py`, AdamW, 300 steps a cell. The loop is the
one a user would write: for each cell build the optimizer, jit a step, train; its data are on the
device and its `evaluate` is jitted once. Rounds of loop and sweep alternate. A sweep of 9×14
cells is timed whole, with its compilation; `vectorize` is compared by the rate after the first
group, without it. Peak memory is that of a process of its own.

Usage: python -m benchmarks.cost.sweep_speed [--out DIR] [--quick]
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib.data import Images, digits, few_shot_batches
from benchmarks.lib.harness import RESULTS, environment, in_new_process, write_json
from benchmarks.lib.models import MLP, ConvNet
from benchmarks.lib.progress import tracked
from benchmarks.lib.tasks import classification_task
from optax_decoupled import sweep

TRAIN_IMAGES, BATCH_SIZE, STEPS = 150, 50, 300
RATES = [0.002 * 2.0**k for k in range(-4, 5)]
DECAYS = [2.0**k for k in range(-14, 0)]
COSINE = optax.cosine_decay_schedule(1.0, STEPS)


class Budget(NamedTuple):
    """How often, and how many cells."""

    rounds: int = 3
    loop_cells: int = 5
    rates: int = 9
    widths: tuple[int, ...] = (1, 2, 4, 8, 16)
    groups: int = 6  # timed for each width, after the first
    memory: tuple[tuple[str, int, int], ...] = (  # task, cells, cells at a time
        ("digits", 2, 1),
        ("digits", 126, 1),
        ("digits", 126, 16),
        ("cifar", 1, 1),
        ("cifar", 6, 1),
        ("cifar", 6, 6),
    )


QUICK = Budget(rounds=1, loop_cells=1, rates=1, widths=(1, 2), groups=1, memory=())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one small round")
    parser.add_argument("--peak", nargs=3, metavar=("TASK", "CELLS", "VECTORIZE"))
    arguments = parser.parse_args()
    if arguments.peak:
        name, cells, width = arguments.peak
        print(json.dumps(peak_memory(name, int(cells), int(width))))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = measure(QUICK if arguments.quick else Budget())
    write_json(arguments.out / "sweep_speed.json", record)
    report(record)


def digits_task() -> sweep.Task:
    data = digits()
    epochs = STEPS * BATCH_SIZE // TRAIN_IMAGES
    return classification_task(
        lambda rngs: MLP((64, 128, 128, 10), batch_norm=True, rngs=rngs),
        data,
        lambda seed: few_shot_batches(data.labels, TRAIN_IMAGES, BATCH_SIZE, epochs, seed),
        STEPS,
        TRAIN_IMAGES,
    )


def cifar_shaped_task(images: int = 5000, steps: int = 3) -> sweep.Task:
    """Random images of CIFAR's shape and a small convolutional network, to see memory."""
    rng = np.random.default_rng(0)
    pixels = rng.random((images, 32, 32, 3), np.float32)
    task = classification_task(
        lambda rngs: ConvNet((3, 64, 128, 256), 10, rngs=rngs),
        Images(pixels, rng.integers(0, 10, images, np.int32)),
        lambda seed: np.random.default_rng(seed).integers(0, images, (steps, 128), np.int32),
        steps,
        train_images=128,
    )
    # All images at once would take more memory to evaluate than a batch to train.
    size = lambda params, state: {"error": optax.tree.norm(params)}
    return dataclasses.replace(task, evaluate=size)


def make_optimizer(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
    return od.adamw(learning_rate, weight_decay, schedule=COSINE, mask=od.decay_mask)


def measure(budget: Budget) -> dict[str, Any]:
    task = digits_task()
    evaluate = jax.jit(task.evaluate)
    loops, sweeps = [], []
    curve: dict[int, list[float]] = {width: [] for width in budget.widths}
    for _ in tracked(range(budget.rounds), "rounds"):
        loops.append(loop_rate(task, evaluate, budget.loop_cells))
        sweeps.append(sweep_rate(task, budget.rates))
        for width in budget.widths:
            curve[width].append(vectorized_rate(task, width, budget.groups))
    return {
        "question": (__doc__ or "").partition("\n")[0],
        **environment(),
        "budget": budget._asdict(),
        "cells_per_minute": {"loop": spread(loops), "sweep": spread(sweeps)},
        "ratio": round(float(np.median(sweeps) / np.median(loops)), 1),
        "vectorize": [{"cells": width, **spread(rates)} for width, rates in curve.items()],
        "peak_memory": [peak_of_a_process(*row) for row in budget.memory],
    }


def loop_rate(task: sweep.Task, evaluate: Any, cells: int) -> float:
    """Cells per minute of the loop a user would write."""
    start = time.perf_counter()
    for n in range(cells):
        tx = make_optimizer(RATES[n % len(RATES)], DECAYS[n % len(DECAYS)])
        init_key, key = jax.random.split(jax.random.key(0))
        params, state = task.init(init_key)
        opt_state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any, opt_state: Any, batch: Any, key: Any, tx: Any = tx):
            grads, state = jax.grad(task.loss, has_aux=True)(params, state, batch, key)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state

        for batch in task.batches(0):
            params, state, opt_state = step(params, state, opt_state, batch, key)
        jax.block_until_ready(evaluate(params, state))
    return 60 * cells / (time.perf_counter() - start)


def sweep_rate(task: sweep.Task, rates: int) -> float:
    """Cells per minute of a whole sweep, compilation included."""
    grid = {"learning_rates": RATES[:rates], "weight_decays": DECAYS, "seeds": [0]}
    start = time.perf_counter()
    sweep.run(task, make_optimizer, **grid, progress=False)
    return 60 * rates * len(DECAYS) / (time.perf_counter() - start)


def vectorized_rate(task: sweep.Task, width: int, groups: int) -> float:
    """Cells per minute after the first group, which compiles."""
    times: list[float] = []
    cells: list[int] = []

    def note(done: int, total: int) -> None:
        del total
        times.append(time.perf_counter())
        cells.append(done)

    rates = np.geomspace(0.001, 0.01, width * (groups + 1)).tolist()
    grid = {"learning_rates": rates, "weight_decays": DECAYS[7:8], "seeds": [0]}
    sweep.run(task, make_optimizer, **grid, vectorize=width, progress=note)
    return 60 * (cells[-1] - cells[0]) / (times[-1] - times[0])


def peak_of_a_process(name: str, cells: int, width: int) -> dict[str, Any]:
    """`peak_memory` where nothing was trained before."""
    return in_new_process("benchmarks.cost.sweep_speed", "--peak", name, str(cells), str(width))


def peak_memory(name: str, cells: int, width: int) -> dict[str, Any]:
    """Of this process, in MiB: with the task at hand, and at the end of the sweep."""
    task = digits_task() if name == "digits" else cifar_shaped_task()
    before = peak()
    rates = np.geomspace(0.001, 0.01, cells).tolist()
    grid = {"learning_rates": rates, "weight_decays": [1e-4], "seeds": [0]}
    sweep.run(task, make_optimizer, **grid, vectorize=width, progress=False)
    return {
        "task": name,
        "cells": cells,
        "vectorize": width,
        "before_mib": before,
        "peak_mib": peak(),
    }


def peak() -> int:
    """Peak resident memory in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; `ru_maxrss` would begin with the parent's peak
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return round(int(line.split()[1]) / 2**10)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def spread(rates: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(rates)), 1),
        "low": round(min(rates), 1),
        "high": round(max(rates), 1),
    }


def report(record: dict[str, Any]) -> None:
    for name, rate in record["cells_per_minute"].items():
        print(f"{name:6s}{rate['median']:8.0f} cells/min ({rate['low']:.0f} to {rate['high']:.0f})")
    print(f"A sweep trains {record['ratio']:.0f} times as many cells a minute as the loop.")
    for row in record["vectorize"]:
        print(f"vectorize={row['cells']:<4d}{row['median']:8.0f} cells/min")
    for row in record["peak_memory"]:
        print(
            f"{row['task']}, {row['cells']} cells, {row['vectorize']} at a time: peak "
            f"{row['peak_mib']} MiB, {row['before_mib']} before the sweep"
        )


if __name__ == "__main__":
    main()
