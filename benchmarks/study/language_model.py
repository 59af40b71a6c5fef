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
from benchmarks.lib.rules import NEARLY, REPRODUCED, Interval, verdict, whole_number
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
    draw(landscape, arguments.out / "language_model.png")
    print(report(record))


def draw(x: Landscape, path: Path) -> None:
    """The landscape, and the best decay of each rate as λ and as v."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    x.plot(ax=left, title="cross-entropy on later text, nats")
    alpha = np.asarray(x.learning_rates, float)
    best = np.asarray(x.weight_decays)[np.nanargmin(x.mean(), 1)]
    for label, values in {"λ": best, "v = λ/α": best / alpha}.items():
        right.loglog(alpha, values / values[0], "o-", base=2, label=label)
    right.set(xlabel="learning rate", title="best decay of each rate, relative to the first")
    right.legend()
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
        f"{budget['batch_size']} × {language.CONTEXT} characters, cosine annealing, decay on what "
        f"`decay_mask` selects, {budget['seeds']} seeds, measured on the text that follows. "
        "Brackets are 95 % intervals by bootstrap over seeds.\n"
    )


def conclusion(x: dict[str, Any]) -> str:
    """How the best decay moves, in both conventions."""
    found = slope_interval(x)
    if found is None:
        few = len(x["seeds"]) < FEWEST_SEEDS
        return f"No slope: {'too few seeds' if few else 'too few rates have their best inside'}."
    as_v = Interval(*(end - 1 for end in found))
    text = (
        f"As the rate doubles, log₂ of the best λ moves by {found.text()}, that of v by "
        f"{as_v.text()}: "
    )
    words = {name: verdict(whole_number(0), x) for name, x in (("λ", found), ("v", as_v))}
    staying = [name for name, word in words.items() if word in (REPRODUCED, NEARLY)]
    if len(staying) != 1:
        closer = "λ" if abs(found.value) < abs(as_v.value) else "v"
        return text + f"neither stays put for certain; {closer} moves less."
    (name,) = staying
    return (
        text + f"{name} {'nearly ' if words[name] == NEARLY else ''}stays put in this transformer."
    )


if __name__ == "__main__":
    main()
