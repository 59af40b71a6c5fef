"""Does the best normalized decay move less with the training budget than the best decay?

The paper's appendix B.1: λ = λ_norm·√(b/(B·T)), that is λ_norm over the root of the number of
steps. SGDW and AdamW, each at one learning rate, are trained over a grid of decays for three
budgets, each four times the one before; cosine annealing, decay on kernels only. By the rule the
best λ halves from one budget to the next, and the best λ_norm stays.

Usage: python -m benchmarks.figures.normalized_decay [--size SIZE --data DIR] [--out DIR] [--quick]
"""

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optax

from benchmarks.lib.drawing import save
from benchmarks.lib.harness import write_json
from benchmarks.lib.landscapes import Landscapes, landscape_job, train
from benchmarks.lib.readings import rounded, slope
from benchmarks.lib.rules import (
    BELOW_MINUS_QUARTER,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    Interval,
    verdict,
)
from benchmarks.lib.sizes import Run, header, run_from_arguments, task_of
from benchmarks.lib.tables import bullets, folded, image, markdown, plain, setup, wrapped
from benchmarks.lib.valleys import slope_of_seeds
from optax_decoupled.sweep import Landscape, ValleySlope

QUESTION = (__doc__ or "").partition("\n")[0]
BUDGETS = (0.25, 1.0, 4.0)  # times the usual number of epochs
RATES = {"SGDW": 0.05, "AdamW": 0.002}
VERDICTS = {  # between the two rules lies a slope of -1/4
    SUPPORTED: "the best λ_norm moves less with the steps than the best λ, as in the paper",
    CONTRADICTED: "the best λ_norm moves more with the steps than the best λ, unlike in the paper",
    UNDECIDED: "whether the best λ_norm moves less with the steps than the best λ is undecided",
}


def main() -> None:
    run = run_from_arguments("normalized_decay", QUESTION, default="digits")
    start = time.perf_counter()
    over_budgets = {name: stacked(run, row) for name, row in landscapes(run).items()}
    record = header(QUESTION, run, time.perf_counter() - start) | {
        "optimizers": {name: summary(run, name, x) for name, x in over_budgets.items()},
    }
    write_json(run.out / f"{run.name}.json", record)
    draw(over_budgets, run.size.network, run.out / f"{run.name}.png")
    print(plain(rows(record)))
    print(wrapped(conclusion(record)))


def epochs(run: Run) -> list[int]:
    return [max(1, round(budget * run.size.epochs)) for budget in BUDGETS]


def landscapes(run: Run) -> Landscapes:
    """For each optimizer the landscape of each budget, at one learning rate."""
    jobs = {}
    for budget in epochs(run):
        size = run.size._replace(epochs=budget)
        task = task_of(size, run.cifar)
        cosine = optax.cosine_decay_schedule(1.0, size.steps)
        for name, rate in RATES.items():
            job = landscape_job(task, name, size, cosine)
            jobs[name, f"{budget} epochs"] = job._replace(learning_rates=[rate])
    return train(jobs, run.cells)


def stacked(run: Run, row: dict[str, Landscape]) -> Landscape:
    """The landscape over (steps, decay): its valley slope is how the best decay moves with steps.

    The steps take the place of the learning rates. The error relative to the lowest of its
    budget has the same valley, but no budget falls behind for being short.
    """
    steps = np.array([budget * run.size.steps_per_epoch for budget in epochs(run)], float)
    first = next(iter(row.values()))
    errors = np.concatenate([x.metrics["error"] for x in row.values()])
    relative = errors / np.nanmin(errors.mean(-1), axis=1)[:, None, None]
    metrics = {"error": errors, "relative error": relative}
    return Landscape(steps, first.weight_decays, first.seeds, metrics)


def valley(x: Landscape) -> ValleySlope | None:
    return slope(x, "relative error")


def summary(run: Run, name: str, x: Landscape) -> dict[str, Any]:
    found = valley(x)
    return {
        "learning_rate": RATES[name],
        "epochs": epochs(run),
        "steps": x.learning_rates.astype(int).tolist(),
        "weight_decays": x.weight_decays.tolist(),
        "best_weight_decays": None if found is None else rounded(best_decays(x).tolist()),
        "slope_over_steps": None if found is None else rounded(list(found[:3])),
        "error_percent": rounded(x.metrics["error"].tolist()),
    }


