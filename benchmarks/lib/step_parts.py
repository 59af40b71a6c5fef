"""Generated parts of the page on step cost, made of step_cost.json."""

import json
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.lib.harness import RESULTS
from benchmarks.lib.tables import markdown

RIVALS = ("optax.adamw", "od.adamw", "torch, fused", "torch, foreach", "machine limit")


def step_cost() -> str:
    """Milliseconds a step: Optax, this package, PyTorch and the machine's limit."""
    record = _load("rivals")
    rows = [
        [tree, *(_milliseconds(steps.get(name)) for name in RIVALS)]
        for tree, steps in record["trees"].items()
    ]
    device, versions = record["device"], record["versions"]
    return (
        f"Median milliseconds of a jitted AdamW step in float32 on {device['cores']} cores "
        f"({device['kind']}; JAX {versions['jax']}, PyTorch {versions['torch']}):\n\n"
        + markdown([["parameters", *(f"`{x}`" if "." in x else x for x in RIVALS)], *rows])
    )


def step_summary() -> str:
    """Each variant beside its counterpart: geometric means over the networks, and extremes."""
    trees = _load("variants")["trees"]
    rows = []
    for name in _variants(trees):
        found = [tree[name] for tree in trees.values() if name in tree]
        cells = [
            _mean_and_range([x[f"{kind}_ratio"] for x in found], digits)
            for kind, digits in {"time": 2, "bytes": 3, "compile": 2}.items()
        ]
        rows.append([f"`{name}`", f"`{found[0]['baseline']}`", *cells])
    return markdown([["step", "relative to", "time", "bytes", "time to compile"], *rows])


def step_variants() -> str:
    """Time, bytes and compile time relative to the stock optimizer that does the same work."""
    trees = _load("variants")["trees"]
    names = _variants(trees)

    def table(key: str, digits: int) -> str:
        rows = []
        for name in names:
            found = [tree.get(name) for tree in trees.values()]
            values = (f"{x[key]:.{digits}f}" if x else "" for x in found)
            rows.append([name, found[0]["baseline"], *values])
        return markdown([["step", "relative to", *trees], *rows])

    return (
        "Time of a step:\n\n"
        + table("time_ratio", 2)
        + "\nBytes accessed, as XLA counts them in the compiled step:\n\n"
        + table("bytes_ratio", 4)
        + "\nTime to compile:\n\n"
        + table("compile_ratio", 2)
    )


def step_dtypes() -> str:
    """How parameters and moments are stored: bytes, time of a step, loss after training."""
    losses = json.loads((RESULTS / "bfloat16.json").read_text())["modes"]
    rows = []
    for name, x in _load("dtypes")["choices"].items():
        if name not in losses:
            continue  # the baseline
        loss = losses[name]["final_loss"]
        rows.append(
            [
                name,
                f"{x['state_bytes']:.0f}",
                f"{x['peak_bytes']:.1f}",
                f"{x['bytes_accessed']:.0f}",
                f"{x['time_ratio']:.2f}",
                f"{x['compile_ratio']:.1f}",
                f"{statistics.mean(loss):.4f} ± {statistics.stdev(loss):.4f}",
            ]
        )
    headers = ["parameters", "state", "peak", "accessed", "time", "compile time", "loss"]
    return (
        "ViT-B; bytes per parameter: of the state; at the peak of a step (weights, gradients, "
        "state and temporaries) and accessed; times relative to `optax.adamw` in float32; and the "
        "final training loss of the small transformer on the page on low precision:\n\n"
        + markdown([headers, *rows])
    )


def step_growth() -> str:
    """Step and build time over the number of leaves and of parameters."""
    record = _load("growth")

    def rows(key: str, label: Callable[[dict[str, Any]], str]) -> list[list[str]]:
        return [
            [
                label(row),
                *(_milliseconds(row[name]) for name in RIVALS[:2]),
                *(f"{sum(row[name]['build'].values()):.2f}" for name in RIVALS[:2]),
            ]
            for row in record[key]
        ]

    headers = [*(f"{x}, ms" for x in RIVALS[:2]), *(f"{x}, build s" for x in RIVALS[:2])]
    leaves = rows("by_leaves", lambda row: f"{row['leaves']:,}")
    sizes = rows("by_parameters", lambda row: f"{row['parameters']:.0e}".replace("e+0", "e"))
    return (
        "Leaves of 1,000 parameters:\n\n"
        + markdown([["leaves", *headers], *leaves])
        + "\nOne leaf:\n\n"
        + markdown([["parameters", *headers], *sizes])
    )


def step_xla_options() -> str:
    """AdamW on one leaf under options of XLA's CPU backend, beside the limit."""
    found = _load("xla_options")["options"]
    limit = found["machine limit"]["seconds"]
    rows = [[name, _milliseconds(x), f"{x['seconds'] / limit:.2f}"] for name, x in found.items()]
    return markdown([["`optax.adamw`, one leaf of 8 M", "ms", "relative to the limit"], *rows])


def _variants(trees: dict[str, Any]) -> list[str]:
    return [name for name, x in next(iter(trees.values())).items() if "time_ratio" in x]


def _mean_and_range(ratios: list[float], digits: int) -> str:
    """The extremes are left out where they read like the mean."""
    values = [statistics.geometric_mean(ratios), min(ratios), max(ratios)]
    mean, low, high = (f"{x:.{digits}f}" for x in values)
    return mean if low == high else f"{mean} ({low} to {high})"


def _milliseconds(step: dict[str, Any] | None) -> str:
    return f"{1e3 * step['seconds']:.3g}" if step else "-"


def _load(part: str) -> dict[str, Any]:
    return json.loads((RESULTS / "step_cost.json").read_text())[part]


def fused_outputs() -> str:
    """AdamW on CPU with and without one loop for several outputs, beside the limit."""
    record = json.loads((RESULTS / "fused_outputs.json").read_text())
    rows = []
    for tree, x in record["trees"].items():
        plain, fused = (x[flags]["od.adamw"] for flags in ("default", "fused outputs"))
        cells = [f"{1e3 * y['seconds']:.3g}" for y in (plain, fused)]
        cells += [f"{fused['seconds'] / plain['seconds']:.2f}", f"{1e3 * x['machine limit']:.3g}"]
        numbers = " → ".join(f"{y['bytes_accessed'] / 4:.1f}" for y in (plain, fused))
        built = " → ".join(f"{y['build_seconds']:.1f}" for y in (plain, fused))
        rows.append([tree, *cells, numbers, built])
    same = all(all(x["same_bits"].values()) for x in record["trees"].values())
    bits = (
        "the same bits with the flag as without"
        if same
        else "other bits with the flag than without"
    )
    header = ["`od.adamw`", "ms", "with the flag", "ratio", "limit, ms", "numbers", "build, s"]
    return markdown([header, *rows]) + (
        f"\nOn {record['device']['cores']} cores ({record['device']['kind']}; JAX "
        f"{record['versions']['jax']}), each optimizer built in both orders. After ten steps the "
        f"weights and moments of `optax.adamw`, `od.adamw` and `od.adamw` with a schedule have "
        f"{bits}.\n"
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "step_cost": step_cost,
    "step_summary": step_summary,
    "step_variants": step_variants,
    "step_dtypes": step_dtypes,
    "step_growth": step_growth,
    "step_xla_options": step_xla_options,
    "fused_outputs": fused_outputs,
}
