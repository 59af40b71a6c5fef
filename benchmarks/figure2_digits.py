"""Does decoupling make learning rate and weight decay separable, and AdamW better than Adam+L2?

The paper's Figure 2 at small scale: SGD and Adam, each with L2 regularization and with
decoupled weight decay, over a grid of learning rate × decay, cosine annealing, decay on
kernels only. The data are scikit-learn's digits, 150 of them to train on; the network is an
MLP 64-128-128-10 with batch norm and, as the contrast, the same without normalization.

Usage: python benchmarks/figure2_digits.py [--out DIR] [--quick]
"""

import time
from typing import Any

import optax
from _harness import write_json
from drawing import draw_landscapes
from landscapes import CONTESTANTS, Job, Landscapes, landscape_job, train
from readings import OPTIMISM, compare, improvement, results, separability
from sizes import LAYERS, Run, header, mlp, run_from_arguments, task_of
from tables import bullets, landscape_rows, markdown, show

QUESTION = (__doc__ or "").partition("\n")[0]
NETWORKS = {"batch norm": True, "no normalization": False}


def main() -> None:
    run = run_from_arguments("figure2_digits", QUESTION, default="digits", sizes=False)
    start = time.perf_counter()
    landscapes = train(jobs(run))
    seconds = time.perf_counter() - start
    image, numbers = (run.out / f"{run.name}.{kind}" for kind in ("png", "json"))
    titles = {network: f"{run.size.network}, {network}" for network in landscapes}
    draw_landscapes(landscapes, titles, image)
    record = header(QUESTION, run, seconds) | {
        "layers": LAYERS,
        "networks": results(landscapes),
        "conclusion": conclusion(landscapes),
    }
    write_json(numbers, record)
    for network, result in record["networks"].items():
        show(landscape_rows(network, result))
    print(f"Trained in {seconds:.0f} s. Wrote {image} and {numbers}.\n")
    print(bullets(record["conclusion"]))


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


def conclusion(landscapes: Landscapes) -> list[str]:
    """What was and was not reproduced, from the numbers alone."""
    normalized, plain = landscapes["batch norm"], landscapes["no normalization"]
    figure2, reversed_ = {"SGD+L2": -1, "SGDW": 0, "AdamW": 0}, {"SGD+L2": 0, "SGDW": 1, "AdamW": 1}
    return [
        separability("With batch norm the paper's Figure 2", normalized, figure2),
        separability("Without normalization the reverse", plain, reversed_),
        improvement("with batch norm", compare(normalized)),
        improvement("without normalization", compare(plain)),
        OPTIMISM,
    ]


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    budget, device = record["budget"], record["device"]
    parts = [
        "![Test error over learning rate and decay, eight landscapes]"
        "(benchmarks/results/figure2_digits.png)\n",
        f"MLP {'-'.join(map(str, record['layers']))} on {record['train_images']} of scikit-learn's "
        f"digits, {budget['epochs']} epochs of batches of {budget['batch_size']}, cosine "
        f"annealing, decay on kernels only, {budget['seeds']} seeds that each draw their own "
        f"training images; all others are held out. {record['seconds']:.0f} s on "
        f"{device['cores']} cores ({device['kind']}). The same network with batch norm, as in "
        "the paper, and without normalization:\n",
        *(markdown(landscape_rows(*item)) for item in record["networks"].items()),
        bullets(record["conclusion"]),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
