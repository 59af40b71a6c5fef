"""At equal training loss, is the test error of AdamW lower than that of Adam+L2?

The paper's Figure 3: long runs (18 times the usual budget, 1800 epochs in the paper) at one
learning rate, 0.001, with cosine annealing and decay on kernels only: Adam with 12 coefficients
of L2 regularization, AdamW with 13 normalized decays λ_norm, both to where the error rises again.
The training loss is the mean cross-entropy of the last epoch's batches. Errors are compared over
the losses that both reach, the lower and the upper half of that range (of its logarithm) apart.

Usage: python -m benchmarks.figures.figure3 [--size SIZE --data DIR] [--out DIR] [--quick]
"""

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib.drawing import COLORS, save
from benchmarks.lib.harness import write_json
from benchmarks.lib.landscapes import Job, train
from benchmarks.lib.readings import Comparison, improvement, paired, points, rounded
from benchmarks.lib.rules import CONTRADICTED, MORE, SUPPORTED, UNDECIDED, signed, verdict
from benchmarks.lib.sizes import Run, header, run_from_arguments, task_of
from benchmarks.lib.tables import bullets, folded, image, markdown, plain, setup, wrapped
from optax_decoupled.sweep import Landscape

QUESTION = (__doc__ or "").partition("\n")[0]
LENGTH = 18  # times the usual number of epochs
LEARNING_RATE = 0.001
L2_EXPONENTS = range(-11, 1)
NORMS = [0.025 * 3.0 ** (k / 2) for k in range(13)]
HALVES = ("the lower losses", "the higher losses")
DECAY_NAMES = {"Adam+L2": "λ′", "AdamW": "λ_norm"}


def main() -> None:
    run = run_from_arguments("figure3", QUESTION, default="digits")
    run = run._replace(size=run.size._replace(epochs=LENGTH * run.size.epochs))
    start = time.perf_counter()
    row = train(jobs(run), run.cells)["long"]
    record = header(QUESTION, run, time.perf_counter() - start) | {
        "learning_rate": LEARNING_RATE,
        "optimizers": {name: summary(x) for name, x in row.items()},
    }
    write_json(run.out / f"{run.name}.json", record)
    draw(row, run.size.network, run.out / f"{run.name}.png")
    print(plain(rows(record)))
    print(wrapped(conclusion(record)))


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    size = run.size
    task = task_of(size, run.cifar)
    cosine = optax.cosine_decay_schedule(1.0, size.steps)

    def adamw(learning_rate: Any, norm: Any) -> optax.GradientTransformation:
        decay = od.convert.from_normalized(
            norm, batch_size=size.batch_size, dataset_size=size.train_images, epochs=size.epochs
        )
        return od.adamw(learning_rate, decay, schedule=cosine, mask=od.decay_mask)

    def adam_l2(learning_rate: Any, l2: Any) -> optax.GradientTransformation:
        return od.adam_l2(learning_rate, l2, schedule=cosine, mask=od.decay_mask)

    coefficients = [2.0 ** (k + size.decay_shift) for k in L2_EXPONENTS]
    return {
        ("long", "Adam+L2"): Job(task, adam_l2, [LEARNING_RATE], coefficients, size.seeds),
        ("long", "AdamW"): Job(task, adamw, [LEARNING_RATE], NORMS, size.seeds),
    }


def at_equal_loss(optimizers: dict[str, Any]) -> dict[str, Comparison]:
    """Adam+L2 minus AdamW at equal training loss, the mean over each half of the shared range.

    For each seed the error is interpolated between the settings, over the logarithm of the
    training loss.
    """
    errors: dict[str, dict[str, list[float]]] = {half: {} for half in HALVES}
    for seed in range(len(optimizers["AdamW"]["seeds"])):
        curves = {name: _curve(x, seed) for name, x in optimizers.items()}
        low = max(loss[0] for loss, _ in curves.values())
        high = min(loss[-1] for loss, _ in curves.values())
        shared = np.linspace(low, high, 200) if low < high else np.full(200, np.nan)
        for half, losses in zip(HALVES, np.split(shared, 2), strict=True):
            for name, curve in curves.items():
                errors[half].setdefault(name, []).append(float(np.interp(losses, *curve).mean()))
    return {
        half: paired(np.array(x["Adam+L2"]), np.array(x["AdamW"])) for half, x in errors.items()
    }


