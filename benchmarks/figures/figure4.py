"""Do warm restarts give good weights early, without a worse end?

The paper's Figure 4: AdamWR and SGDWR, whose cycles double in length, beside AdamW and SGDW with
one cosine over the whole budget: the test error at the end of each cycle. Learning rate and
normalized decay λ_norm are the same with and without restarts: those of the lowest final error of
both together over one grid. The errors before the end are of shorter runs with the same batches,
which are those runs' beginning.

Usage: python -m benchmarks.figures.figure4 [--size SIZE --data DIR] [--out DIR] [--quick]
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib.drawing import COLORS, save
from benchmarks.lib.harness import write_json
from benchmarks.lib.landscapes import CONTESTANTS, Job, train
from benchmarks.lib.readings import Comparison, paired, points, rounded
from benchmarks.lib.rules import LEVEL, Interval
from benchmarks.lib.sizes import Run, Size, header, run_from_arguments, task_of
from benchmarks.lib.tables import bullets, folded, image, markdown, plain, setup, wrapped
from optax_decoupled.sweep import Landscape

QUESTION = (__doc__ or "").partition("\n")[0]
CYCLES = 4  # of 1, 2, 4 and 8 times the first
RATE_STRIDE = 2
NORMS = [0.025 * 4.0**k for k in range(4)]
RESTARTED = {"SGDW": "SGDWR", "AdamW": "AdamWR"}
RESAMPLES = 1000
CLOSE = 1.1  # times the final error of the run without restarts

MakeOptimizer = Callable[[Any, Any], optax.GradientTransformation]


def main() -> None:
    run = run_from_arguments("figure4", QUESTION, default="digits")
    ends = cycle_ends(run.size)
    run = run._replace(size=run.size._replace(epochs=ends[-1]))
    start = time.perf_counter()
    optimizers = anytime(run, ends)
    record = header(QUESTION, run, time.perf_counter() - start) | {
        "cycle_ends": ends,
        "optimizers": rounded(optimizers),
    }
    write_json(run.out / f"{run.name}.json", record)
    draw(record, run.out / f"{run.name}.png")
    print(plain(rows(record)))
    print(wrapped(conclusion(record)))


def cycle_ends(size: Size) -> list[int]:
    """In epochs; the first cycle takes a fifth of the usual budget."""
    first = max(1, size.epochs // 5)
    return list(itertools.accumulate(first * 2**i for i in range(CYCLES)))


def optimizers(run: Run, ends: list[int]) -> dict[str, MakeOptimizer]:
    """Functions of learning rate and λ_norm."""
    size = run.size
    cosine = optax.cosine_decay_schedule(1.0, size.steps)
    first = ends[0] * size.steps_per_epoch

    def whole(factory: Callable[..., Any]) -> MakeOptimizer:
        return lambda learning_rate, norm: factory(
            learning_rate, norm / size.steps**0.5, schedule=cosine, mask=od.decay_mask
        )

    def restarted(factory: Callable[..., Any]) -> MakeOptimizer:
        return lambda learning_rate, norm: factory(
            learning_rate, norm, first_cycle_steps=first, mask=od.decay_mask
        )

    return {
        "SGDW": whole(od.sgdw),
        "SGDWR": restarted(od.sgdwr),
        "AdamW": whole(od.adamw),
        "AdamWR": restarted(od.adamwr),
    }


def anytime(run: Run, ends: list[int]) -> dict[str, Any]:
    """Of each optimizer the grid, the chosen cell, and there the error [ends, seeds]."""
    size, make = run.size, optimizers(run, ends)
    tasks = {end: task_of(size._replace(epochs=end), run.cifar) for end in ends}
    grids = {}
    for name, variant in RESTARTED.items():
        contestant = CONTESTANTS[name]
        rates = [contestant.peak * 2.0**k for k in contestant.rates[::RATE_STRIDE]]
        for x in (name, variant):
            grids["grid", x] = Job(tasks[ends[-1]], make[x], rates, NORMS, size.seeds)
    whole = train(grids, run.cells)["grid"]
    cells = {}
    for name, variant in RESTARTED.items():
        cells[name] = cells[variant] = _common_best(whole[name], whole[variant])
    shorter = {
        (f"{end} epochs", name): Job(
            tasks[end],
            make[name],
            [whole[name].learning_rates[i]],
            [whole[name].weight_decays[j]],
            size.seeds,
        )
        for end in ends[:-1]
        for name, (i, j) in cells.items()
    }
    early = train(shorter, run.cells)
    return {
        name: {
            "learning_rate": float(x.learning_rates[cells[name][0]]),
            "normalized_weight_decay": float(x.weight_decays[cells[name][1]]),
            "error_percent": [
                *(row[name].metrics["error"][0, 0].tolist() for row in early.values()),
                x.metrics["error"][cells[name]].tolist(),
            ],
            "learning_rates": x.learning_rates.tolist(),
            "normalized_weight_decays": x.weight_decays.tolist(),
            "final_error_percent": x.metrics["error"].tolist(),
        }
        for name, x in whole.items()
    }


def _common_best(plain: Landscape, restarted: Landscape) -> tuple[int, int]:
    """The cell of the lowest mean error of both, among those where no seed diverged."""
    errors = np.concatenate([x.metrics["error"] for x in (plain, restarted)], axis=-1)
    both = Landscape(
        plain.learning_rates, plain.weight_decays, np.arange(errors.shape[-1]), {"error": errors}
    )
    return both.ranked()[0]


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    ends = record["cycle_ends"]
    errors = {name: _errors(x) for name, x in record["optimizers"].items()}
    sentences = []
    for name, variant in RESTARTED.items():
        found = [paired(*both) for both in zip(errors[name], errors[variant], strict=True)]
        sizes = ", ".join(f"{points(x)} after {end}" for end, x in zip(ends, found, strict=True))
        limit = CLOSE * errors[name][-1].mean()
        reached = [_epochs(first_end(ends, errors[x].mean(1), limit)) for x in (variant, name)]
        sentences.append(
            f"{name}'s error minus {variant}'s: {sizes} epochs. Restarts help "
            f"early {_times(found[:-1])}, in the end {_times(found[-1:])}. {variant} comes within "
            f"10 % of {name}'s final error at {reached[0]}, {name} itself at {reached[1]}."
        )
    return [
        *sentences,
        "In the paper restarts reach an equally good result up to ten times as early.",
        "Learning rate and decay are chosen by the final error that is reported.",
    ]


def _times(found: list[Comparison]) -> str:
    better = sum(x.points.low > 0 for x in found)
    worse = sum(x.points.high < 0 for x in found)
    return f"at {better} of {len(found)} (harm at {worse}; the rest may be chance)"


def first_end(ends: list[int], error: np.ndarray, limit: float) -> float:
    """Of a cycle at which the error is within the limit; inf if there is none."""
    return next((end for end, x in zip(ends, error, strict=True) if x <= limit), np.inf)


def _epochs(end: float) -> str:
    return f"{end:.0f} epochs" if np.isfinite(end) else "no cycle's end"


def times_as_early(record: dict[str, Any], name: str) -> Interval:
    """How many times as early restarts come within 10 % of the final error without them.

    The interval is of resampled seeds, the same for both. Errors are known at the cycles' ends
    alone, so these are the ratios of the ends.
    """
    ends = record["cycle_ends"]
    plain, restarted = (_errors(record["optimizers"][x]) for x in (name, RESTARTED[name]))
    count = plain.shape[1]

    def ratio(seeds: np.ndarray) -> float:
        before, after = plain[:, seeds].mean(1), restarted[:, seeds].mean(1)
        limit = CLOSE * before[-1]
        return first_end(ends, before, limit) / first_end(ends, after, limit)

    picks = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.quantile([ratio(x) for x in picks], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(ratio(np.arange(count)), float(low), float(high))


def rows(record: dict[str, Any]) -> list[list[str]]:
    ends = [f"% after {end}" for end in record["cycle_ends"]]
    table = [["test error after so many epochs", "rate", "λ_norm", *ends]]
    for name, x in record["optimizers"].items():
        errors = [f"{row.mean():.2f} ± {row.std(ddof=1):.2f}" for row in _errors(x)]
        chosen = [f"{x[key]:.3g}" for key in ("learning_rate", "normalized_weight_decay")]
        table.append([name, *chosen, *errors])
    return table


def _errors(optimizer: dict[str, Any]) -> np.ndarray:
    """[ends, seeds], NaN where a seed diverged."""
    return np.array(optimizer["error_percent"], float)


def draw(record: dict[str, Any], path: Path) -> None:
    ends = record["cycle_ends"]
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    for i, (name, x) in enumerate(record["optimizers"].items()):
        values = _errors(x)
        places = np.array(ends) * 1.02 ** (i - 1.5)  # side by side
        style = "o-" if name.endswith("R") else "s--"
        spread = values.std(1, ddof=1)
        ax.errorbar(
            places, values.mean(1), spread, fmt=style, capsize=2, color=COLORS[name], label=name
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for part in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        part("{x:.0f}")
    ax.set_xticks(ends, [str(end) for end in ends])
    ax.set(xlabel="epochs: the ends of the cycles", ylabel="test error (%), mean ± spread")
    ax.set_title(f"{record['network']}: error at the end of each cycle")
    ax.legend()
    save(figure, path)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    picture = image(record, "Test error at the ends of the cycles, with and without restarts")
    parts = [
        f"{setup(record)}, decay on kernels only:\n",
        markdown(rows(record)),
        bullets(conclusion(record)),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
