"""Does a language model train better when its matrices keep their norm than with weight decay?

The small transformer of `examples/transformer_lm.py`, 200 steps, cosine annealing. AdamW over a
grid of learning rates and decays; `hyperball` of Adam's direction on the matrices of the blocks and
AdamW without decay on the rest, over as many cells: relative steps and rates of the rest. Half of
the seeds choose a cell, the other half compares.

Usage: python -m benchmarks.study.hyperball [--out DIR] [--quick]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib import language
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.readings import Comparison, chosen_by_half, paired, summary
from benchmarks.lib.rules import PERCENT
from benchmarks.lib.tables import markdown, of_grid
from optax_decoupled import sweep

QUESTION = (__doc__ or "").partition("\n")[0]
RATES = 0.002 * 2.0 ** np.arange(4)
SEEDS = 8


def labels(params: Any) -> Any:
    """The kernels of the blocks, and the rest."""

    def label(path: Any, _: Any) -> str:
        names = {str(getattr(key, "key", "")) for key in path}
        return "matrices" if {"blocks", "kernel"} <= names else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def adamw(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformationExtraArgs:
    eta = optax.cosine_decay_schedule(1.0, language.STEPS)
    return od.adamw(learning_rate, weight_decay, schedule=eta, mask=od.decay_mask)


def hyperball(relative_step: Any, rest: Any) -> optax.GradientTransformationExtraArgs:
    eta = optax.cosine_decay_schedule(1.0, language.STEPS)
    matrices = od.hyperball(optax.scale_by_adam(), lambda count: relative_step * eta(count))
    parts = {"matrices": matrices, "rest": od.adamw(rest, 0.0, schedule=eta)}
    return optax.partition(parts, labels)


GRIDS = {  # the optimizer; its two axes, in the order in which a sweep passes them
    "AdamW": (adamw, ("rate", RATES), ("λ", 2.0 ** np.arange(-9, -1, 2))),
    "hyperball": (
        hyperball,
        ("relative step", 2.0 ** np.arange(-7, -3)),
        ("rate of the rest", RATES),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="one cell each, to see that it works")
    arguments = parser.parse_args()
    take, seeds = (4, range(4)) if arguments.quick else (1, range(SEEDS))
    task, sha256 = language.language_task()
    start = time.perf_counter()
    optimizers = {}
    for name, (make, (_, first), (_, second)) in GRIDS.items():
        axes = dict(learning_rates=first[::take].tolist(), weight_decays=second[::take].tolist())
        optimizers[name] = summary(sweep.run(task, make, **axes, seeds=seeds))
    record = {
        "question": QUESTION,
        **environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "budget": {"steps": language.STEPS, "batch_size": language.BATCH, "seeds": len(seeds)},
        "text_sha256": sha256,
        "optimizers": optimizers,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "hyperball.json", record)
    print(report(record))


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    found = record["optimizers"]
    table = [["optimizer", "cross-entropy, nats per character", "chosen cell"]]
    for name, x in found.items():
        loss = chosen_by_half(x)
        table.append([name, f"{loss.mean():.3f} ± {loss.std(ddof=1):.3f}", cell(name, x)])
    difference = nats(paired(*(chosen_by_half(found[name]) for name in GRIDS)))
    return f"{markdown(table)}\nAdamW's minus hyperball's: {difference}.\n\n{regime(record)}"


def regime(record: dict[str, Any]) -> str:
    budget = record["budget"]
    half = budget["seeds"] - budget["seeds"] // 2
    return (
        f"A transformer of {language.BLOCKS} blocks of width {language.WIDTH} on "
        f"{language.TRAIN:,} characters of Python's `argparse.py`, {budget['steps']} steps of "
        f"{budget['batch_size']} × {language.CONTEXT} characters, cosine annealing, measured on "
        "the text after the training text. AdamW decays the parameters that `decay_mask` selects; "
        "hyperball trains the blocks' matrices, and AdamW without decay the rest. "
        f"{axes_text(record['optimizers'])} {half} seeds choose the cell, {half} others are shown "
        f"and compared: ± is their standard deviation, brackets are the {PERCENT} interval of the "
        "paired difference (Student's t).\n"
    )


def cell(name: str, x: dict[str, Any]) -> str:
    """What the first half of the seeds chooses, and whether it lies at an end of an axis."""
    errors = np.array(x["error_percent"], float)
    mean = errors[..., : errors.shape[-1] // 2].mean(-1)
    place = np.unravel_index(np.nanargmin(mean), mean.shape)
    axes = zip(GRIDS[name][1:], ("learning_rates", "weight_decays"), place, strict=True)
    return ", ".join(f"{title} {of_grid(x[key], i)}" for (title, _), key, i in axes)


def axes_text(found: dict[str, Any]) -> str:
    parts = []
    for name, x in found.items():
        axes = zip(GRIDS[name][1:], (x["learning_rates"], x["weight_decays"]), strict=True)
        spans = [f"{title} {v[0]:.2g} to {v[-1]:.2g} ({len(v)})" for (title, _), v in axes]
        parts.append(f"{name}'s grid: {', '.join(spans)}.")
    return " ".join(parts)


def nats(x: Comparison) -> str:
    chance = ", which may be chance" if x.points.may_be_chance else ""
    return f"{x.points.text(3)} nats{chance}"


if __name__ == "__main__":
    main()
