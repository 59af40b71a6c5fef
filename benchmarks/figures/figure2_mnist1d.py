"""Do the answers of the paper's Figures 1 and 2 hold on a second data set, MNIST-1D?

The plan, written before the run. Nothing above the line "Notes" changes after it.

What is trained. MNIST-1D (arXiv:2011.14439): 5000 curves of 40 numbers, ten classes. Each seed
draws 1000 of them, 100 of each class, and is measured on the 4000 others. Three 1-d convolutions
of 24 channels (sizes 5, 3, 3, stride 2, ReLU), mean over positions, linear head; batches of 50,
30 epochs (600 steps); decay on kernels only, and it follows the schedule.
Parts: "batch norm", "layer norm" and "no normalization" with cosine annealing and SGD+L2, SGDW,
Adam+L2 and AdamW; "batch norm, fixed rate" and "batch norm, step drops" (Figure 1) with Adam+L2
and AdamW. Seeds 0 to 15. Momentum 0.9; Adam's β₁ 0.9, β₂ 0.999.

Grids, in powers of two, placed after a trial with the seed 1000, which is not used again:
SGD's rates 0.1·2^-4…2^3, Adam's 0.001·2^0…2^7 (0.001 is Adam's default). Decays: SGD+L2
λ′ = 2^-13…2^-1, SGDW λ = 2^-12…2^-2, Adam+L2 λ′ = 2^-14…2^-1, AdamW λ = 2^-11…2^-2; all 2^-4
times that without normalization and 2^-2 times that under a fixed rate, where the good decays are
smaller. "SGD" and "Adam" are the controls without decay (2^-100, which changes no float32 weight).

Exclusions. No seed and no cell is left out. A cell in which a seed diverged is nobody's best. A
rate whose best decay lies on the grid's edge does not count for a slope. Where the best cell of a
whole landscape has its decay on the edge, or its rate, the comparisons of that landscape are
called undecided, whatever their numbers.

How it is read. Whatever chooses a cell and then measures it is cross-fitted: over many random
splits of the seeds one half chooses and the other half measures, and the splits are averaged.
Every interval is a 90 % interval over seeds, both landscapes of a comparison with the same seeds;
its method is the one of several that covers best on synthetic landscapes, not on these.

Questions, and what counts as support (+) or contradiction (-) of the paper; else undecided.
  0. Slope: log₂ of the best decay as the rate doubles. Normalized networks: SGD+L2 -1, SGDW 0,
     AdamW 0, as in Figure 2. No normalization: 0, 1, 1, as it was on digits.
     + the interval lies within ±0.5 of the claim; - it lies outside of that.
  a. How many rates reach the best error within 10 %, each with its best decay? And
  b. which share of the grid's cells comes within 10 % of the best?
     Decoupled minus L2: + the interval is above 0; - it is below 0.
  c. What does it cost, in points of error, to tune one after the other: the decay at a rate that
     is given, then the rate; and the other way round? Mean and worst over the given ones; for λ
     kept, for λ/α kept (Optax, PyTorch: the decay moves with the rate), and for λ′ kept (L2).
     L2's worst cost minus that of λ: + above 0; - below 0. λ's worst cost is called small if its
     interval lies below 10 % of the best error.
  d. Adam+L2's error minus AdamW's, relative to the first: at the rate 0.001, each with its best
     decay, and best against best. + the interval reaches 15 % and is above 0; - it lies below
     15 %. Likewise under each schedule.
  e. Is SGD+L2's landscape SGDW's, sheared by λ = αλ′/(1 - momentum)? Over the cells that both
     have: + their correlation is at least 0.9, and the mean absolute difference of the errors is
     at most 10 % of the best error where SGDW is within twice its best; - neither.
  f. Positive control: the error without decay minus that of the best cell. It must be above 0; a
     contestant for which it is not says nothing about a to e.

Finished cells are kept in DIR/cells: a run that was killed goes on. About two core-hours.

Usage: python -m benchmarks.figures.figure2_mnist1d [--out DIR] [--quick] [--parts NAME ...]

Notes: none yet.
"""

