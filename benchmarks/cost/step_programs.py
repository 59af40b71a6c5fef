"""Optimizer steps in JAX, compiled, with what XLA says of each."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_decoupled as od
from benchmarks.cost.step_trees import Shapes
from benchmarks.lib.progress import tracked

BASELINE = "optax.adamw"


class Variant(NamedTuple):
    """A step: an optimizer, and how parameters are stored and rounded.

    Attributes:
      make: builds the optimizer.
      dtype: of parameters and gradients.
      stochastic: whether updates are rounded stochastically.
      baseline: the variant to compare with, which does the same work.
    """

    make: Callable[[], optax.GradientTransformation]
    dtype: Any = jnp.float32
    stochastic: bool = False
    baseline: str = BASELINE


class Program(NamedTuple):
    """A compiled step and the arrays that it runs on."""

    step: Any
    carry: Any
    grads: Any


def _step(variant: Variant) -> tuple[optax.GradientTransformation, Any]:
    tx = variant.make()

    def step(carry: Any, grads: Any) -> Any:
        params, state, key = carry
        updates, state = tx.update(grads, state, params)
        if not variant.stochastic:
            return optax.apply_updates(params, updates), state, key
        key, now = jax.random.split(key)
        return od.apply_updates_with_stochastic_rounding(params, updates, now), state, key

    return tx, jax.jit(step, donate_argnums=0)


def build(variant: Variant, shapes: Shapes, options: dict[str, Any] | None = None) -> Program:
    """Compiles a step, with XLA options if given."""
    tx, step = _step(variant)
    params = {name: jnp.full(shape, 0.1, variant.dtype) for name, shape in shapes.items()}
    grads = jax.tree.map(lambda p: 0.01 * p, params)
    carry = (params, jax.jit(tx.init)(params), jax.random.key(0))
    return Program(step.lower(carry, grads).compile(compiler_options=options), carry, grads)


def run(program: Program) -> tuple[float, Program]:
    """The seconds of one step, and the program after it."""
    start = time.perf_counter()
    carry = jax.block_until_ready(program.step(program.carry, program.grads))
    return time.perf_counter() - start, program._replace(carry=carry)


def analysed(variants: dict[str, Variant], shapes: Shapes, rounds: int) -> dict[str, Any]:
    """Of each variant: bytes, FLOPs, and medians of the times to trace, lower and compile."""
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in variants}
    found = {}
    for round_ in tracked(range(rounds + 1), "compiling"):
        for name, variant in variants.items():
            jax.clear_caches()
            times, found[name] = _analyse(variant, shapes)
            if round_:  # the first one warms up
                seconds[name].append(times)
    for name, rows in seconds.items():
        stages = zip(("trace", "lower", "compile"), zip(*rows, strict=True), strict=True)
        found[name]["seconds"] = {stage: statistics.median(column) for stage, column in stages}
    return found


def _analyse(variant: Variant, shapes: Shapes) -> tuple[tuple[float, ...], dict[str, float]]:
    tx, step = _step(variant)
    params = {name: jax.ShapeDtypeStruct(shape, variant.dtype) for name, shape in shapes.items()}
    state = jax.eval_shape(tx.init, params)
    key = jax.eval_shape(jax.random.key, 0)
    ticks = [time.perf_counter()]
    stage = step.trace((params, state, key), params)
    ticks.append(time.perf_counter())
    stage = stage.lower()
    ticks.append(time.perf_counter())
    compiled = stage.compile()
    ticks.append(time.perf_counter())
    cost, memory, size = compiled.cost_analysis(), compiled.memory_analysis(), count(shapes)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    per_parameter = {
        "bytes_accessed": cost["bytes accessed"] / size,
        "flops": cost["flops"] / size,
        "state_bytes": sum(x.size * x.dtype.itemsize for x in _arrays(state)) / size,
        "peak_bytes": (held - memory.alias_size_in_bytes + memory.temp_size_in_bytes) / size,
    }
    return tuple(b - a for a, b in itertools.pairwise(ticks)), per_parameter


def _arrays(tree: Any) -> Iterable[Any]:
    return (x for x in jax.tree.leaves(tree) if x.size > 1)


def count(shapes: Shapes) -> int:
    return sum(jnp.prod(jnp.array(shape, int)).item() for shape in shapes.values())
