"""How does the time of each call grow with the number of parameters, from ten to ten thousand?

Leaves of 16 x 16 weights in layers of ten. Each case runs in a process of its own with at most
16 GiB of memory, once, because the first call is the one that users wait for; its own time alone,
without the imports. The exponent is the slope of log time over log leaves between the last two
sizes: 1 is linear, 2 is quadratic. Memory is the peak of the process, imports and parameters
included. A case that takes more than 20 minutes or more memory is missing.

A step is the exception: it is not the first call but the median of 101, and both optimizers take
their steps in turn in one process. They are loaded in both orders, from a compilation cache that
was filled in processes of their own; seconds and ratio are geometric means over the two orders.

Usage: python -m benchmarks.cost.growth [--out DIR] [--leaves N ...] [--cases NAME ...]
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.cost.step_cost import in_place, timed
from benchmarks.cost.step_programs import Program
from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS, ROOT, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.tables import markdown

SIZES = (10, 100, 1_000, 10_000)
MEMORY, SECONDS = 16 * 2**30, 1200
ETA = optax.cosine_decay_schedule(1.0, 1_000)
Params = dict[str, dict[str, jax.Array]]
Row = dict[str, float | None]
MISSING: Row = {"seconds": None, "gigabytes": None}


def parameters(leaves: int) -> Params:
    weight = np.ones((16, 16), np.float32)
    return {
        f"layer_{i}": {f"kernel_{j}": jnp.asarray(weight) for j in range(10)}
        for i in range(max(leaves // 10, 1))
    }


def ours() -> optax.GradientTransformation:
    return od.adamw(1e-3, 1e-4, schedule=ETA, mask=od.decay_mask)


def theirs() -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(1e-3, 1_000), mask=od.decay_mask)


def traced(tx: optax.GradientTransformation) -> Callable[[Params], Any]:
    def call(params: Params) -> Any:
        state = jax.eval_shape(tx.init, params)
        return jax.jit(tx.update).trace(params, state, params)

    return call


def compiled(tx: optax.GradientTransformation) -> Callable[[Params], Any]:
    def step(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def call(params: Params) -> Any:
        carry = params, jax.eval_shape(tx.init, params)
        return jax.jit(step, donate_argnums=0).lower(carry, params).compile()

    return call


def compiled_dynamics(params: Params) -> Any:
    return jax.jit(od.weight_dynamics).lower(params, params).compile()


def migrated(params: Params) -> Any:
    old, new = optax.adamw(1e-3), od.adamw(1e-3, 1e-4)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(old.init, params))
    start = time.perf_counter()
    od.migrate_opt_state(state, new, params)
    return time.perf_counter() - start


def refused(params: Params) -> Any:
    """The error of rules that lack every second parameter's name, in a tree with masked nodes."""
    masked = jax.tree.map(lambda p: p, params) | {
        f"masked_{i}": optax.MaskedNode() for i in range(sum(map(len, params.values())))
    }
    try:
        od.decay_rules((".*kernel_[0-4]", 1.0))(masked)
    except ValueError:
        return None
    raise AssertionError("the rules should not fit")


def printed(params: Params) -> Any:
    """A report whose rows all differ."""
    (row, *_) = od.explain_weight_decay(ours(), {"a": jnp.ones(3)}).rows
    rows = tuple(
        dataclasses.replace(row, path=f"{layer}/{name}", decay_per_step=1e-4 * (1 + i / 1e3))
        for i, layer in enumerate(params)
        for name in params[layer]
    )
    start = time.perf_counter()
    str(od.types.DecayReport(rows))
    return time.perf_counter() - start


CASES: dict[str, Callable[[Params], Any]] = {
    "trace optax.adamw": traced(theirs()),
    "trace adamw": traced(ours()),
    "compile optax.adamw": compiled(theirs()),
    "compile adamw": compiled(ours()),
    "compile adamw with the recorder": compiled(optax.chain(ours(), od.record_weight_dynamics())),
    "compile weight_dynamics": compiled_dynamics,
    "explain": lambda params: od.explain_weight_decay(ours(), params),
    "explain, steps=": lambda params: od.explain_weight_decay(ours(), params, steps=1_000),
    "migrate_opt_state": migrated,
    "decay_mask": od.decay_mask,
    "an error of decay_rules": refused,
    "print a report": printed,
}


STEPS = {"step optax.adamw": theirs(), "step adamw": ours()}
ROUNDS = 101


def measure_steps(order: list[str], leaves: int) -> dict[str, dict[str, float]]:
    """Median seconds of a step of each optimizer, all of them in turn, loaded in this order."""
    programs = {}
    for name in order:
        params, grads, tx = parameters(leaves), parameters(leaves), STEPS[name]
        programs[name] = Program(compiled(tx)(params), (params, tx.init(params)), grads)
    found = timed(in_place(programs), ROUNDS)
    return {name: {"seconds": x["seconds"], "gigabytes": peak()} for name, x in found.items()}


def steps(leaves: int) -> dict[str, Row]:
    """Seconds of a step of each optimizer, over both orders; None beyond the limits."""
    names = list(STEPS)
    with tempfile.TemporaryDirectory() as cache:
        filled = [in_process(name.replace("step", "compile"), leaves, cache) for name in names]
        if any(row["seconds"] is None for row in filled):
            return dict.fromkeys(names, MISSING)
        orders = (names, names[::-1])
        found = [limited("--steps", str(leaves), *order, cache=cache) for order in orders]
    if None in found:
        return dict.fromkeys(names, MISSING)
    first, second = found
    return {
        name: {
            "seconds": statistics.geometric_mean(x[name]["seconds"] for x in (first, second)),
            "gigabytes": max(x[name]["gigabytes"] for x in (first, second)),
        }
        for name in names
    }


