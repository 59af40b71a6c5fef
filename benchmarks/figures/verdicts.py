"""Which of the paper's claims are supported? One table, from the recorded results alone.

Its questions come first: what tuning decay and rate one after the other costs, and how large the
region of good settings is. Slopes follow. Of each claim every regime has a line.

Usage: python -m benchmarks.figures.verdicts
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.figures import figure3, figure4, normalized_decay
from benchmarks.figures.figure2_cifar10 import SLOPES
from benchmarks.figures.figure2_digits import PREDICTED
from benchmarks.lib import questions
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.questions import (
    Answer,
    Found,
    counted,
    grouped,
    judged,
    judgement,
    numbers,
)
from benchmarks.lib.readings import comparison, least_decay, paired
from benchmarks.lib.rules import BELOW_MINUS_QUARTER, MORE, NOTHING, PERCENT, Rule, verdict
from benchmarks.lib.tables import bullets, folded, markdown, wrapped

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
        "The best λ_norm moves less with the budget than the best λ",
        "λ ∝ 1/√steps: slope -0.5",
        _over_steps,
        (_source("normalized_decay"),),
        first=False,
    ),
]


class Line(NamedTuple):
    """A claim's answer from one source."""

    data: str
    where: str
    epochs: int
    seeds: int
    numbers: str
    word: str
    short: str

    @property
    def regime(self) -> str:
        return f"{self.data}, {self.where}, {self.epochs:,} epochs, {self.seeds} seeds"


def lines(claim: Claim, records: Callable[[str], Record | None]) -> list[Line]:
    """The answers of each source that there is."""
    found = []
    for source in claim.sources:
        record = records(source.record)
        if record is None or not set(source.groups) <= set(_group_names(record)):
            continue
        parts = claim.answer(record, *source.groups)
        size = record["budget"]["epochs"], record["budget"]["seeds"]
        texts = numbers(parts), judgement(parts), claim.short(parts)
        found.append(Line(record["data"], source.where, *size, *texts))
    return found


def _group_names(record: Record) -> tuple[str, ...]:
    return tuple(record.get("networks") or record.get("schedules") or ())


def rows(
    records: Callable[[str], Record | None], claims: list[Claim] | None = None
) -> list[list[str]]:
    """The whole table; `records` gives the results of a name, None if there are none."""
    table = [["claim", "paper", f"here [{PERCENT} interval]", "verdict", "regime"]]
    for claim in CLAIMS if claims is None else claims:
        found = lines(claim, records)
        of = [f"{x.data}: " if len(found) > 1 else "" for x in found]
        here = [name + x.numbers for name, x in zip(of, found, strict=True)]
        words = [name + x.word for name, x in zip(of, found, strict=True)]
        columns = here, words, [x.regime for x in found]
        table.append([claim.claim, claim.paper, *map("<br>".join, columns)])
    return table


def short_rows(records: Callable[[str], Record | None], claims: list[Claim]) -> list[list[str]]:
    """The table with the numbers that decide a verdict alone, a line for each regime."""
    table = [["claim", "paper", f"here [{PERCENT} interval]", "regime"]]
    for claim in claims:
        found = lines(claim, records)
        here = (f"{x.data}: {x.short}" for x in found)
        regimes = dict.fromkeys(x.where for x in found)
        seeds = " and ".join(str(x.seeds) for x in found)
        regime = f"{', '.join(regimes)}, {seeds} seeds"
        table.append([claim.claim, claim.paper, "<br>".join(here), regime])
    return table


def epochs(records: Callable[[str], Record | None], claims: list[Claim]) -> str:
    """How long the runs of these claims are, in a sentence."""
    names = dict.fromkeys(source.record for claim in claims for source in claim.sources)
    found = [record for name in names if (record := records(name))]
    return "Epochs: " + ", ".join(f"{x['budget']['epochs']:,} on {x['data']}" for x in found) + "."


def recorded(name: str) -> Record | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def report() -> str:
    """The README's rows, and the other claims as a list."""
    first = [claim for claim in CLAIMS if claim.first]
    others = [claim for claim in CLAIMS if not claim.first]
    table = markdown(short_rows(recorded, first), align="---")
    return (
        f"{table}\n{epochs(recorded, first)} Further claims:\n\n{bullets(short(others, recorded))}"
    )


def short(claims: list[Claim], records: Callable[[str], Record | None]) -> list[str]:
    """A sentence for each claim, with the numbers that decide it."""
    found = []
    for claim in claims:
        parts = "; ".join(f"{x.short} ({x.regime})" for x in lines(claim, records))
        found.append(f"{claim.claim} (paper: {claim.paper}): {parts}.")
    return found


def whole_report() -> str:
    """The verdict on each claim; its numbers, the paper's and the regime are folded."""
    table = rows(recorded)
    short = markdown([[claim, verdict] for claim, _, _, verdict, _ in table], align="---")
    return f"{short}\n{folded([markdown(table, align='---')])}"


def sentences(claims: list[Claim], records: Callable[[str], Record | None]) -> list[str]:
    """A sentence for each claim."""
    found = []
    for claim in claims:
        parts = [f"{x.word}: {x.numbers} ({x.regime})" for x in lines(claim, records)]
        found.append(f"{claim.claim}. Paper: {claim.paper}. Here {'; '.join(parts)}.")
    return found


def main() -> None:
    print(wrapped(sentences(CLAIMS, recorded)))


if __name__ == "__main__":
    main()
