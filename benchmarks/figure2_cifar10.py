"""Does decoupling make learning rate and weight decay separable on the paper's own data?

The paper's Figure 2: SGD and Adam, each with L2 regularization and with decoupled weight decay,
over a grid of learning rate × decay, cosine annealing, decay on kernels only, on CIFAR-10 with a
batch-norm ResNet; with --size also on more of the data and with the paper's own network. The
digits version, with the contrast of a network without normalization, is `figure2_digits.py`.

Usage: python benchmarks/figure2_cifar10.py --data DIR [--size SIZE] [--out DIR] [--quick]
"""

import time
from typing import Any

import optax
from _harness import write_json
from drawing import draw_landscapes
from landscapes import CONTESTANTS, Job, Landscapes, landscape_job, train
from readings import OPTIMISM, compare, improvement, results, separability
from sizes import Run, header, run_from_arguments, task_of
from tables import bullets, landscape_rows, markdown, setup, show

QUESTION = (__doc__ or "").partition("\n")[0]


def main() -> None:
    run = run_from_arguments("figure2_cifar10", QUESTION, default="subset")
    start = time.perf_counter()
    landscapes = train(jobs(run), run.cells)
    record = header(QUESTION, run, time.perf_counter() - start) | {
        "networks": results(landscapes),
        "conclusion": conclusion(landscapes),
    }
    write_json(run.out / f"{run.name}.json", record)
    titles = {name: f"{name}, CIFAR-10" for name in landscapes}
    draw_landscapes(landscapes, titles, run.out / f"{run.name}.png")
    for network, result in record["networks"].items():
        show(landscape_rows(network, result))
    print(bullets(record["conclusion"]))


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    task = task_of(run.size, run.cifar)
    cosine = optax.cosine_decay_schedule(1.0, run.size.steps)
    return {
        (run.size.network, name): landscape_job(task, name, run.size, cosine)
        for name in CONTESTANTS
    }


def conclusion(landscapes: Landscapes) -> list[str]:
    """What was and was not reproduced, from the numbers alone."""
    expected = {"SGD+L2": -1, "SGDW": 0, "AdamW": 0}
    (row,) = landscapes.values()
    return [
        separability("On CIFAR-10 the paper's Figure 2", row, expected),
        improvement("on CIFAR-10", compare(row)),
        OPTIMISM,
    ]


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    parts = [
        "![Test error over learning rate and decay, four optimizers]"
        "(benchmarks/results/figure2_cifar10.png)\n",
        f"{setup(record)}, cosine annealing, decay on kernels only:\n",
        *(markdown(landscape_rows(*item)) for item in record["networks"].items()),
        bullets(record["conclusion"]),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