def _curve(optimizer: dict[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log of the training loss, increasing, and error of the settings that did not diverge."""
    both = np.array([optimizer["train_loss"], optimizer["error_percent"]], float)[:, :, seed]
    loss, error = both[:, np.isfinite(both).all(0)]
    order = np.argsort(loss)
    return np.log(loss[order]), error[order]


def summary(x: Landscape) -> dict[str, Any]:
    return {
        "weight_decays": x.weight_decays.tolist(),
        "seeds": x.seeds.tolist(),
        "diverged": int(np.sum(x.diverged >= 0)),
        "error_percent": rounded(x.metrics["error"][0].tolist()),
        "train_loss": rounded(x.metrics["train_loss"][0].tolist()),
    }


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    optimizers = record["optimizers"]
    sentences = [_at_equal_loss(half, x) for half, x in at_equal_loss(optimizers).items()]
    return [*sentences, improvement("in long runs", optimizers)]


def _at_equal_loss(half: str, x: Comparison) -> str:
    if not np.isfinite(x.points).all():
        return "The settings of the two share no training loss."
    beginning = {
        SUPPORTED: "At equal training loss AdamW's test error is lower, as in the paper",
        CONTRADICTED: "At equal training loss AdamW's test error is higher, unlike in the paper",
        UNDECIDED: "Whether AdamW's test error is lower at equal training loss is undecided",
    }[verdict(MORE, x.points)]
    size = f"{signed(x.percent.value, 1)} % ({points(x)})"
    return f"{beginning}, on average over {half} that both reach: {size}."


def rows(record: dict[str, Any]) -> list[list[str]]:
    table = [["setting", "training loss", "test error %"]]
    for name, x in record["optimizers"].items():
        settings = zip(x["weight_decays"], x["train_loss"], x["error_percent"], strict=True)
        for decay, losses, errors in settings:
            if None in errors:
                cells = ["diverged", ""]
            else:
                cells = [
                    f"{np.mean(losses):.2g}",
                    f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}",
                ]
            table.append([f"{name}, {DECAY_NAMES[name]} = {decay:.2g}", *cells])
    return table


def draw(row: dict[str, Landscape], network: str, path: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, x in row.items():
        loss, error = x.mean("train_loss")[0], x.mean()[0]
        ax.plot(loss, error, "o-", color=COLORS[name], label=name)
        for place in (0, -1):
            text = f"{DECAY_NAMES[name]} = {x.weight_decays[place]:.2g}"
            beside = name == "Adam+L2" and place == 0  # clear of the other curve
            offset = (6, -18) if beside else (0, 10)
            ax.annotate(
                text,
                (loss[place], error[place]),
                offset,
                textcoords="offset points",
                color=COLORS[name],
                ha="right" if beside else "center",
                fontsize="small",
            )
    best = min(x.best().mean for x in row.values())
    ax.margins(x=0.12)
    ax.set(xscale="log", ylim=(0.9 * best, 1.6 * best))
    ax.set(xlabel="training loss, last epoch", ylabel="test error, mean over seeds (%)")
    ax.set_title(f"{network}, long runs at learning rate {LEARNING_RATE}")
    ax.legend()
    save(figure, path)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    picture = image(record, "Test error against training loss, Adam+L2 and AdamW")
    parts = [
        f"{setup(record)}, learning rate {record['learning_rate']}, cosine annealing, decay on "
        "kernels only:\n",
        markdown(rows(record)),
        bullets(conclusion(record)),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
