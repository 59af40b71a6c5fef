"""Does decoupling make learning rate and weight decay separable, and AdamW better than Adam+L2?

The paper's Figure 2 at small scale: SGD and Adam, each with L2 regularization and with
decoupled weight decay, over a grid of learning rate × decay, cosine annealing, decay on
kernels only. The data are scikit-learn's digits, 150 of them to train on; the network is an
MLP 64-128-128-10 with batch norm and, as the contrast, the same without normalization.

Usage: python -m benchmarks.figures.figure2_digits [--out DIR] [--quick]
"""

from typing import Any

import optax

from benchmarks.lib import landscape_figure
from benchmarks.lib.landscapes import CONTESTANTS, Job, landscape_job
from benchmarks.lib.readings import (
    HOW_TO_READ,
    improvement,
    more_separable,
    no_gain_from_l2,
    separability,
    slope_interval,
)
from benchmarks.lib.rules import NEARLY, REPRODUCED, verdict, whole_number
from benchmarks.lib.sizes import MLP_NAME, Run, mlp, run_from_arguments, task_of
from benchmarks.lib.tables import folded, image

QUESTION = (__doc__ or "").partition("\n")[0]
NETWORKS = {"batch norm": True, "no normalization": False}
PREDICTED = {  # by how much log₂ of the best decay moves as the rate doubles
    "batch norm": {"SGD+L2": -1, "SGDW": 0, "AdamW": 0},
    "no normalization": {"SGD+L2": 0, "SGDW": 1, "AdamW": 1},
}


def main() -> None:
    run = run_from_arguments("figure2_digits", QUESTION, default="digits", sizes=False)
    run = run._replace(size=run.size._replace(network=MLP_NAME))
    landscape_figure.make(run, QUESTION, "networks", jobs(run), conclusion)


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    size = run.size
    cosine = optax.cosine_decay_schedule(1.0, size.steps)
    tasks = {
        network: task_of(size._replace(make_model=mlp(batch_norm)), run.cifar)
        for network, batch_norm in NETWORKS.items()
    }
    return {
        (network, name): landscape_job(task, name, size, cosine)
        for network, task in tasks.items()
        for name in CONTESTANTS
    }


def conclusion(record: dict[str, Any]) -> list[str]:
    """What was and was not reproduced, from the numbers alone."""
    normalized, plain = (record["networks"][name]["optimizers"] for name in NETWORKS)
    figure2, opposite = PREDICTED.values()
    return [
        separability("The paper's Figure 2 with batch norm", normalized, figure2),
        separability("The reverse without normalization", plain, opposite),
        more_separable("with batch norm", normalized),
        improvement("with batch norm", normalized),
        improvement("without normalization", plain),
        no_gain_from_l2("with batch norm", normalized),
        HOW_TO_READ,
        tally(record),
    ]


def tally(record: dict[str, Any]) -> str:
    verdicts = [
        verdict(whole_number(slope), slope_interval(record["networks"][network]["optimizers"][x]))
        for network, slopes in PREDICTED.items()
        for x, slope in slopes.items()
    ]
    nearly = f", {verdicts.count(NEARLY)} nearly" if NEARLY in verdicts else ""
    return f"{verdicts.count(REPRODUCED)} of {len(verdicts)} predicted slopes reproduced{nearly}."


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
