"""Which stays put in a transformer as the learning rate doubles: λ, or v = λ/α?

The small character-level transformer of `examples/transformer_lm.py`, 600 steps of AdamW, cosine
annealing, decay on every matrix (embeddings too, as `decay_mask` has it). Rates 2^-10 to 2^-6 by
decays λ 2^-11 to 2^-3, 6 seeds. λ is the paper's convention, v that of Optax and PyTorch: the same
cells, counted in two ways. Grid, seeds and budget were fixed before the run.

Finished cells are kept in DIR/cells: a run that was killed goes on.

Usage: python -m benchmarks.study.language_model [--out DIR] [--quick]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib import language
from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.landscapes import Job, train
from benchmarks.lib.readings import FEWEST_SEEDS, slope_interval, summary
from benchmarks.lib.rules import PERCENT, SUPPORTED, Interval, about, verdict
from benchmarks.lib.tables import image, markdown, of_grid
from optax_decoupled.sweep import Landscape

QUESTION = (__doc__ or "").partition("\n")[0]
STEPS, SEEDS = 600, 6
RATES, DECAYS = 2.0 ** np.arange(-10, -5), 2.0 ** np.arange(-11, -2)


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works")
    arguments = parser.parse_args()
    quick = arguments.quick
    steps, seeds, take = (5, 2, slice(None, 2)) if quick else (STEPS, SEEDS, slice(None))
    cells = arguments.out / "cells" / f"language_model{'_quick' if quick else ''}"
    resumed, start = cells.exists(), time.perf_counter()
    task, sha256 = language.language_task(steps)
    eta = optax.cosine_decay_schedule(1.0, steps)
    make = lambda rate, decay: od.adamw(rate, decay, schedule=eta, mask=od.decay_mask)
    job = Job(task, make, RATES[take].tolist(), DECAYS[take].tolist(), seeds)
    landscape = train({("language model", "AdamW"): job}, cells)["language model"]["AdamW"]
    record = {
        "name": "language_model",
        "question": QUESTION,
        **environment(),
        "seconds": None if resumed else round(time.perf_counter() - start, 1),
        "budget": {"steps": steps, "batch_size": language.BATCH, "seeds": seeds},
        "text_sha256": sha256,
        "landscape": summary(landscape),
    }
    write_json(arguments.out / "language_model.json", record)
    draw(record["landscape"], arguments.out / "language_model.png")
    print(report(record))


def draw(x: dict[str, Any], path: Path) -> None:
    """The landscape, and where the best decay of each rate that trains lies, as λ and as v."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    axes = {name: np.array(x[name]) for name in ("learning_rates", "weight_decays", "seeds")}
    loss = np.array(x["error_percent"], float)
    landscape = Landscape(**axes, metrics={"nats": loss}, diverged=np.where(loss > 0, -1, 0))
    landscape.plot("nats", ax=left, title="cross-entropy on later text")
    valley = x["valley_slope"]
    if valley:
        rate, decay = (np.array(valley[name]) for name in ("learning_rates", "weight_decays"))
        for label, values in {"λ": decay, "v = λ/α": decay / rate}.items():
            right.loglog(rate, values / values[0], "o-", base=2, label=label)
        right.legend()
    right.set(xlabel="learning rate", title="best decay of each rate, relative to the first")
    save(figure, path)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    x, budget = record["landscape"], record["budget"]
    errors = np.array(x["error_percent"], float).mean(-1)
    best = [int(i) for i in np.nanargmin(errors, 1)]
    rows = [["learning rate", "best λ", "the same as v", "nats per character"]]
    for i, rate in enumerate(x["learning_rates"]):
        decay = x["weight_decays"][best[i]]
        cells = of_grid(x["weight_decays"], best[i]), f"{decay / rate:.2g}"
        rows.append([f"{rate:.2g}", *cells, f"{errors[i, best[i]]:.3f}"])
    return (
        f"{image(record, 'Cross-entropy over rate and decay, and the best decay of each rate')}\n"
        f"{markdown(rows)}\n{conclusion(x)}\n\n"
        f"A transformer of {language.BLOCKS} blocks of width {language.WIDTH} on "
        f"{language.TRAIN:,} characters of Python's `argparse.py`, {budget['steps']} steps of "
        f"{budget['batch_size']} × {language.CONTEXT} characters, cosine annealing, decay on the "
        f"parameters that `decay_mask` selects, {budget['seeds']} seeds, measured on the "
        f"text after the training text. Brackets are {PERCENT} intervals by bootstrap over seeds.\n"
    )


def conclusion(x: dict[str, Any]) -> str:
    """How the best decay moves, in both conventions."""
    found = slope_interval(x)
    if found is None:
        few = len(x["seeds"]) < FEWEST_SEEDS
        return f"No slope: {'too few seeds' if few else 'too few rates have their best inside'}."
    as_v = Interval(*(end - 1 for end in found))
    valley = x["valley_slope"]
    rates, steps = valley["learning_rates"], np.diff(np.log2(valley["weight_decays"]))
    left_out = len(x["learning_rates"]) - len(rates)
    why = "there even the best cell is worse than the grid's median, or it is at the grid's edge"
    return (
        f"As the rate doubles, log₂ of the best λ moves by {found.text()}, that of v by "
        f"{as_v.text()}: {_what_stays(found, as_v)} These are the slopes of lines; from one "
        f"rate to the next λ moves by {', '.join(f'{step:+.2f}' for step in steps)}. "
        f"{len(rates)} rates count, {min(rates):.2g} to {max(rates):.2g}"
        f"{f'; {left_out} left out: {why}' if left_out else ''}."
    )


def _what_stays(of_lambda: Interval, of_v: Interval) -> str:
    found = (("λ", of_lambda), ("v", of_v))
    staying = [name for name, x in found if verdict(about(0), x) == SUPPORTED]
    less, more = ("λ", "v") if abs(of_lambda.value) < abs(of_v.value) else ("v", "λ")
    stays = f"{staying[0]} stays put to within 0.5 here" if staying else "neither stays put"
    return f"{stays}; {less} moves less than {more}."


if __name__ == "__main__":
    main()
