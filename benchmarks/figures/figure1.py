"""Is AdamW better than Adam+L2, and more separable, under each learning-rate schedule?

The paper's Figure 1: landscapes of Adam+L2 and AdamW under a fixed learning rate, with drops by
a factor of 10 after 30, 60 and 80 % of the steps, and with cosine annealing. The decay follows
the schedule, as it does in the paper. Decay on kernels only.

Usage: python -m benchmarks.figures.figure1 [--size SIZE --data DIR] [--out DIR] [--quick]
"""

from typing import Any

import optax

from benchmarks.lib import landscape_figure
from benchmarks.lib.landscapes import Job, landscape_job
from benchmarks.lib.readings import difference, improvement, more_separable, slopes_as_claimed
from benchmarks.lib.sizes import Run, run_from_arguments, task_of
from benchmarks.lib.tables import folded, image, setup

QUESTION = (__doc__ or "").partition("\n")[0]
NAMES = ("Adam+L2", "AdamW")


def schedules(steps: int) -> dict[str, optax.Schedule]:
    """The multiplier η_t."""
    drops = {round(part * steps): 0.1 for part in (0.3, 0.6, 0.8)}
    return {
        "fixed": optax.constant_schedule(1.0),
        "step drops": optax.piecewise_constant_schedule(1.0, drops),
        "cosine": optax.cosine_decay_schedule(1.0, steps),
    }


def main() -> None:
    run = run_from_arguments("figure1", QUESTION, default="digits")
    landscape_figure.make(run, QUESTION, "schedules", jobs(run), conclusion)


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    task = task_of(run.size, run.cifar)
    return {
        (label, name): landscape_job(task, name, run.size, schedule)
        for label, schedule in schedules(run.size.steps).items()
        for name in NAMES
    }


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    rows = {
        f"with schedule “{label}”": result["optimizers"]
        for label, result in record["schedules"].items()
    }
    return [
        *(improvement(where, row) for where, row in rows.items()),
        *(more_separable(where, row) for where, row in rows.items()),
        *(
            slopes_as_claimed(f"Separability {where}", row, {"AdamW": 0})
            for where, row in rows.items()
        ),
        *(_beside_cosine(record["schedules"], name) for name in NAMES),
    ]


def _beside_cosine(schedules: dict[str, Any], name: str) -> str:
    found = {label: result["optimizers"][name] for label, result in schedules.items()}
    cosine = found.pop("cosine")
    others = [f"with schedule “{label}” {difference(x, cosine)}" for label, x in found.items()]
    return (
        f"{name}'s error minus that with cosine annealing: {'; '.join(others)}; in the paper "
        "cosine annealing is best."
    )


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    picture = image(record, "Test error over learning rate and decay under three schedules")
    parts = [
        f"{setup(record)}, decay on kernels only:\n",
        *landscape_figure.body(record, "schedules", conclusion),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
