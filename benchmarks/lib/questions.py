"""The questions of the table of verdicts, each answered by a row of landscapes.

The estimates are `od.sweep`'s, cross-fitted over seeds; the verdicts are those of `rules.py`.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lib.answers import DEFAULT_RATE, PAIRS, Row, above_zero, tells_nothing, with_control
from benchmarks.lib.readings import comparison, interval_of, landscape, scaled, slope_interval
from benchmarks.lib.rules import (
    AT_LEAST_15,
    MORE,
    UNDECIDED,
    Interval,
    Rule,
    about,
    signed,
    verdict,
)
from benchmarks.lib.valleys import closer_to_zero
from optax_decoupled import sweep

ORDERS = {"decay first": "decay_first", "rate first": "rate_first"}


class Found(NamedTuple):
    """A part of an answer.

    Attributes:
      name: what it is about.
      text: its numbers.
      word: its verdict.
      decides: the numbers that decide it, if `text` has others too.
      value: the estimate among them.
    """

    name: str
    text: str
    word: str
    decides: str = ""
    value: float = np.nan


Answer = Callable[[Row], list[Found]]


def judged(name: str, found: Interval | None, rule: Rule, unit: str = "", digits: int = 2) -> Found:
    """An interval by a rule."""
    text = "not located" if found is None else found.text(digits) + unit
    return Found(name, f"{name} {text}", verdict(rule, found))


def judgement(found: list[Found]) -> str:
    """One word, if all parts have it; else which part has which, or how many if they are many."""
    counts = collections.Counter(x.word for x in found)
    if len(counts) == 1:
        return found[0].word
    if len(found) == 2:
        return "; ".join(f"{x.word}: {x.name}" for x in found)
    return ", ".join(f"{n} of {len(found)} {word}" for word, n in counts.items())


def numbers(found: list[Found]) -> str:
    """The numbers of each part, with its own word where the parts differ."""
    differ = len({x.word for x in found}) > 1
    return "; ".join(f"{x.text} ({x.word})" if differ else x.text for x in found)


def grouped(found: list[Found]) -> str:
    """Each verdict, with the numbers that decide it."""
    parts: dict[str, list[str]] = {}
    for x in found:
        parts.setdefault(x.word, []).append(x.decides or x.text)
    return "; ".join(f"**{word}** {', '.join(texts)}" for word, texts in parts.items())


def counted(found: list[Found]) -> str:
    """How many parts have each verdict, and the range of their estimates."""
    low, high = (signed(f(x.value for x in found), 2) for f in (min, max))
    return f"**{judgement(found)}**, {low} to {high}"


def pairs(row: Row) -> Iterator[tuple[str, str, str]]:
    """SGD or Adam, its L2 and its decoupled decay, where the row has both."""
    for decoupled, l2 in PAIRS.items():
        if {l2, decoupled} <= set(row):
            yield l2.removesuffix("+L2"), l2, decoupled


def rates_near_best(row: Row) -> list[Found]:
    """How many rates come within 10 % of the best, and how many more if decoupled."""
    return list(_near_best(row, "rates", lambda x: 1.0, f" of {_rates(row)}", " rates"))


def cells_near_best(row: Row) -> list[Found]:
    """Which percentage of the cells comes within 10 % of the best, and how much more of them."""
    percent = lambda x: 100 / np.prod(np.shape(x["error_percent"])[:2])
    return list(_near_best(row, "cells", percent, " %", " points"))


def _rates(row: Row) -> int:
    return len(next(iter(row.values()))["learning_rates"])


def _near_best(
    row: Row, of: str, factor: Callable[[Any], float], unit: str, of_difference: str
) -> Iterator[Found]:
    row = with_control(row)
    for name, *both in pairs(row):
        before, after = (
            scaled(getattr(sweep.basin(landscape(row[x])), of), factor(row[x])) for x in both
        )
        l2, decoupled = both
        values = f"{l2} {before.value:.1f}, {decoupled} {after.value:.1f}{unit}"
        difference = interval_of(after - before).text(1)
        word = above_zero(after - before, row[l2], row[decoupled])
        decides = f"{name} {difference}{of_difference}"
        yield Found(name, f"{values}, difference {difference}", word, decides)


def cost_beside_l2(row: Row) -> list[Found]:
    """How much more the worst start costs if λ′ is kept than if λ is."""
    row, found = with_control(row), []
    for name, l2, decoupled in pairs(row):
        theirs, ours = (sweep.tuning_cost(landscape(row[x])) for x in (l2, decoupled))
        found += _dearer(name, theirs, ours, row[l2], row[decoupled])
    return found


def cost_beside_ratio(row: Row) -> list[Found]:
    """How much more the worst start costs if λ/α is kept than if λ is."""
    row, found = with_control(row), []
    for name in [x for x in PAIRS if x in row]:
        x = landscape(row[name])
        both = sweep.tuning_cost(x, keep_ratio=True), sweep.tuning_cost(x)
        found += _dearer(name, *both, row[name])
    return found


def _dearer(
    name: str, theirs: sweep.TuningCost, ours: sweep.TuningCost, *optimizers: dict
) -> Iterator[Found]:
    for order, attribute in ORDERS.items():
        dear, cheap = (getattr(x, attribute).worst for x in (theirs, ours))
        part = f"{name}, {order}"
        more = interval_of(dear - cheap)
        word = above_zero(dear - cheap, *optimizers)
        yield Found(part, f"{part} {more.text()}", word, value=more.value)


def improvement_at_default(row: Row) -> list[Found]:
    """How much lower AdamW's error is at Adam's default rate, and at half of it, in percent."""
    gain = _advantage(row)
    by_rate = dict(zip(gain.learning_rates, gain.at_rate, strict=True))
    at = {factor: _nearest(by_rate, factor * DEFAULT_RATE) for factor in (1, 0.5)}
    found = _improvement(row, at[1])
    if at[0.5] is not None:
        half = interval_of(scaled(at[0.5], 100)).text(1)
        found = found._replace(text=f"{found.text}; at half that rate by {half} %")
    return [found]


def lower_at_rates(row: Row) -> list[Found]:
    """How much lower AdamW's error is at each rate, in percent."""
    gain = _advantage(row)
    return [
        judged(f"at the rate {rate:.3g} by", interval_of(scaled(x, 100)), MORE, " %", 1)
        for rate, x in zip(gain.learning_rates, gain.at_rate, strict=True)
    ]


