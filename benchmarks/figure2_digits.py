"""Does decoupling make learning rate and weight decay separable, and AdamW better than Adam+L2?

The paper's Figure 2 at small scale: SGD and Adam, each with L2 regularization and with
decoupled weight decay, over a grid of learning rate × decay, cosine annealing, decay on
kernels only. The data are scikit-learn's digits, 150 of them to train on; the network is an
MLP 64-128-128-10 with batch norm and, as the contrast, the same without normalization.

Usage: python benchmarks/figure2_digits.py [--out DIR] [--quick]
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from _harness import ROOT, environment, write_json
from data import digits, few_shot_batches
from models import MLP
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn
from rich.table import Table
from tasks import classification_task

import optax_decoupled as od
from optax_decoupled.sweep import Landscape, Task, ValleySlope, run

NETWORKS = {"batch norm": True, "no normalization": False}
LAYERS = (64, 128, 128, 10)
TRAIN_IMAGES, BATCH_SIZE = 150, 50
PAPER_IMPROVEMENT = 15  # percent of test error, AdamW over Adam+L2


class Contestant(NamedTuple):
    """An optimizer, its grid as exponents of 2, and what its decay is called."""

    factory: Callable[..., Any]
    peak: float
    rates: range
    decays: range
    decay_name: str = "weight decay λ"


CONTESTANTS = {
    "SGD+L2": Contestant(od.sgd_l2, 0.1, range(-5, 4), range(-13, 1), "L2 coefficient λ′"),
    "SGDW": Contestant(od.sgdw, 0.1, range(-5, 4), range(-15, -1)),
    "Adam+L2": Contestant(od.adam_l2, 0.002, range(-4, 5), range(-14, 0), "L2 coefficient λ′"),
    "AdamW": Contestant(od.adamw, 0.002, range(-4, 5), range(-14, 0)),
}


class Budget(NamedTuple):
    """How much is trained: all of it, or just enough to see that the job works."""

    epochs: int = 100
    seeds: int = 5
    rate_stride: int = 1
    decay_stride: int = 1

    @property
    def steps(self) -> int:
        return self.epochs * (TRAIN_IMAGES // BATCH_SIZE)


QUICK = Budget(epochs=10, seeds=2, rate_stride=4, decay_stride=5)
Landscapes = dict[str, dict[str, Landscape]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    budget = QUICK if arguments.quick else Budget()
    start = time.perf_counter()
    landscapes = train(budget)
    seconds = time.perf_counter() - start
    image, numbers = (arguments.out / f"figure2_digits.{kind}" for kind in ("png", "json"))
    draw(landscapes, image)
    write_json(numbers, record(landscapes, budget, seconds))
    console = Console()
    for network, row in landscapes.items():
        console.print(table(network, row))
    console.print(f"Trained in {seconds:.0f} s. Wrote {image} and {numbers}.\n", soft_wrap=True)
    console.print("\n".join(conclusion(landscapes)), highlight=False)


def train(budget: Budget) -> Landscapes:
    """The eight landscapes, under one progress bar."""
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        "left",
    )
    total = len(NETWORKS) * sum(cells(contestant, budget) for contestant in CONTESTANTS.values())
    landscapes: Landscapes = {}
    done = 0
    with Progress(*columns, speed_estimate_period=60) as bar:
        row = bar.add_task("", total=total)
        for network, batch_norm in NETWORKS.items():
            task = digits_task(batch_norm, budget)
            landscapes[network] = {}
            for name, contestant in CONTESTANTS.items():
                bar.update(row, description=f"{name}, {network}")
                tell = functools.partial(_advance, bar, row, done)
                landscapes[network][name] = landscape(task, contestant, budget, tell)
                done += cells(contestant, budget)
    return landscapes


def _advance(bar: Progress, row: TaskID, before: int, done: int, total: int) -> None:
    del total  # of this landscape
    bar.update(row, completed=before + done)


def grid(contestant: Contestant, budget: Budget) -> tuple[list[float], list[float]]:
    rates = [contestant.peak * 2.0**k for k in contestant.rates[:: budget.rate_stride]]
    return rates, [2.0**k for k in contestant.decays[:: budget.decay_stride]]


def cells(contestant: Contestant, budget: Budget) -> int:
    rates, decays = grid(contestant, budget)
    return len(rates) * len(decays) * budget.seeds


def digits_task(batch_norm: bool, budget: Budget) -> Task:
    data = digits()
    return classification_task(
        lambda rngs: MLP(LAYERS, batch_norm=batch_norm, rngs=rngs),
        data,
        lambda seed: few_shot_batches(data.labels, TRAIN_IMAGES, BATCH_SIZE, budget.epochs, seed),
        budget.steps,
        TRAIN_IMAGES,
    )


def landscape(
    task: Task, contestant: Contestant, budget: Budget, tell: Callable[[int, int], None]
) -> Landscape:
    cosine = optax.cosine_decay_schedule(1.0, budget.steps)

    def make_optimizer(learning_rate: Any, decay: Any) -> optax.GradientTransformation:
        return contestant.factory(learning_rate, decay, schedule=cosine, mask=od.decay_mask)

    rates, decays = grid(contestant, budget)
    return run(
        task,
        make_optimizer,
        learning_rates=rates,
        weight_decays=decays,
        seeds=range(budget.seeds),
        progress=tell,
    )


@functools.cache
def slope(landscape: Landscape) -> ValleySlope | None:
    try:
        return landscape.valley_slope()
    except ValueError:
        return None  # too few rates have their best decay inside the grid


def at_best(landscape: Landscape) -> np.ndarray:
    """The error of each seed in the best cell."""
    return landscape.metrics["error"][landscape.ranked()[0]]


class Comparison(NamedTuple):
    """Adam+L2 minus AdamW, each at its best cell, paired by seed: the same images and weights."""

    improvement: float  # percent of Adam+L2's error
    difference: float  # percentage points
    spread: float  # sample standard deviation over seeds, percentage points

    @property
    def within_spread(self) -> bool:
        return abs(self.difference) <= self.spread


def compare(row: dict[str, Landscape]) -> Comparison:
    l2, decoupled = at_best(row["Adam+L2"]), at_best(row["AdamW"])
    paired = l2 - decoupled
    return Comparison(
        float(100 * paired.mean() / l2.mean()), float(paired.mean()), float(paired.std(ddof=1))
    )


def near_best(landscape: Landscape) -> int:
    """In how many cells the mean error is at most 10 % above the best."""
    return int(np.sum(landscape.mean() <= 1.1 * landscape.best().mean))


def table(network: str, row: dict[str, Landscape]) -> Table:
    comparison = compare(row)
    caption = (
        f"AdamW against Adam+L2: {signed(comparison.improvement, 1)} % relative improvement "
        f"({points(comparison)}, paired by seed).\n"
        "±: standard deviation over seeds; each draws its own training images and weights."
    )
    title = f"MLP 64-128-128-10, {network}"
    result = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    result.add_column("optimizer")
    for column in ("test error %", "rate", "decay", "within 10 %", "valley slope"):
        result.add_column(column, justify="right")
    for name, x in row.items():
        best = x.best()
        result.add_row(
            name,
            f"{best.mean:.2f} ± {best.spread:.2f}",
            f"{best.learning_rate:.3g}",
            f"2^{np.log2(best.weight_decay):.0f}",
            f"{near_best(x)}/{x.mean().size}",
            slope_text(x),
        )
    return result


def signed(value: float, digits: int) -> str:
    """With its sign, and zero as +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def points(x: Comparison) -> str:
    return f"{signed(x.difference, 2)} ± {x.spread:.2f} points"