def best_decays(x: Landscape) -> np.ndarray:
    """Interpolated, for each number of steps; NaN where it was not located."""
    found = valley(x)
    decays = np.full(len(x.learning_rates), np.nan)
    if found is not None:
        decays[np.searchsorted(x.learning_rates, found.learning_rates)] = found.weight_decays
    return decays


def slope_over_steps(optimizer: dict[str, Any]) -> Interval | None:
    """By how much log₂ of the best decay moves as the number of steps doubles."""
    if optimizer["slope_over_steps"] is None:
        return None
    errors = np.array(optimizer["error_percent"], float)
    relative = errors / np.nanmin(errors.mean(-1), axis=1)[:, None, None]
    return slope_of_seeds(
        optimizer | {"learning_rates": optimizer["steps"], "error_percent": relative}
    )


def conclusion(record: dict[str, Any]) -> list[str]:
    """How the best decays move with the budget, beside the two rules."""
    sentences = []
    for name, x in record["optimizers"].items():
        decay = slope_over_steps(x)
        if decay is None:
            sentences.append(f"{name}'s best decay is not inside the grid at each budget.")
            continue
        normalized = Interval(*(end + 0.5 for end in decay))
        sentences.append(
            f"{name}: {VERDICTS[verdict(BELOW_MINUS_QUARTER, decay)]}. As the number of steps "
            f"doubles, log₂ of the best λ moves by {decay.text()}, of the best λ_norm by "
            f"{normalized.text()}; by the paper's rule by -0.5 and 0."
        )
    return [
        *sentences,
        "The valley is where the ranks of the errors, smoothed over neighbouring decays, are "
        "lowest; it does not follow a single cell.",
    ]


def rows(record: dict[str, Any]) -> list[list[str]]:
    table = [["optimizer, budget", "steps", "lowest error %", "at λ", "λ_norm", "valley"]]
    for name, x in record["optimizers"].items():
        located = x["best_weight_decays"] or [None] * len(x["steps"])
        budgets = zip(x["epochs"], x["steps"], x["error_percent"], located, strict=True)
        for budget, steps, errors, decay in budgets:
            values = np.array(errors, float)
            best = np.argmin(np.where(np.isnan(values), np.inf, values).mean(1))
            lowest = values[best]
            at = x["weight_decays"][best]
            table.append(
                [
                    f"{name}, {budget} epochs",
                    f"{steps:,}",
                    f"{lowest.mean():.2f} ± {lowest.std(ddof=1):.2f}",
                    f"{at:.2g}",
                    f"{at * steps**0.5:.2g}",
                    "not located" if decay is None else f"{decay:.2g}",
                ]
            )
    return table


def draw(over_budgets: dict[str, Landscape], network: str, path: Path) -> None:
    """Error over λ and over λ_norm, a line for each budget."""
    figure, axes = plt.subplots(
        len(over_budgets), 2, figsize=(10, 7), sharey="row", layout="constrained"
    )
    for (name, x), pair in zip(over_budgets.items(), axes, strict=True):
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.8, len(x.learning_rates)))
        for steps, errors, best, color in zip(
            x.learning_rates, x.mean(), best_decays(x), colors, strict=True
        ):
            for ax, scale in zip(pair, (1.0, steps**0.5), strict=True):
                label = f"{steps:,.0f} steps"
                ax.plot(scale * x.weight_decays, errors, "o-", ms=4, color=color, label=label)
                ax.axvline(scale * best, color=color, ls=":")
        lowest = np.nanmin(x.mean(), axis=1)
        limits = 0.95 * lowest.min(), 1.3 * lowest.max()
        pair[0].set(xscale="log", xlabel="λ", ylabel="test error (%)", ylim=limits, title=name)
        pair[1].set(xscale="log", xlabel="λ_norm = λ·√steps", title=name)
        pair[0].legend()
    figure.suptitle(f"{network}; dotted: the valley of each budget")
    save(figure, path)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    optimizers = record["optimizers"]
    rates = [f"{x['learning_rate']} ({name})" for name, x in optimizers.items()]
    epochs = next(iter(optimizers.values()))["epochs"]
    others = [str(n) for n in epochs if n != record["budget"]["epochs"]]
    picture = image(
        record, "Test error over the decay and over the normalized decay, three budgets"
    )
    parts = [
        f"{setup(record)}, then {' and '.join(others)} epochs, cosine annealing, decay on kernels "
        f"only, at learning rates {' and '.join(rates)}:\n",
        markdown(rows(record)),
        bullets(conclusion(record)),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
