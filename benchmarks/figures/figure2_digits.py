"""Does decoupling make learning rate and weight decay separable, and AdamW better than Adam+L2?

The paper's Figure 2 at small scale: SGD and Adam, each with L2 regularization and with
decoupled weight decay, over a grid of learning rate × decay, cosine annealing, decay on
kernels only. The data are scikit-learn's digits, 150 of them to train on; the network is an
MLP 64-128-128-10 with batch norm and, as the contrast, the same without normalization.

`make run` trains a part that takes two minutes: batch norm, every second rate and decay (5 by 7
cells), 16 seeds. It ends with the cost of tuning decay and rate one after the other.

Usage: python -m benchmarks.figures.figure2_digits [--out DIR] [--quick] [--parts NAME ...]
       [--seeds N] [--stride N]
"""

from typing import Any

import optax

from benchmarks.lib import landscape_figure, questions
from benchmarks.lib.landscapes import CONTESTANTS, Job, landscape_job
from benchmarks.lib.readings import (
    FEWEST_SEEDS,
    HOW_TO_READ,
    improvement,
    more_separable,
    no_gain_from_l2,
    slopes_as_claimed,
)
from benchmarks.lib.rules import PERCENT, UNDECIDED
from benchmarks.lib.sizes import MLP_NAME, Run, mlp, run_from_arguments, task_of
from benchmarks.lib.tables import folded, image, plain, wrapped

QUESTION = (__doc__ or "").partition("\n")[0]
NETWORKS = {"batch norm": True, "no normalization": False}
PREDICTED = {  # by how much log₂ of the best decay moves as the rate doubles
    "batch norm": {"SGD+L2": -1, "SGDW": 0, "AdamW": 0},
    "no normalization": {"SGD+L2": 0, "SGDW": 1, "AdamW": 1},
}


def main() -> None:
    run = run_from_arguments(
        "figure2_digits", QUESTION, default="digits", sizes=False, parts=tuple(NETWORKS)
    )
    run = run._replace(size=run.size._replace(network=MLP_NAME))
    landscape_figure.make(run, QUESTION, "networks", jobs(run), conclusion, ending)


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    size = run.size
    cosine = optax.cosine_decay_schedule(1.0, size.steps)
    tasks = {
        network: task_of(size._replace(make_model=mlp(batch_norm)), run.cifar)
        for network, batch_norm in NETWORKS.items()
        if network in run.parts
    }
    return {
        (network, name): landscape_job(task, name, size, cosine)
        for network, task in tasks.items()
        for name in CONTESTANTS
    }


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    rows = {name: x["optimizers"] for name, x in record["networks"].items()}
    found = []
    if "batch norm" in rows:
        row = rows["batch norm"]
        claim = "The paper's Figure 2 with batch norm"
        found += [
            slopes_as_claimed(claim, row, PREDICTED["batch norm"]),
            more_separable("with batch norm", row),
            improvement("with batch norm", row),
            no_gain_from_l2("with batch norm", row),
        ]
    if "no normalization" in rows:
        row = rows["no normalization"]
        claim = "The reverse without normalization"
        found += [
            slopes_as_claimed(claim, row, PREDICTED["no normalization"]),
            improvement("without normalization", row),
        ]
    return [*found, HOW_TO_READ]


def ending(record: dict[str, Any]) -> str:
    """For each network the cost of tuning decay and rate one after the other, and what it says."""
    seeds = record["budget"]["seeds"]
    if seeds < FEWEST_SEEDS:
        return f"The cost of tuning decay and rate apart: {UNDECIDED} at {seeds} seeds."
    parts = []
    for network, x in record["networks"].items():
        title = (
            f"Cost of tuning decay and rate one after the other with {network},\n"
            f"points of error from the worst start [{PERCENT} interval]"
        )
        table = [[title, "decay, then rate", "rate, then decay"]]
        table += [
            [name, *map(questions.worst, (cost.decay_first, cost.rate_first))]
            for name, cost in questions.costs(x["optimizers"])
        ]
        parts += [plain(table), wrapped(decided(x["optimizers"], seeds))]
    return "\n".join(parts)


def decided(row: questions.Row, seeds: int) -> list[str]:
    """Whether decoupled decay costs less to tune and AdamW is better; what is undecided first."""
    answers = {
        "λ costs less than L2's λ′": questions.cost_beside_l2(row),
        "λ costs less than λ/α": questions.cost_beside_ratio(row),
        "More rates come within 10 % of the best, decays tuned": questions.rates_near_best(row),
        "AdamW's error is lower than Adam+L2's, decays tuned": questions.lower_at_rates(row),
    }
    found = [(claim, x) for claim, parts in answers.items() for x in parts]
    found.sort(key=lambda pair: pair[1].word != UNDECIDED)
    return [
        f"{claim}: {x.text}: {x.word}{f' at {seeds} seeds' * (x.word == UNDECIDED)}."
        for claim, x in found
    ]


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    budget, device = record["budget"], record["device"]
    picture = image(record, "Test error over learning rate and decay, eight landscapes")
    parts = [
        f"{MLP_NAME} on {record['train_images']} of scikit-learn's "
        f"digits, {budget['epochs']} epochs of batches of {budget['batch_size']}, cosine "
        f"annealing, decay on kernels only, {budget['seeds']} seeds that each draw their own "
        f"training images; all others are held out. {record['seconds']:.0f} s on "
        f"{device['cores']} cores ({device['kind']}). The same network with batch norm, as in "
        "the paper, and without normalization:\n",
        *landscape_figure.body(record, "networks", conclusion),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