from typing import Any

from flax import nnx

import optax_decoupled as od
from benchmarks.figures.figure1 import NAMES, schedules
from benchmarks.lib import landscape_figure
from benchmarks.lib.answers import sentences
from benchmarks.lib.landscapes import Contestant, Job, landscape_job
from benchmarks.lib.sizes import Run, batch_norm, conv1d, run_from_arguments, task_of
from benchmarks.lib.tables import folded, image, setup

QUESTION = (__doc__ or "").partition("\n")[0]
PLAIN = "no normalization"
PARTS = {  # in the order of their importance: what normalizes, the schedule, log₂ of the decays'
    "batch norm": (batch_norm, "cosine", 0),  # shift
    "batch norm, fixed rate": (batch_norm, "fixed", -2),
    "batch norm, step drops": (batch_norm, "step drops", 0),
    PLAIN: (None, "cosine", -4),
    "layer norm": (nnx.LayerNorm, "cosine", 0),
}
SGD, ADAM = (0.1, range(-4, 4)), (0.001, range(8))  # rates
NO_DECAY = range(-100, -99)
CONTESTANTS = {
    "SGD+L2": Contestant(od.sgd_l2, *SGD, range(-13, 0)),
    "SGDW": Contestant(od.sgdw, *SGD, range(-12, -1)),
    "Adam+L2": Contestant(od.adam_l2, *ADAM, range(-14, 0)),
    "AdamW": Contestant(od.adamw, *ADAM, range(-11, -1)),
}
CONTROLS = {
    "SGD": Contestant(od.sgdw, *SGD, NO_DECAY, "no decay"),
    "Adam": Contestant(od.adamw, *ADAM, NO_DECAY, "no decay"),
}
FIGURE2 = {"SGD+L2": -1, "SGDW": 0, "AdamW": 0}  # log₂ of the best decay, as the rate doubles
HOW_TO_READ = (
    "± is the standard deviation over seeds. Brackets are 90 % intervals, of a slope by bootstrap "
    "over seeds, of all else cross-fitted and by jackknife over seeds. What counts as supported "
    "and as contradicted is in the plan, in the script's docstring."
)
REVERSE = {name: slope + 1 for name, slope in FIGURE2.items()}


def main() -> None:
    run = run_from_arguments(
        "figure2_mnist1d", QUESTION, default="mnist1d", sizes=False, parts=tuple(PARTS)
    )
    landscape_figure.make(run, QUESTION, "networks", jobs(run), conclusion)


def jobs(run: Run) -> dict[tuple[str, str], Job]:
    return {
        (part, name): job
        for part in PARTS
        if part in run.parts
        for name, job in _jobs(run, *PARTS[part]).items()
    }


def _jobs(run: Run, make_norm: Any, schedule: str, shift: int) -> dict[str, Job]:
    size = run.size._replace(make_model=conv1d(make_norm))
    eta, task = schedules(size.steps)[schedule], task_of(size, None)
    shifted = size._replace(decay_shift=shift)
    names = list(CONTESTANTS) if schedule == "cosine" else NAMES
    made = {name: landscape_job(task, name, shifted, eta, CONTESTANTS) for name in names}
    controls = [name for name in CONTROLS if f"{name}+L2" in names]
    return made | {name: landscape_job(task, name, size, eta, CONTROLS) for name in controls}


def conclusion(record: dict[str, Any]) -> list[str]:
    """What is supported and what is not, from the numbers alone."""
    found = []
    for part, result in record["networks"].items():
        slopes = REVERSE if part == PLAIN else FIGURE2
        found += sentences(f"with {part}", result["optimizers"], slopes)
    return [*found, HOW_TO_READ]


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    picture = image(record, "Test error over learning rate and decay on MNIST-1D")
    parts = [
        f"{setup(record)}, decay on kernels only:\n",
        *landscape_figure.body(record, "networks", conclusion),
    ]
    return f"{picture}\n{folded(parts)}"


if __name__ == "__main__":
    main()
