"""Which of the paper's claims are supported? One table, from the recorded results alone.

Of each claim every regime has a line.

Usage: python -m benchmarks.figures.verdicts
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.figures.claims import CLAIMS, Claim, Record
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.questions import judgement, numbers
from benchmarks.lib.rules import PERCENT
from benchmarks.lib.tables import bullets, folded, markdown, wrapped

_STARTS = (
    "The worst start is the grid's value from which tuning costs most; the four are SGD and "
    "Adam, each with the decay or the rate tuned first."
)


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
    further = bullets(short(others, recorded))
    return f"{table}\n{_STARTS} {epochs(recorded, first)} Further claims:\n\n{further}"


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
