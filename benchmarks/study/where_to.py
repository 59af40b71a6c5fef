"""When a network is tuned to a few images, where should decay pull its weights: to 0, to where
they came from, or nowhere?

A small network learns one task on scikit-learn's digits and is tuned to five images of each class
of another: classes it has not seen, or the same classes inverted. AdamW, over a grid of learning
rates and decays; half of the seeds choose a cell by the error on the new task, the other half
compares.

Usage: python -m benchmarks.study.where_to [--out DIR] [--quick]
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import optax_decoupled as od
from benchmarks.lib import fine_tuning
from benchmarks.lib.data import digits
from benchmarks.lib.drawing import save
from benchmarks.lib.fine_tuning import SHOTS, STEPS, TASKS, Draw
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.readings import Comparison, paired, points, rounded
from benchmarks.lib.rules import PERCENT
from benchmarks.lib.tables import bullets, image, markdown, of_grid

QUESTION = " ".join((__doc__ or "").partition("\n\n")[0].split())
RATES = 2.0 ** np.arange(-10, -5, 2)
DECAYS = 2.0 ** np.arange(-12, -3)
SEEDS = 40
PULLS = {"none": {}, "to 0": {}, "to the start": {"toward": od.toward_init()}}
PAIRS = (("none", "to 0"), ("none", "to the start"), ("to 0", "to the start"))
Errors = dict[str, list[Any]]  # of the old task and the new: [rates, decays, seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works")
    arguments = parser.parse_args()
    seeds, rates, decays = list(range(SEEDS)), RATES, DECAYS
    if arguments.quick:
        seeds, rates, decays = seeds[:4], rates[1:2], decays[[0, -1]]
    start = time.perf_counter()
    tasks = {name: errors(task, seeds, rates, decays) for name, task in TASKS.items()}
    record = {
        "question": QUESTION,
        **environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "layers": list(fine_tuning.LAYERS),
        "budget": {"steps": STEPS, "shots": SHOTS, "pretraining": fine_tuning.PRETRAINING},
        "learning_rates": rates.tolist(),
        "weight_decays": decays.tolist(),
        "seeds": seeds,
        "tasks": tasks,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "where_to.json", record)
    draw(record, arguments.out / "where_to.png")
    print(report(record))


def errors(
    task: fine_tuning.Task, seeds: list[int], rates: np.ndarray, decays: np.ndarray
) -> dict[str, Errors]:
    """Of each pull; none has one decay, 0."""
    data = digits()
    drawn = [fine_tuning.draw(data.labels, task, seed) for seed in seeds]
    draws = Draw(*map(np.stack, zip(*drawn, strict=True)))
    networks = fine_tuning.pretrained(data, draws, seeds)
    found = {}
    for name, how in tracked(PULLS.items(), "pulls"):
        axis = [0.0] if name == "none" else decays
        cells = np.array(list(itertools.product(rates, axis)), np.float32)
        both = fine_tuning.tuned(data, task, draws, networks, cells, **how)
        both = both.reshape(2, len(rates), len(axis), len(seeds))
        found[name] = dict(zip(("old", "new"), rounded(both.tolist()), strict=True))
    return found


def chosen(found: Errors) -> tuple[int, int]:
    """The rate and decay of the lowest mean error on the new task, by the first half of seeds."""
    new = np.array(found["new"])
    mean = new[..., : new.shape[-1] // 2].mean(-1)
    rate, decay = np.unravel_index(mean.argmin(), mean.shape)
    return int(rate), int(decay)


def compared(found: Errors) -> dict[str, np.ndarray]:
    """The errors of the other half in that cell."""
    cell = chosen(found)
    return {key: np.array(x)[cell][len(x[0][0]) // 2 :] for key, x in found.items()}


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    half = len(record["seeds"]) - len(record["seeds"]) // 2
    parts = [image({"name": "where_to"}, "Error on the new task and the old over the decay")]
    for name, pulls in record["tasks"].items():
        parts += [markdown(rows(name, record, pulls)), bullets(sentences(pulls))]
    layers = "-".join(map(str, record["layers"]))
    budget, rates, decays = (record[x] for x in ("budget", "learning_rates", "weight_decays"))
    parts.append(
        f"MLP {layers} with ReLU and no norm. {budget['pretraining']} steps of batches of 64 on "
        f"half of the digits, then {budget['steps']} steps on {budget['shots']} images of each new "
        f"class, all in one batch; AdamW, cosine annealing, decay on kernels. Rates "
        f"{rates[0]:.2g} to {rates[-1]:.2g} in factors of four, λ {decays[0]:.2g} to "
        f"{decays[-1]:.2g} in factors of two. {half} seeds choose rate and decay by the error on "
        f"the new task, {half} others are shown: ± is their standard deviation, brackets are "
        f"{PERCENT} intervals of paired differences (Student's t).\n"
    )
    return "\n".join(parts)


def rows(name: str, record: dict[str, Any], pulls: dict[str, Errors]) -> list[list[str]]:
    table = [[f"{name}; decay", "rate", "λ", "error on the new, %", "on the old, %"]]
    for pull, found in pulls.items():
        rate, decay = chosen(found)
        shown = [
            f"{x.mean():.1f} ± {x.std(ddof=1):.1f}" for x in reversed(compared(found).values())
        ]
        size = "0" if pull == "none" else of_grid(record["weight_decays"], decay)
        table.append([pull, of_grid(record["learning_rates"], rate), size, *shown])
    return table


def sentences(pulls: dict[str, Errors]) -> list[str]:
    half = {pull: compared(found) for pull, found in pulls.items()}
    found = []
    for first, second in PAIRS:
        differences = {key: paired(half[first][key], half[second][key]) for key in ("new", "old")}
        texts = [f"on the {key} {difference(x)}" for key, x in differences.items()]
        found.append(f"Error with “{first}” minus error with “{second}”: {'; '.join(texts)}.")
    return found


def difference(x: Comparison) -> str:
    if not any(x.points):
        return "none"
    return points(x) + (" (may be chance)" if x.points.may_be_chance else "")


def draw(record: dict[str, Any], path: Path) -> None:
    """For each task the mean error over the decay, at the rate that the first half chooses."""
    figure, axes = plt.subplots(1, len(TASKS), figsize=(9, 3.6), layout="constrained")
    for ax, (name, pulls) in zip(axes, record["tasks"].items(), strict=True):
        for color, (pull, found) in zip(("0.5", "C0", "C1"), pulls.items(), strict=True):
            rate, _ = chosen(found)
            for key, style in {"new": "-", "old": ":"}.items():
                mean = np.array(found[key])[rate].mean(-1)
                x = record["weight_decays"]
                y = np.broadcast_to(mean, len(x))
                ax.plot(x, y, style, color=color, label=f"{pull}, {key}")
        ax.set(xscale="log", xlabel="λ", title=name, ylim=(0, None))
    axes[0].set_ylabel("test error (%)")
    axes[0].legend(fontsize="small")
    save(figure, path)


if __name__ == "__main__":
    main()
