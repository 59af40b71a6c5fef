"""Modular addition: how much decay over a run makes a network generalize?

(a + b) mod 23 from 60 % of the pairs, full batch, no schedule, b2 = 0.98: without decay a network
learns its pairs and no other. AdamW and Adam+L2, every parameter decayed, at learning rates 2^-8,
2^-6 and 2^-4, 10 seeds, measured after 1,000, 2,000 and 4,000 steps; once as it is, once with a
layer norm before the logits. λ of AdamW 2^-11 to 2^-4 in factors of two, λ′ of Adam+L2 2^-33 to
2^-9 in factors of eight, because its lower edge moves that far; with the layer norm, whose cells
take longer, every second of them. Grid, seeds and budget were fixed after a trial of one to four
seeds, before the run; that of the layer norm was made coarser while the others trained, before it.

SGDW and SGD+L2 are left out. In the trial, at rates 0.25 to 4, they learn the pairs too, but even
after 4,000 steps only a cell or two came below 50 % test error: there is no edge to follow.

A run of about 15 minutes on two idle cores. Finished cells are kept in DIR/cells: a run that was
killed goes on.

Usage: python -m benchmarks.study.modular_addition [--out DIR] [--quick] [--networks NAME ...]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import optax_decoupled as od
from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.landscapes import Job, train
from benchmarks.lib.modular import B2, GENERALIZES, MODULUS, WIDTH, lower_edge, modular_task
from benchmarks.lib.readings import rounded
from benchmarks.lib.rules import Interval
from benchmarks.lib.tables import bullets, image, markdown, of_grid
from optax_decoupled.sweep import Landscape

QUESTION = (__doc__ or "").partition("\n")[0]
LENGTHS = (1000, 2000, 4000)
RATES = 2.0 ** np.arange(-8, -3, 2)
SEEDS = 10
NETWORKS = {  # whether a layer norm stands before the logits, which of the decays are taken
    "no normalization": (False, slice(None)),
    "layer norm": (True, slice(1, None, 2)),
}
OPTIMIZERS = {  # the optimizer, its decays and what they are called
    "AdamW": (od.adamw, 2.0 ** np.arange(-11, -3), "λ"),
    "Adam+L2": (od.adam_l2, 2.0 ** np.arange(-33, -8, 3), "λ′"),
}
RESAMPLES = 1000
Errors = dict[str, Any]  # run length -> [rates, decays, seeds]
Found = dict[str, Any]  # of one landscape: its axes, "error" and "train_error"


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which; all"
    )
    arguments = parser.parse_args()
    lengths, seeds = ((5, 10, 20), 2) if arguments.quick else (LENGTHS, SEEDS)
    most = 2 if arguments.quick else None
    cells = arguments.out / "cells" / f"modular_addition{'_quick' if arguments.quick else ''}"
    resumed, start = cells.exists(), time.perf_counter()
    landscapes = train(jobs(arguments.networks, lengths, seeds, most), cells)
    record = {
        "name": "modular_addition",
        "question": QUESTION,
        **environment(),
        "seconds": None if resumed else round(time.perf_counter() - start, 1),
        "budget": {"steps": list(lengths), "seeds": seeds},
        "networks": {
            network: {name: found(x, lengths) for name, x in row.items()}
            for network, row in landscapes.items()
        },
    }
    write_json(arguments.out / "modular_addition.json", record)
    draw(record, arguments.out / "modular_addition.png")
    print(report(record))


def jobs(
    networks: list[str], lengths: tuple[int, ...], seeds: int, most: int | None
) -> dict[tuple[str, str], Job]:
    """Of at most so many rates and decays."""
    made = {}
    for network in networks:
        layer_norm, take = NETWORKS[network]
        task = modular_task(lengths, layer_norm=layer_norm)
        for name, (factory, decays, _) in OPTIMIZERS.items():
            make = lambda rate, decay, factory=factory: factory(rate, decay, b2=B2)
            axes = RATES[:most].tolist(), decays[take][:most].tolist()
            made[network, name] = Job(task, make, *axes, seeds)
    return made


def found(x: Landscape, lengths: tuple[int, ...]) -> Found:
    """Of a landscape what is kept: whole numbers of pairs, in percent."""
    ends = {str(n): f"_{n}" for n in lengths[:-1]} | {str(lengths[-1]): ""}
    errors = {n: x.metrics[f"error{end}"] for n, end in ends.items()}
    return {
        "learning_rates": x.learning_rates.tolist(),
        "weight_decays": x.weight_decays.tolist(),
        "error": {n: rounded(np.float64(values).round(3).tolist()) for n, values in errors.items()},
        "train_error": rounded(np.float64(x.mean("train_error")).round(3).tolist()),
    }


def budgets(x: Found) -> np.ndarray:
    """λ·S of the lower edge, [1 + RESAMPLES, run lengths, rates]: of all seeds, of resamples.

    The edge is that of the mean error; seeds that diverged do not count.
    """
    errors = np.array(list(x["error"].values()), float)  # [lengths, rates, decays, seeds]
    seeds = errors.shape[-1]
    picks = np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))
    means = np.stack([np.nanmean(errors[..., pick], -1) for pick in (np.arange(seeds), *picks)])
    steps = np.array(list(x["error"]), float)
    return lower_edge(means, x["weight_decays"]) * steps[:, None]


def interval(values: np.ndarray) -> Interval | None:
    """Of all seeds and resamples; None where it, or most resamples, have no edge in the grid."""
    located = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or len(located) < RESAMPLES / 2:
        return None
    return Interval(float(values[0]), *map(float, np.percentile(located, [2.5, 97.5])))


def spread(values: np.ndarray) -> Interval | None:
    """By which factor the located edges differ, of [1 + RESAMPLES, run lengths, rates]."""
    there = np.array([[interval(v) is not None for v in row] for row in np.moveaxis(values, 0, -1)])
    if there.sum() < 2:
        return None
    kept = values[:, there]
    return interval(kept.max(1) / kept.min(1))


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    parts = [image(record, "Test error over rate and decay after three run lengths, and the edges")]
    for network, row in record["networks"].items():
        parts.append(markdown(rows(network, row)))
    seeds, steps = record["budget"]["seeds"], record["budget"]["steps"]
    shown = [
        f"{network}, {sentence(name, x)}"
        for network, row in record["networks"].items()
        for name, x in row.items()
    ]
    parts.append(bullets(shown))
    norm = "; the layer norm is before the logits" if "layer norm" in record["networks"] else ""
    parts.append(
        f"(a + b) mod {MODULUS} from 60 % of the pairs, all in every batch: two embeddings summed, "
        f"ReLU ({WIDTH}), logits{norm}. b2 = {B2}, no schedule, "
        f"every parameter decays, up to {steps[-1]:,} steps, {seeds} seeds that each hold other "
        "pairs out. The edge is the least decay at which the mean test error is below "
        f"{GENERALIZES} %, interpolated between cells; brackets are 95 % intervals by bootstrap "
        "over seeds.\n"
    )
    return "\n".join(parts)


def range_of_edges(record: dict[str, Any]) -> str:
    """AdamW's budgets at which this network starts to generalize, for the page on plans."""
    x = record["networks"]["no normalization"]["AdamW"]
    edges = budgets(x)
    there = [value[0] for value in edges.reshape(len(edges), -1).T if interval(value) is not None]
    rates, steps = x["learning_rates"], [int(n) for n in x["error"]]
    return (
        f"A small network that learns to add modulo {MODULUS} starts to generalize at a budget of "
        f"{min(there):.2g} to {max(there):.2g}, for learning rates that differ by a factor of "
        f"{rates[-1] / rates[0]:.0f} and runs of {steps[0]:,} to {steps[-1]:,} steps ({len(there)} "
        f"of {edges[0].size} combinations start within the grid of decays).\n"
    )


