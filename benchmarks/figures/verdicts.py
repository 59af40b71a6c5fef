"""Which of the paper's claims are reproduced? One table, from the recorded results alone.

Usage: python -m benchmarks.figures.verdicts
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.figures import figure3, figure4
from benchmarks.figures.figure2_cifar10 import SLOPES
from benchmarks.figures.figure2_digits import PREDICTED
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.readings import comparison, least_decay, paired, slope_interval
from benchmarks.lib.rules import (
    AT_LEAST_15,
    BELOW_MINUS_QUARTER,
    MORE,
    NOTHING,
    Interval,
    Rule,
    verdict,
    verdict_of_all,
    whole_number,
)
from benchmarks.lib.tables import markdown, wrapped
from benchmarks.lib.valleys import closer_to_zero

Record = dict[str, Any]


class Part(NamedTuple):
    """A number that a claim is about: its name, how it is read from the record, its rule."""

    name: str
    read: Callable[[Record], Interval | None]
    rule: Rule


class Claim(NamedTuple):
    """A row of the table.

    Attributes:
      claim: in words.
      paper: what it prints, or what is predicted.
      record: the name of the results.
      regime: where in them, before what the record says of itself.
      parts: the numbers that must all bear it out.
      unit: of these numbers.
    """

    claim: str
    paper: str
    record: str
    regime: str
    parts: list[Part]
    unit: str = ""


def _optimizer(group: str | None, name: str) -> Callable[[Record], dict[str, Any]]:
    """Of a record of landscapes: the only group if none is named."""

    def read(record: Record) -> dict[str, Any]:
        groups = record.get("networks") or record["schedules"]
        return groups[group or next(iter(groups))]["optimizers"][name]

    return read


def _slope(group: str | None, name: str, expected: int) -> Part:
    of = _optimizer(group, name)
    return Part(name, lambda record: slope_interval(of(record)), whole_number(expected))


def _slopes(group: str | None, expected: dict[str, int]) -> list[Part]:
    return [_slope(group, name, value) for name, value in expected.items()]


def _percent(first: Callable[[Record], Any], second: Callable[[Record], Any]) -> Any:
    """How much lower the second one's error is, in percent of the first one's."""

    def read(record: Record) -> Interval | None:
        found = comparison(first(record), second(record))
        return found and found.percent

    return read


def _beside_cosine(schedule: str) -> Part:
    both = (_optimizer(x, "AdamW") for x in (schedule, "cosine"))
    return Part(schedule, _percent(*both), MORE)


def _at_equal_loss(half: str) -> Part:
    read = lambda record: figure3.at_equal_loss(record["optimizers"])[half].percent
    return Part(half, read, MORE)


def _before_the_end(plain: str, restarted: str) -> Part:
    """The mean over the ends of all cycles but the last, of each seed."""

    def read(record: Record) -> Interval:
        errors = (record["optimizers"][x]["error_percent"][:-1] for x in (plain, restarted))
        return paired(*(np.array(x, float).mean(0) for x in errors)).percent

    return Part(restarted, read, MORE)


def _over_steps(name: str) -> Part:
    def read(record: Record) -> Interval | None:
        found = record["optimizers"][name]["slope_over_steps"]
        return found and Interval(*found)

    return Part(name, read, BELOW_MINUS_QUARTER)


ADAM_L2, ADAMW = (_optimizer("batch norm", name) for name in ("Adam+L2", "AdamW"))
LEAST_L2 = lambda record: least_decay(ADAM_L2(record))
NORMALIZED = PREDICTED["batch norm"]

CLAIMS = [
    Claim(
        "As the rate doubles, SGD+L2's best λ′ halves",
        "slope -1",
        "figure2_digits",
        "batch norm",
        _slopes("batch norm", {"SGD+L2": NORMALIZED["SGD+L2"]}),
    ),
    Claim(
        "SGDW's best λ stays",
        "slope 0",
        "figure2_digits",
        "batch norm",
        _slopes("batch norm", {"SGDW": NORMALIZED["SGDW"]}),
    ),
    Claim(
        "AdamW's best λ stays",
        "slope 0",
        "figure2_digits",
        "batch norm",
        _slopes("batch norm", {"AdamW": NORMALIZED["AdamW"]}),
    ),
    Claim(
        "AdamW is more separable than Adam+L2",
        "slope closer to 0",
        "figure2_digits",
        "batch norm",
        [Part("closer by", lambda x: closer_to_zero(ADAM_L2(x), ADAMW(x)), MORE)],
    ),
    Claim(
        "Without normalization the reverse",
        "not in the paper; predicted: "
        + ", ".join(str(x) for x in PREDICTED["no normalization"].values()),
        "figure2_digits",
        "no normalization",
        _slopes("no normalization", PREDICTED["no normalization"]),
    ),
    Claim(
        "The slopes of Figure 2 on a part of CIFAR-10",
        ", ".join(str(x) for x in SLOPES.values()),
        "figure2_cifar10",
        "ResNet-8",
        _slopes(None, SLOPES),
    ),
    Claim(
        "AdamW's test error is lower than Adam+L2's",
        "15 % lower",
        "figure2_digits",
        "batch norm",
        [Part("lower by", _percent(ADAM_L2, ADAMW), AT_LEAST_15)],
        " %",
    ),
    Claim(
        "Adam gains nothing from L2",
        "no gain",
        "figure2_digits",
        "batch norm",
        [Part("gain", _percent(LEAST_L2, ADAM_L2), NOTHING)],
        " %",
    ),
    Claim(
        "Cosine annealing is best for AdamW",
        "lower error",
        "figure1",
        "batch norm",
        [_beside_cosine("fixed"), _beside_cosine("step drops")],
        " %",
    ),
    Claim(
        "At equal training loss AdamW's test error is lower",
        "lower",
        "figure3",
        "batch norm",
        [_at_equal_loss(half) for half in figure3.HALVES],
        " %",
    ),
    Claim(
        "Warm restarts are better before the end",
        "up to 10 times as early",
        "figure4",
        "batch norm",
        [_before_the_end(*names) for names in figure4.RESTARTED.items()],
        " %",
    ),
    Claim(
        "The best λ_norm moves less with the budget than the best λ",
        "λ ∝ 1/√steps: slope -0.5",
        "normalized_decay",
        "batch norm",
        [_over_steps("SGDW"), _over_steps("AdamW")],
    ),
]


def judged(claim: Claim, record: Record) -> tuple[str, str]:
    """What was found, in words, and the verdict."""
    found = [part.read(record) for part in claim.parts]
    digits = 1 if claim.unit else 2
    texts = [
        f"{part.name} {_text(x, digits)}{claim.unit}"
        for part, x in zip(claim.parts, found, strict=True)
    ]
    verdicts = [verdict(part.rule, x) for part, x in zip(claim.parts, found, strict=True)]
    return "; ".join(texts), verdict_of_all(verdicts)


def _text(x: Interval | None, digits: int) -> str:
    return "not located" if x is None else x.text(digits)


def regime(claim: Claim, record: Record) -> str:
    budget = record["budget"]
    epochs, seeds = f"{budget['epochs']:,} epochs", f"{budget['seeds']} seeds"
    return f"{record['data']}, {claim.regime}, {epochs}, {seeds}"


def rows(records: Callable[[str], Record]) -> list[list[str]]:
    """The table; `records` gives the results of a name."""
    table = [["claim", "paper", "here [95 % interval]", "verdict", "regime"]]
    for claim in CLAIMS:
        record = records(claim.record)
        found, word = judged(claim, record)
        table.append([claim.claim, claim.paper, found, word, regime(claim, record)])
    return table


def recorded(name: str) -> Record:
    return json.loads((RESULTS / f"{name}.json").read_text())


def report() -> str:
    """The Markdown of the generated part."""
    return markdown(rows(recorded), align="---")


def main() -> None:
    table = rows(recorded)[1:]
    sentences = [
        f"{claim}: {word}. Paper: {paper}. Here: {found} ({where})."
        for claim, paper, found, word, where in table
    ]
    print(wrapped(sentences))


if __name__ == "__main__":
    main()
