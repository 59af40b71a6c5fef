"""The paper's claims: what each says, which results answer it, and the rule that decides.

The questions come first: what tuning decay and rate one after the other costs, and how large the
region of good settings is. Slopes follow.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.figures import figure3, figure4, normalized_decay
from benchmarks.figures.figure2_cifar10 import SLOPES
from benchmarks.figures.figure2_digits import PREDICTED
from benchmarks.lib import questions
from benchmarks.lib.questions import (
    Answer,
    Found,
    counted,
    grouped,
    judged,
)
from benchmarks.lib.readings import comparison, least_decay, paired
from benchmarks.lib.rules import BELOW_MINUS_QUARTER, MORE, NOTHING, Rule, verdict

Record = dict[str, Any]
EARLIER = Rule((1, np.inf), (1, np.inf))


class Source(NamedTuple):
    """Where an answer is read.

    Attributes:
      record: the name of the results. If there are none yet, the table has no line of them.
      groups: of its landscapes, if it has any.
      where: in the results, before what the record says of itself.
    """

    record: str
    groups: tuple[str, ...]
    where: str


class Claim(NamedTuple):
    """A row of the table.

    Attributes:
      claim: in words.
      paper: what it prints, or what is predicted.
      answer: reads a record and the names of groups.
      sources: of the answers.
      short: the answer in the README.
      first: whether the row is one of the README's table.
    """

    claim: str
    paper: str
    answer: Callable[..., list[Found]]
    sources: tuple[Source, ...]
    short: Callable[[list[Found]], str] = grouped
    first: bool = True


def _source(record: str, *groups: str, where: str = "batch norm") -> Source:
    return Source(record, groups, where)


def _rows(record: Record, names: tuple[str, ...]) -> list[questions.Row]:
    """The landscapes of these groups; of the only one if none is named."""
    groups = record.get("networks") or record["schedules"]
    return [groups[name]["optimizers"] for name in names or groups]


def _of_landscapes(*answers: Answer) -> Callable[..., list[Found]]:
    """The answers of one row of landscapes, in one line."""

    def answer(record: Record, *names: str) -> list[Found]:
        (row,) = _rows(record, names)
        return [found for part in answers for found in part(row)]

    return answer


def _gain_from_l2(row: questions.Row) -> list[Found]:
    found = comparison(least_decay(row["Adam+L2"]), row["Adam+L2"])
    return [judged("gain", found and found.percent, NOTHING, " %", 1)]


def _beside_cosine(record: Record, *names: str) -> list[Found]:
    """The last of the groups is cosine annealing."""
    *others, cosine = (row["AdamW"] for row in _rows(record, names))
    found = []
    for name, x in zip(("fixed", "step drops"), others, strict=True):
        difference = comparison(x, cosine)
        found.append(judged(name, difference and difference.percent, MORE, " %", 1))
    return found


def _at_equal_loss(record: Record) -> list[Found]:
    halves = figure3.at_equal_loss(record["optimizers"])
    return [judged(half, x.percent, MORE, " %", 1) for half, x in halves.items()]


def _as_early(record: Record) -> list[Found]:
    """With the mean gain at the ends of all cycles but the last, of each seed."""
    found = []
    for plain, restarted in figure4.RESTARTED.items():
        early = figure4.times_as_early(record, plain)
        errors = (record["optimizers"][x]["error_percent"][:-1] for x in (plain, restarted))
        gain = paired(*(np.array(x, float).mean(0) for x in errors)).percent
        value, low, high = (f"{x:.2g}" for x in early)
        text = (
            f"{restarted} {value} times as early [{low}, {high}], its error before the end lower "
            f"by {gain.text(1)} %"
        )
        found.append(Found(restarted, text, verdict(EARLIER, early)))
    return found


def _over_steps(record: Record) -> list[Found]:
    found = {
        x: normalized_decay.slope_over_steps(record["optimizers"][x]) for x in ("SGDW", "AdamW")
    }
    return [judged(name, x, BELOW_MINUS_QUARTER) for name, x in found.items()]


DIGITS = (
    _source("figure2_digits", "batch norm"),
    _source("figure2_mnist1d", "batch norm"),
)
WITHOUT = (
    _source("figure2_digits", "no normalization", where="no normalization"),
    _source("figure2_mnist1d", "no normalization", where="no normalization"),
)
SCHEDULES = (
    _source("figure1", "fixed", "step drops", "cosine"),
    _source("figure2_mnist1d", "batch norm, fixed rate", "batch norm, step drops", "batch norm"),
)
NORMALIZED, OPPOSITE = PREDICTED["batch norm"], PREDICTED["no normalization"]


def _values(claimed: dict[str, int]) -> str:
    return "slopes " + ", ".join(str(x) for x in claimed.values())


CLAIMS = [
    Claim(
        "If decoupled, more rates come within 10 % of the best error, each with its decay tuned",
        "more separable",
        _of_landscapes(questions.rates_near_best),
        DIGITS,
    ),
    Claim(
        "If decoupled, a larger share of the grid comes within 10 % of the best error",
        "more separable",
        _of_landscapes(questions.cells_near_best),
        DIGITS,
    ),
    Claim(
        "Tuning decay and rate one after the other costs more with L2's λ′ than with λ (points "
        "of test error, worst start)",
        "decay and rate can be tuned apart",
        _of_landscapes(questions.cost_beside_l2),
        DIGITS,
        counted,
    ),
    Claim(
        "The same tuning costs more with λ/α, the `weight_decay` of Optax and PyTorch, than with λ",
        "not in the paper",
        _of_landscapes(questions.cost_beside_ratio),
        DIGITS,
        counted,
    ),
    Claim(
        "At Adam's default rate 0.001, decays tuned, AdamW's error is 15 % below Adam+L2's",
        "15 % lower (section 4.4, Figure 3)",
        _of_landscapes(questions.improvement_at_default),
        DIGITS,
    ),
    Claim(
        "Best against best, rates tuned too, AdamW's error is 15 % below Adam+L2's",
        "15 % lower",
        _of_landscapes(questions.best_against_best),
        DIGITS,
    ),
    Claim(
        "As the rate doubles, SGD+L2's best λ′ halves, SGDW's and AdamW's best λ stays",
        _values(NORMALIZED),
        _of_landscapes(questions.slopes(NORMALIZED)),
        DIGITS,
    ),
    Claim(
        "If decoupled, the best decay depends less on the rate",
        "more separable: slope closer to 0",
        _of_landscapes(questions.separable),
        DIGITS,
    ),
    Claim(
        "As the rate doubles without normalization, SGD+L2's best λ′ stays, SGDW's and AdamW's "
        "best λ doubles",
        f"not in the paper; predicted: {_values(OPPOSITE)}",
        _of_landscapes(questions.slopes(OPPOSITE)),
        WITHOUT,
    ),
    Claim(
        "The slopes, and AdamW's error 15 % below Adam+L2's, on a part of CIFAR-10",
        f"{_values(SLOPES)}; 15 % lower",
        _of_landscapes(questions.slopes(SLOPES), questions.higher_error),
        (_source("figure2_cifar10", where="ResNet-8 with batch norm"),),
    ),
    Claim(
        "Adam gains nothing from L2",
        "no gain",
        _of_landscapes(_gain_from_l2),
        DIGITS,
        first=False,
    ),
    Claim(
        "Cosine annealing is best for AdamW",
        "lower error",
        _beside_cosine,
        SCHEDULES,
        first=False,
    ),
    Claim(
        "At equal training loss AdamW's test error is lower",
        "lower",
        _at_equal_loss,
        (_source("figure3"),),
        first=False,
    ),
    Claim(
        "Warm restarts give good weights early",
        "up to 10 times as early",
        _as_early,
        (_source("figure4"),),
        first=False,
    ),
    Claim(
        "The best λ_norm moves less with the number of steps than the best λ",
        "λ ∝ 1/√steps: slope -0.5",
        _over_steps,
        (_source("normalized_decay"),),
        first=False,
    ),
]
