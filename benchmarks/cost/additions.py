"""What do toward, hyperball, norm_change, AdamC and weight_dynamics cost beside a plain AdamW step?

Eight weights of a million elements, and a thousand of a thousand; gradients given, parameters and
state donated: the optimizer's step alone, so the shares are upper bounds; a network's forward and
backward passes come on top. Only AdamC, which needs one, has a schedule. The competitors are
compiled first, then timed in turns, another one first in each; medians, and ratios to optax.adamw
of the same turn. Bytes are those that XLA's cost analysis counts.
An update over its own norm is the least that a transformation with a norm can cost: each weight is
read once for the sum and once for the step. What a plan and a report of a
whole run take is timed apart, in a process that has compiled them once.

Usage: python -m benchmarks.cost.additions [--out DIR] [--turns N]
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_decoupled as od
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked

RATE, DECAY = 1e-3, 1e-4
TREES = {"8 weights of a million": (8, (1000, 1000)), "1,000 weights of 1,000": (1000, (10, 100))}
RUN = 100_000  # steps of the run that is planned and reported
UNIT = "optax.adamw"
ETA = optax.cosine_decay_schedule(1.0, 10_000)
Watch = Callable[[Any, Any, jax.Array], Any]


def nothing(params: Any, updates: Any, t: jax.Array) -> Any:
    del params, updates, t
    return ()


def watched(params: Any, updates: Any, t: jax.Array) -> Any:
    del t
    return od.weight_dynamics(params, updates)


def seldom_watched(params: Any, updates: Any, t: jax.Array) -> Any:
    shapes = jax.eval_shape(od.weight_dynamics, params, updates)
    skip = lambda *_: jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
    return jax.lax.cond(t % 10 == 0, od.weight_dynamics, skip, params, updates)


def over_norms() -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: u / jnp.linalg.norm(u), updates)
    )


def contestants() -> dict[str, tuple[optax.GradientTransformation, Watch]]:
    adamw = functools.partial(od.adamw, RATE, DECAY)
    return {
        UNIT: (optax.adamw(RATE, weight_decay=0.1), nothing),
        "adamw": (adamw(), nothing),
        "adamw, toward_init": (adamw(toward=od.toward_init()), nothing),
        "adamw, toward_argument": (adamw(toward=od.toward_argument()), nothing),
        "adamw, toward_rms": (adamw(toward=od.toward_rms()), nothing),
        "adamc": (od.adamc(RATE, DECAY, schedule=ETA), nothing),
        "adamw, each update over its norm": (optax.chain(adamw(), over_norms()), nothing),
        "hyperball": (od.hyperball(optax.scale_by_adam(), RATE), nothing),
        "adamw, norm_change": (optax.chain(adamw(), od.norm_change(outward=0.5)), nothing),
        "adamw, weight_dynamics": (adamw(), watched),
        "adamw, weight_dynamics every 10th": (adamw(), seldom_watched),
    }


class Contestant:
    """A compiled step, with what it moves."""

    def __init__(self, tx: optax.GradientTransformation, watch: Watch, params: Any, grads: Any):
        self.grads, self.reference = grads, jax.tree.map(jnp.zeros_like, params)
        tx = optax.with_extra_args_support(tx)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, grads: Any, reference: Any, t: jax.Array) -> Any:
            updates, state = tx.update(grads, state, params, reference=reference)
            return optax.apply_updates(params, updates), state, watch(params, updates, t)

        self.carry = jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params)
        arguments = (*self.carry, grads, self.reference, jnp.int32(0))
        self.step = step.lower(*arguments).compile()
        self.bytes_moved = (self.step.cost_analysis() or {})["bytes accessed"]
        self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.carry[1]))

    def seconds(self, t: int) -> float:
        start = time.perf_counter()
        out = self.step(*self.carry, self.grads, self.reference, jnp.int32(t))
        jax.block_until_ready(out)
        self.carry = out[:2]
        return time.perf_counter() - start


def measure(turns: int, leaves: int, shape: tuple[int, ...]) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), leaves)
    params = {f"layer_{i}": {"kernel": jax.random.normal(k, shape)} for i, k in enumerate(keys)}
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    size = sum(x.size for x in jax.tree.leaves(params))
    rivals = {n: Contestant(*how, params, grads) for n, how in contestants().items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for t in tracked(range(-3, turns), f"{leaves} weights"):
        names = list(rivals)
        first = t % len(names)  # so that none always follows the same one
        for name in names[first:] + names[:first]:
            seconds = rivals[name].seconds(t + 10)
            if t >= 0:
                times[name].append(seconds)
    ratios = {n: [a / b for a, b in zip(x, times[UNIT], strict=True)] for n, x in times.items()}
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(times[name]), 3),
            "mean_milliseconds": round(1e3 * statistics.fmean(times[name]), 3),
            "ratio": round(statistics.median(ratios[name]), 3),
            "bytes_per_parameter": round(rival.bytes_moved / size, 2),
            "state_bytes_per_parameter": round(rival.state_bytes / size, 2),
        }
        for name, rival in rivals.items()
    }


def calls(turns: int) -> dict[str, list[float]]:
    """Seconds of each turn."""
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, 2_000, RUN)
    params = {f"layer_{i}": {"kernel": jnp.ones((256, 256))} for i in range(12)}
    tx = optax.adamw(rate, weight_decay=0.1)
    what: dict[str, Callable[[], Any]] = {
        "plan_weight_decay": lambda: od.plan_weight_decay(RUN, weight_decay=DECAY, schedule=ETA),
        "explain_weight_decay": lambda: od.explain_weight_decay(tx, params),
        "explain_weight_decay, steps=": lambda: od.explain_weight_decay(tx, params, steps=RUN),
    }
    seconds: dict[str, list[float]] = {name: [] for name in what}
    for turn in tracked(range(-1, turns), "calls"):
        for name, call in what.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(round(time.perf_counter() - start, 4))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--turns", type=int, default=60)
    arguments = parser.parse_args()
    record = {"name": "additions", **environment(), "turns": arguments.turns, "trees": {}}
    for name, (leaves, shape) in TREES.items():
        found = measure(arguments.turns, leaves, shape)
        record["trees"][name] = {"leaves": leaves, "shape": list(shape), "results": found}
        print(name)
        for step, row in found.items():
            print(f"{step:36} {row['milliseconds']:7.2f} ms  x{row['ratio']:.2f}  ", end="")
            print(f"{row['bytes_per_parameter']:5.1f} B moved  ", end="")
            print(f"{row['state_bytes_per_parameter']:4.1f} B kept", flush=True)
    record["calls"] = {"steps": RUN, "seconds": calls(5)}
    for name, seconds in record["calls"]["seconds"].items():
        print(f"{name:36} {statistics.median(seconds):7.3f} s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "additions.json", record)


if __name__ == "__main__":
    main()