def slope_text(x: Landscape) -> str:
    found = slope(x)
    if found is None:
        return "not located"
    return f"{signed(found.slope, 2)} [{signed(found.low, 1)}, {signed(found.high, 1)}]"


def conclusion(landscapes: Landscapes) -> list[str]:
    """What was and was not reproduced, from the numbers alone."""
    normalized, plain = landscapes["batch norm"], landscapes["no normalization"]
    figure2, reversed_ = {"SGD+L2": -1, "SGDW": 0, "AdamW": 0}, {"SGD+L2": 0, "SGDW": 1, "AdamW": 1}
    return [
        separability("With batch norm the paper's Figure 2", normalized, figure2),
        separability("Without normalization the reverse", plain, reversed_),
        improvement("with batch norm", compare(normalized)),
        improvement("without normalization", compare(plain)),
        "The best cell is chosen by the same held-out error that is reported, over the whole grid, "
        "so every best error is a little optimistic, for all optimizers alike.",
    ]


MOVES = {-1: "halves", 0: "stays put", 1: "doubles"}


def separability(claim: str, row: dict[str, Landscape], expected: dict[str, int]) -> str:
    """Compares slopes with -1, 0 and +1: the nearest is what the best decay does."""
    moves, missed = [], []
    for name, value in expected.items():
        found = slope(row[name])
        move = "cannot be located" if found is None else MOVES[round(np.clip(found.slope, -1, 1))]
        moves.append(f"{name}'s {move} (slope {slope_text(row[name])}, expected {value})")
        if move != MOVES[value]:
            missed.append(name)
    extent = "" if not missed else "not " if len(missed) == len(expected) else "only partly "
    return (
        f"{claim} is {extent}reproduced. As the learning rate doubles, the best decay moves so: "
        f"{', '.join(moves)}."
    )


