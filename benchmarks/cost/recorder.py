"""What does record_weight_dynamics cost beside the optimizer step that it records?

Three trees: eight weights of a million, a hundred of 512 x 512, a thousand of a thousand; gradients
given, parameters and state donated: the optimizer's step alone. Each tree runs twice, in a process
of its own: once with the bare step built first, once with the recorded one. The two are timed in
turns, another one first in each; medians of the times, and the median of the ratios of a turn.
Compile times (trace and XLA) are those of the second build of each. Last, a whole training step of
a small language model (forward, backward, optimizer), with and without the recorder. Asked for:
at most 1.3 x the bare step on the first two trees, 1.6 x on the third, 1.5 x its compile time, and
2 % of the training step.

Usage: python -m benchmarks.cost.recorder [--out DIR] [--turns N]
"""

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_decoupled as od
from benchmarks.lib.harness import RESULTS, environment, in_new_process, write_json
from benchmarks.lib.progress import tracked

TREES = {
    "8 weights of a million": (8, (1_000_000,)),
    "100 weights of 512 x 512": (100, (512, 512)),
    "1,000 weights of 1,000": (1000, (1000,)),
}
MODEL = "a language model's training step"
WIDTH, LAYERS, CONTEXT, BATCH, VOCABULARY = 128, 4, 128, 16, 128
Step = Callable[[Any, Any, Any], Any]


def optimizers() -> dict[str, optax.GradientTransformation]:
    bare = od.adamw(1e-3, 1e-4)
    return {"bare": bare, "recorded": optax.chain(bare, od.record_weight_dynamics())}


def step_alone(tx: optax.GradientTransformation) -> Step:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        sizes = ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
        self.up, self.down = (nnx.Linear(*size, rngs=rngs) for size in sizes)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x, mask = self.embed(text), nnx.make_causal_mask(text)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def language_model() -> tuple[Any, Any, Callable[[optax.GradientTransformation], Step]]:
    graph, params = nnx.split(Transformer(nnx.Rngs(0)), nnx.Param)
    text = jax.random.randint(jax.random.key(0), (BATCH, CONTEXT + 1), 0, VOCABULARY)

    def loss(params: Any, text: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, copy=True)(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()

    def step_of(tx: optax.GradientTransformation) -> Step:
        def step(params: Any, state: Any, text: Any) -> Any:
            updates, state = tx.update(jax.grad(loss)(params, text), state, params)
            return optax.apply_updates(params, updates), state

        return step

    return params, text, step_of


def given_gradients(leaves: int, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(0), leaves)
    params = [jax.random.normal(key, shape) for key in keys]
    return params, [0.1 * x for x in params], step_alone


class Contestant:
    """A compiled step and its arguments."""

    def __init__(self, tx: optax.GradientTransformation, step: Step, params: Any, last: Any):
        self.last, self.carry = last, (jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params))
        start = time.perf_counter()
        jitted = functools.partial(jax.jit, donate_argnums=(0, 1))(step)
        self.step = jitted.lower(*self.carry, last).compile()
        self.compile_seconds = time.perf_counter() - start

    def seconds(self) -> float:
        start = time.perf_counter()
        self.carry = jax.block_until_ready(self.step(*self.carry, self.last))
        return time.perf_counter() - start


def measure(case: str, first: str, turns: int) -> dict[str, Any]:
    """One process: both steps, `first` built first."""
    params, last, step_of = language_model() if case == MODEL else given_gradients(*TREES[case])
    order = sorted(optimizers(), key=lambda name: name != first)
    rivals = {
        name: Contestant(optimizers()[name], step_of(optimizers()[name]), params, last)
        for name in order
    }
    times: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(-3, turns):
        for name in order if turn % 2 else order[::-1]:
            seconds = rivals[name].seconds()
            if turn >= 0:
                times[name].append(seconds)
    ratios = [a / b for a, b in zip(times["recorded"], times["bare"], strict=True)]
    return {
        "built_first": first,
        "ratio": round(statistics.median(ratios), 3),
        "milliseconds": {n: round(1e3 * statistics.median(t), 3) for n, t in times.items()},
        "compile_seconds": {n: round(r.compile_seconds, 2) for n, r in rivals.items()},
        "temporary_bytes": {
            n: getattr(r.step.memory_analysis(), "temp_size_in_bytes", None)
            for n, r in rivals.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--case", nargs=2, help="measure one case here and print it")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*options.case, options.turns)))
        return
    load = os.getloadavg()[0]
    results = {}
    for case in tracked((*TREES, MODEL), "cases"):
        command = ("benchmarks.cost.recorder", "--turns", str(options.turns), "--case", case)
        runs = [in_new_process(*command, first) for first in ("bare", "recorded")]
        second = {run["built_first"]: run["compile_seconds"] for run in runs}
        compiling = second["bare"]["recorded"] / second["recorded"]["bare"]
        ratio = statistics.fmean(run["ratio"] for run in runs)
        results[case] = {
            "ratio": round(ratio, 3),
            "compile_ratio": round(compiling, 2),
            "runs": runs,
        }
        print(f"{case:34}{ratio:6.3f} x the bare step, {compiling:.2f} x its compile time")
    record = {"name": "recorder", **environment(), "load": load, "turns": options.turns}
    write_json(options.out / "recorder.json", {**record, "results": results})


if __name__ == "__main__":
    main()