def rows(network: str, row: dict[str, Found]) -> list[list[str]]:
    """The budget of each edge: a line for each optimizer and run length."""
    rates = next(iter(row.values()))["learning_rates"]
    table = [[f"{network}: edge", *(f"rate {rate:.2g}" for rate in rates)]]
    for name, x in row.items():
        edges = budgets(x)
        for i, steps in enumerate(x["error"]):
            cells = [interval(edges[:, i, j]) for j in range(len(rates))]
            title = f"{name}: {OPTIMIZERS[name][2]}S, {int(steps):,} steps"
            table.append([title, *map(_number, cells)])
    return table


def _number(x: Interval | None) -> str:
    if x is None:
        return "none in the grid"
    value, low, high = (f"{y:,.0f}" if y >= 100 else f"{y:.2g}" for y in x)
    return f"{value} [{low}, {high}]"


def sentence(name: str, x: Found) -> str:
    """How far the edges differ, as a budget and as a decay, and where the best decays are."""
    edges, symbol = budgets(x), OPTIMIZERS[name][2]
    located = sum(interval(e) is not None for e in edges.reshape(len(edges), -1).T)
    text = f"{name}: {located} of {edges[0].size} edges are in the grid."
    steps = np.array(list(x["error"]), float)[:, None]
    both = [spread(values) for values in (edges, edges / steps)]
    if None not in both:
        text += (
            f" As a budget {symbol}S they differ by a factor of {_number(both[0])}, as a decay "
            f"{symbol} by {_number(both[1])}."
        )
    last, errors = list(x["error"].items())[-1]
    best = [of_grid(x["weight_decays"], i) for i in np.nanmean(errors, -1).argmin(-1)]
    trained = np.array(x["train_error"], float)
    return (
        f"{text} After {int(last):,} steps {symbol} is best at {', '.join(best)} as the rate "
        f"rises; the training error is above 1 % in {(trained > 1).sum()} of {trained.size} cells."
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """A row for each network and optimizer: a landscape for each run length, then the edges."""
    networks = record["networks"].items()
    rows = [(network, name, x) for network, row in networks for name, x in row.items()]
    size = (13, 2.6 * len(rows))
    figure, axes = plt.subplots(len(rows), 4, figsize=size, layout="constrained")
    for line, (network, name, x) in zip(axes, rows, strict=True):
        symbol = OPTIMIZERS[name][2]
        drawn = [_landscape(ax, x, n) for ax, n in zip(line, x["error"], strict=False)]
        for ax, steps in zip(line, x["error"], strict=False):
            ax.set(title=f"{int(steps):,} steps", xlabel=symbol)
        line[0].set_ylabel(f"{name}, {network}\nlearning rate")
        figure.colorbar(drawn[-1], ax=line[:-1], pad=0.01, label="test error (%)")
        _edges(line[-1], x)
        line[-1].set_title(f"lower edge, as {symbol}S")
    save(figure, path)


def _landscape(ax: Any, x: Found, steps: str) -> Any:
    """The mean error over seeds."""
    mean = np.nanmean(np.array(x["error"][steps], float), -1)
    drawn = ax.imshow(mean, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=100)
    for axis, values in ((ax.xaxis, x["weight_decays"]), (ax.yaxis, x["learning_rates"])):
        labels = [f"$2^{{{np.log2(v):.0f}}}$" for v in values]
        every = 2 if len(values) > 6 else 1  # so that they do not touch
        axis.set_ticks(range(0, len(values), every), labels[::every])
    for (i, j), value in np.ndenumerate(mean):
        color = "black" if value > 60 else "white"
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color, fontsize="x-small")
    return drawn


def _edges(ax: Any, x: Found) -> None:
    """λ·S of the edge over the run length, a line for each rate."""
    edges, steps = budgets(x), np.array(list(x["error"]), float)
    for j, rate in enumerate(x["learning_rates"]):
        found = [interval(edges[:, i, j]) for i in range(len(steps))]
        there = [(n, *e) for n, e in zip(steps, found, strict=True) if e is not None]
        if there:
            n, value, low, high = np.array(there).T
            shifted = n * 2 ** (0.06 * (j - 1))  # so that the bars stand side by side
            ax.errorbar(
                shifted, value, [value - low, high - value], fmt="o-", ms=4, label=f"α = {rate:.2g}"
            )
            ax.legend(fontsize="x-small")
    if not ax.lines:
        ax.text(0.5, 0.5, "none in the grid", transform=ax.transAxes, ha="center")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(steps, [f"{int(n):,}" for n in steps])
    ax.set(xlabel="steps S", ylim=(2.0**-22, 2.0**7), xlim=(steps[0] / 1.3, steps[-1] * 1.3))


if __name__ == "__main__":
    main()