def _nearest(by_rate: dict[float, sweep.Estimate], rate: float) -> sweep.Estimate | None:
    return next((x for key, x in by_rate.items() if np.isclose(key, rate)), None)


def best_against_best(row: Row) -> list[Found]:
    """How much lower AdamW's error is with rate and decay tuned, in percent."""
    return [_improvement(row, _advantage(row).best)]


def _advantage(row: Row) -> sweep.Advantage:
    both = (landscape(row[x]) for x in ("Adam+L2", "AdamW"))
    return sweep.advantage(*both, relative=True)


def _improvement(row: Row, gain: sweep.Estimate | None) -> Found:
    row = with_control(row)
    percent = None if gain is None else interval_of(scaled(gain, 100))
    found = Found("lower by", _lower_or_higher(percent), verdict(AT_LEAST_15, percent))
    nothing = any(tells_nothing(row[x]) for x in ("Adam+L2", "AdamW"))
    return found._replace(word=UNDECIDED) if nothing else found


def _lower_or_higher(percent: Interval | None) -> str:
    if percent is None:
        return "not located"
    if percent.value >= 0:
        return f"lower by {_unsigned(percent)} %"
    return f"higher by {_unsigned(Interval(-percent.value, -percent.high, -percent.low))} %"


def _unsigned(x: Interval) -> str:
    """Without the plus signs: the word before it names the direction."""
    return f"{x.value:.1f} [{x.low:.1f}, {x.high:.1f}]"


def higher_error(row: Row) -> list[Found]:
    """AdamW's lowest error minus Adam+L2's, in points; the paper has it 15 % lower."""
    found = comparison(row["Adam+L2"], row["AdamW"])
    points = comparison(row["AdamW"], row["Adam+L2"])
    name = "AdamW's error minus Adam+L2's"
    text = "too few seeds" if points is None else f"{name} {points.points.text()} points"
    return [Found("AdamW's error", text, verdict(AT_LEAST_15, found and found.percent))]


def slopes(claimed: dict[str, int]) -> Answer:
    """By how much log₂ of the best decay moves as the rate doubles, and how far off that is."""

    def answer(row: Row) -> list[Found]:
        found = []
        for name, value in claimed.items():
            part = judged(name, slope_interval(row[name]), about(value))
            away = slope_interval(row[name])
            off = "" if away is None else f", {abs(away.value - value):.2f} from the claim"
            found.append(part._replace(text=part.text + off, decides=part.text))
        return found

    return answer


def separable(row: Row) -> list[Found]:
    """How much closer to 0 the decoupled slope is."""
    return [
        judged(name, closer_to_zero(row[l2], row[decoupled]), MORE)
        for name, l2, decoupled in pairs(row)
    ]


def costs(row: Row) -> list[tuple[str, sweep.TuningCost]]:
    """For each convention of the row's optimizers the cost of tuning one after the other."""
    found = []
    for decoupled, l2 in PAIRS.items():
        if decoupled in row:
            x = landscape(row[decoupled])
            found.append((f"{decoupled}, λ kept", sweep.tuning_cost(x)))
            found.append((f"{decoupled}, λ/α kept", sweep.tuning_cost(x, keep_ratio=True)))
        if l2 in row:
            found.append((f"{l2}, λ′ kept", sweep.tuning_cost(landscape(row[l2]))))
    return found


def worst(x: sweep.SequentialCost) -> str:
    """The cost from the worst start, without a sign unless it is negative."""
    value, low, high = (signed(y, 2).removeprefix("+") for y in interval_of(x.worst))
    return f"{value} [{low}, {high}]"
