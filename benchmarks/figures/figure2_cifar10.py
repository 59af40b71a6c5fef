"""Does decoupling make learning rate and weight decay separable on the paper's own data?

The paper's Figure 2: SGD and Adam, each with L2 regularization and with decoupled weight decay,
over a grid of learning rate × decay, cosine annealing, decay on kernels only, on CIFAR-10 with a
batch-norm ResNet; with --size also on more of the data and with the paper's own network. The
digits version, with the contrast of a network without normalization, is `figure2_digits.py`.

Usage: python -m benchmarks.figures.figure2_cifar10 --data DIR [--size SIZE] [--out DIR] [--quick]
"""

from typing import Any

import optax

from benchmarks.lib import landscape_figure
from benchmarks.lib.landscapes import CONTESTANTS, Job, landscape_job
from benchmarks.lib.readings import improvement, more_separable, no_gain_from_l2, slopes_as_claimed
from benchmarks.lib.sizes import Run, run_from_arguments, task_of
from benchmarks.lib.tables import folded, image, setup

QUESTION = (__doc__ or "").partition("\n")[0]
SLOPES = {"SGD+L2": -1, "SGDW": 0, "AdamW": 0}  # log₂ of the best decay, as the rate doubles


def main() -> None:
    run = run_from_arguments("figure2_cifar10", QUESTION, default="subset")
    landscape_figure.make(run, QUESTION, "networks", jobs(run), conclusion)


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    task = task_of(run.size, run.cifar)
    cosine = optax.cosine_decay_schedule(1.0, run.size.steps)
    return {
        (run.size.network, name): landscape_job(task, name, run.size, cosine)
        for name in CONTESTANTS
    }


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    ((_, result),) = record["networks"].items()
    row = result["optimizers"]
    where = f"on {record['data']}"
    return [
        slopes_as_claimed(f"The paper's Figure 2 {where}", row, SLOPES),
        more_separable(where, row),
        improvement(where, row),
        no_gain_from_l2(where, row),
    ]


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    picture = image(record, "Test error over learning rate and decay, four optimizers")
    parts = [
        f"{setup(record)}, cosine annealing, decay on kernels only:\n",
        *landscape_figure.body(record, "networks", conclusion),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
