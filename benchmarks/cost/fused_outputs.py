"""How much faster is AdamW on CPU if XLA may fuse loops that have several outputs?

XLA's CPU backend emits a loop for each output, and AdamW's step has three. A flag of the whole
process allows one loop for several:

    XLA_FLAGS=--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true

It is read when JAX starts, so two processes, one with it, wait their turns and take their steps
alternately, in changing order, beside the machine's limit. Each builds its optimizers in both
orders. The arrays after ten steps are compared bit by bit.

Usage: python -m benchmarks.cost.fused_outputs [--out DIR] [--quick]
"""

import argparse
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cost import step_cost
from benchmarks.cost.step_programs import BASELINE, Program, build, count, run
from benchmarks.cost.step_rivals import rivals
from benchmarks.cost.step_trees import Shapes, trees
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked

FLAG = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion=true"
FLAGS = {"default": "", "fused outputs": FLAG}
OPTIMIZERS = (BASELINE, "od.adamw", "od.adamw, schedule")
COMPARED_STEPS = 10


class Server:
    """What each of the two processes does when it is asked to."""

    def __init__(self) -> None:
        self.programs: dict[tuple[str, bool], Program] = {}

    def build(self, shapes: Shapes, backwards: bool) -> dict[str, Any]:
        """Compiles all optimizers, in one order or the other."""
        found = {}
        for name in reversed(OPTIMIZERS) if backwards else OPTIMIZERS:
            jax.clear_caches()
            start = time.perf_counter()
            program = build(step_cost.VARIANTS[name], shapes)
            seconds, digest = time.perf_counter() - start, hashlib.sha256()
            for _ in range(COMPARED_STEPS):
                _, program = run(program)
            for x in jax.tree.leaves(program.carry[:2]):
                digest.update(np.asarray(x).tobytes())
            found[name] = {
                "build_seconds": seconds,
                "sha256": digest.hexdigest(),
                "bytes_accessed": program.step.cost_analysis()["bytes accessed"] / count(shapes),
            }
            self.programs[name, backwards] = program
        return found

    def step(self, name: str, backwards: bool) -> float:
        seconds, self.programs[name, backwards] = run(self.programs[name, backwards])
        return seconds

    def clear(self) -> None:
        self.programs.clear()


def serve(connection: Any) -> None:
    server = Server()
    while (call := connection.recv()) is not None:
        name, *arguments = call
        connection.send(getattr(server, name)(*arguments))


@contextlib.contextmanager
def process(flags: str) -> Iterator[Any]:
    """A function that has a process with these XLA_FLAGS do something."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} {flags}".strip()
    try:
        child = spawn.Process(target=serve, args=(there,), daemon=True)
        child.start()
    finally:
        os.environ["XLA_FLAGS"] = before
    there.close()

    def ask(*call: Any) -> Any:
        here.send(call)
        return here.recv()

    try:
        yield ask
    finally:
        here.send(None)
        child.join()


def measure(shapes: Shapes, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        asks = {name: stack.enter_context(process(flags)) for name, flags in FLAGS.items()}
        theirs = stack.enter_context(rivals(shapes, gpu=False))
        limit = theirs.get("machine limit")
        times: dict[Any, list[float]] = {}
        for backwards in (False, True):
            for flags, ask in asks.items():
                for name, x in ask("build", shapes, backwards).items():
                    found.setdefault(flags, {}).setdefault(name, []).append(x)
            for round_, name in tracked(itertools.product(range(rounds + 1), OPTIMIZERS), "rounds"):
                turns = list(asks.items())
                for flags, ask in turns if round_ % 2 else reversed(turns):
                    seconds = ask("step", name, backwards)
                    if round_:
                        times.setdefault((flags, name), []).append(seconds)
                if limit:
                    times.setdefault("limit", []).append(limit())
            for ask in asks.values():
                ask("clear")
    for (flags, name), seconds in ((k, v) for k, v in times.items() if k != "limit"):
        rows = found[flags][name]
        digest, *others = {x["sha256"] for x in rows}
        assert not others, f"{name}, {flags}: the two build orders differ"
        found[flags][name] = {
            "seconds": statistics.median(seconds),
            "bytes_accessed": rows[0]["bytes_accessed"],
            "build_seconds": statistics.median(x["build_seconds"] for x in rows),
            "sha256": digest,
        }
    plain, fused = (found[flags] for flags in FLAGS)
    return {
        **found,
        "machine limit": statistics.median(times["limit"]) if limit else None,
        "same_bits": {name: plain[name]["sha256"] == fused[name]["sha256"] for name in OPTIMIZERS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small trees and few rounds")
    arguments = parser.parse_args()
    record = {"name": "fused_outputs", **environment(), "load": os.getloadavg()[0], "flag": FLAG}
    record["trees"] = {}
    for tree, shapes in trees(arguments.quick).items():
        rounds = min(31, step_cost.rounds_for(shapes, arguments.quick))
        found = record["trees"][tree] = measure(shapes, rounds)
        for flags, name in itertools.product(FLAGS, OPTIMIZERS):
            x = found[flags][name]
            print(f"{tree:24}{name:20}{flags:14}{1e3 * x['seconds']:8.2f} ms", end="")
            print(f"{x['bytes_accessed'] / 4:6.1f} numbers, build {x['build_seconds']:.2f} s")
        print(f"  same bits: {found['same_bits']}", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / "fused_outputs.json", record)


if __name__ == "__main__":
    main()