def measure(name: str, leaves: int) -> dict[str, float]:
    """Seconds and peak memory; a case may return its own seconds, to leave its preparation out."""
    params = parameters(leaves)
    jax.block_until_ready(params)
    start = time.perf_counter()
    own = CASES[name](params)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(own if isinstance(own, float) else seconds, 4),
        "gigabytes": peak(),
    }


def peak() -> float:
    """The most GiB of memory that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)  # Linux: in KiB


def in_process(name: str, leaves: int, cache: str = "") -> Row:
    """What a case takes in a new process; None if it ran out of memory or time."""
    return limited("--one", name, str(leaves), cache=cache) or MISSING


def limited(*arguments: str, cache: str = "") -> Any:
    """What this script prints in a new process with limits; None if it exceeds one of them."""
    shell = ["sh", "-c", f'ulimit -v {MEMORY // 1024}; exec "$@"', "sh"]
    command = [*shell, sys.executable, "-m", "benchmarks.cost.growth", *arguments]
    compilation_cache = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    variables = os.environ | (compilation_cache if cache else {})
    pipes = {"capture_output": True, "text": True}
    try:
        done = subprocess.run(command, cwd=ROOT, env=variables, timeout=SECONDS, **pipes)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def exponent(seconds: dict[str, float | None]) -> float | None:
    """The slope of log time over log leaves between the last two sizes that were measured."""
    points = [(float(n), s) for n, s in seconds.items() if s]
    if len(points) < 2:
        return None
    (n, s), (m, t) = points[-2:]
    return round(float(np.log(t / s) / np.log(m / n)), 2)


def merged(old: dict[str, Any], new: dict[str, Row]) -> dict[str, Any]:
    """The row of a case: what was measured before, and now."""
    row: dict[str, Any] = {}
    for unit in ("seconds", "gigabytes"):
        found = old.get(unit, {}) | {n: x[unit] for n, x in new.items()}
        row[unit] = dict(sorted(found.items(), key=lambda pair: int(pair[0])))
    return row | {"exponent": exponent(row["seconds"])}


def draw(record: dict[str, Any], path: Path) -> None:
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, (name, found) in enumerate(record["cases"].items()):
        points = [(int(n), s) for n, s in found["seconds"].items() if s]
        label = f"{name}: n^{found['exponent']}"
        style = {"marker": "os^v<>D"[i % 7], "ls": ("-", "--")[i // 7]}
        ax.loglog(*zip(*points, strict=True), label=label, **style)
    ax.set(xlabel="parameters (leaves)", ylabel="seconds: first call, or a step")
    ax.grid(alpha=0.25)
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    sizes = list(next(iter(record["cases"].values()))["seconds"])
    rows = [
        [
            name,
            *(_text(found["seconds"].get(n)) for n in sizes),
            str(found["exponent"] or "-"),
            _text(found["gigabytes"].get(sizes[-1])),
        ]
        for name, found in record["cases"].items()
    ]
    largest = f"GiB at {int(sizes[-1]):,}"
    header = ["seconds", *(f"{int(n):,}" for n in sizes), "exponent", largest]
    device = record["device"]
    ours, theirs = (record["cases"][name]["seconds"] for name in reversed(STEPS))
    ratios = ", ".join(f"{ours[n] / theirs[n]:.3f}" for n in sizes if ours[n])
    return (
        f"{markdown([header, *rows])}\nThe first call; of a step, the median of {ROUNDS} after "
        f"the first, both optimizers in turn. A step of `adamw` takes {ratios} times as long as "
        "one of `optax.adamw`. Leaves of 16 x 16, each case in a process of its own, "
        f"{device['cores']} cores ({device['kind']}), load {record['load']:.1f} at the start. The "
        "exponent is that between the last two sizes. GiB: the peak memory of the process, imports "
        f"included. -: not measured, more than {SECONDS // 60} minutes, or more than 16 GiB.\n\n"
        "![Seconds over leaves](benchmarks/results/growth.png)\n"
    )


def _text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--leaves", type=int, nargs="+", default=SIZES)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "steps"], default=[*CASES, "steps"])
    parser.add_argument("--one", nargs=2, help="measure one case here and print it")
    parser.add_argument("--steps", nargs="+", help="measure steps here: the leaves, the order")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    if options.steps:
        print(json.dumps(measure_steps(options.steps[1:], int(options.steps[0]))))
        return
    path = options.out / "growth.json"
    old = json.loads(path.read_text())["cases"] if path.exists() else {}
    record = {"name": "growth", **environment(), "load": os.getloadavg()[0], "cases": {}}
    for name in tracked(CASES, "calls"):
        new = {str(n): in_process(name, n) for n in options.leaves if name in options.cases}
        record["cases"][name] = merged(old.get(name, {}), new)
        print(name, record["cases"][name], flush=True)
    taken = {str(n): steps(n) for n in options.leaves if "steps" in options.cases}
    for name in STEPS:
        new = {n: rows[name] for n, rows in taken.items()}
        record["cases"][name] = merged(old.get(name, {}), new)
        print(name, record["cases"][name], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    draw(record, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