def improvement(where: str, x: Comparison) -> str:
    size = f"{signed(x.improvement, 1)} % ({points(x)})"
    if x.within_spread:
        return (
            f"AdamW's {PAPER_IMPROVEMENT} % improvement over Adam+L2 is not reproduced {where}: "
            f"{size}, a difference within the spread over seeds."
        )
    verdict = "better" if x.difference > 0 else "worse"
    return (
        f"AdamW is {verdict} than Adam+L2 {where} by more than the spread over seeds: {size}, "
        f"where the paper has {PAPER_IMPROVEMENT} %."
    )


def record(landscapes: Landscapes, budget: Budget, seconds: float) -> dict[str, Any]:
    return {
        "question": (__doc__ or "").partition("\n")[0],
        **environment(),
        "seconds": round(seconds, 1),
        "budget": {**budget._asdict(), "steps": budget.steps, "batch_size": BATCH_SIZE},
        "train_images": TRAIN_IMAGES,
        "layers": LAYERS,
        "networks": {
            network: {
                "comparison": rounded(compare(row)._asdict()),
                "optimizers": {name: summary(x) for name, x in row.items()},
            }
            for network, row in landscapes.items()
        },
        "conclusion": conclusion(landscapes),
    }


def summary(x: Landscape) -> dict[str, Any]:
    found = slope(x)
    return {
        "best": rounded(x.best()._asdict()),
        "cells_within_10_percent": near_best(x),
        "valley_slope": None if found is None else rounded(found._asdict()),
        "diverged": int(np.sum(x.diverged >= 0)),
        "learning_rates": x.learning_rates.tolist(),
        "weight_decays": x.weight_decays.tolist(),
        "seeds": x.seeds.tolist(),
        "error_percent": rounded(x.metrics["error"].tolist()),
    }


def rounded(value: Any) -> Any:
    """Floats to 5 significant digits, NaN to None, through dicts and lists."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value


def draw(landscapes: Landscapes, path: Path) -> None:
    """A row of heatmaps for each network, under one colour scale."""
    figure = plt.figure(figsize=(15, 8), layout="constrained")
    parts = figure.subfigures(len(landscapes), 1)
    for part, (network, row) in zip(parts, landscapes.items(), strict=True):
        best = min(x.best().mean for x in row.values())
        axes = part.subplots(1, len(row))
        for ax, (name, x) in zip(axes, row.items(), strict=True):
            x.plot(ax=ax, vmin=best, vmax=1.5 * best, title=heading(name, x), colorbar=False)
            draw_valley(ax, x)
            ax.set_xlabel(CONTESTANTS[name].decay_name)
            if ax is not axes[0]:
                ax.set_ylabel("")
        part.suptitle(f"MLP 64-128-128-10, {network}", fontweight="bold")
        bar = part.colorbar(axes[0].images[0], ax=axes, extend="max", pad=0.01)
        bar.set_label("test error, mean over seeds (%)")
    note = "★ best cell, • the next best, red line: best decay at each learning rate"
    parts[-1].supxlabel(note, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def heading(name: str, x: Landscape) -> str:
    found, best = slope(x), x.best()
    slope_part = "no valley found" if found is None else f"valley slope {signed(found.slope, 1)}"
    return f"{name}: {best.mean:.1f} ± {best.spread:.1f} %\n{slope_part}"


def draw_valley(ax: Any, x: Landscape) -> None:
    found = slope(x)
    if found is None:
        return
    rows = np.searchsorted(x.learning_rates, found.learning_rates)
    places = np.arange(len(x.weight_decays))
    columns = np.interp(np.log2(found.weight_decays), np.log2(x.weight_decays), places)
    ax.plot(columns, rows, color="tab:red", lw=2, alpha=0.8, zorder=1)


if __name__ == "__main__":
    matplotlib.use("agg")
    main()
