"""What landscapes of L2 and of decoupled decay answer, in sentences with their verdicts.

The rules are those of the plan in `figure2_mnist1d.py`; the estimates are `od.sweep`'s.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.lib.readings import FEWEST_SEEDS, interval_of, landscape, scaled, slope_interval
from benchmarks.lib.rules import (
    AT_LEAST_15,
    CONTRADICTED,
    MORE,
    SUPPORTED,
    UNDECIDED,
    about,
    signed,
    verdict,
)
from optax_decoupled import sweep

Row = dict[str, dict[str, Any]]  # of a record: a `summary` for each optimizer
PAIRS = {"SGDW": "SGD+L2", "AdamW": "Adam+L2"}  # the decoupled one, and its twin with L2
TOLERANCE = 0.1
DEFAULT_RATE = 0.001  # Adam's
MOMENTUM = 0.9


def sentences(where: str, row: Row, claimed_slopes: dict[str, int]) -> list[str]:
    """All the answers that the optimizers of a row allow."""
    if any(len(x["seeds"]) < FEWEST_SEEDS for x in row.values()):
        return [f"Tuning {where}: too few seeds to tell."]
    row = with_control(row)
    pairs = [(l2, decoupled) for decoupled, l2 in PAIRS.items() if {l2, decoupled} <= set(row)]
    found = [slope_sentence(where, row, claimed_slopes)]
    for l2, decoupled in pairs:
        both = row[l2], row[decoupled]
        names = f"{decoupled} and {l2} {where}"
        found += [*basins(names, *both), *costs(names, *both)]
    if "AdamW" in row and "Adam+L2" in row:
        found += list(improvements(where, row["Adam+L2"], row["AdamW"]))
    if "SGDW" in row and "SGD+L2" in row:
        found.append(shear_sentence(where, row["SGD+L2"], row["SGDW"]))
    return [*found, *gains(where, row)]


def slope_sentence(where: str, row: Row, claimed: dict[str, int]) -> str:
    """Whether log₂ of the best decay moves as claimed, as the rate doubles."""
    parts = []
    for name in [x for x in claimed if x in row]:
        interval = slope_interval(row[name])
        text = "not located" if interval is None else interval.text()
        word = verdict(about(claimed[name]), interval)
        parts.append(f"{name} {text}, claimed {claimed[name]}: {word}")
    return f"Slope of the best decay {where}: {'; '.join(parts)}."


def above_zero(difference: sweep.Estimate, *optimizers: dict[str, Any]) -> str:
    """Supported by an interval above 0, contradicted by one below."""
    if any(map(tells_nothing, optimizers)):
        return UNDECIDED
    return verdict(MORE, interval_of(difference))


def with_control(row: Row) -> Row:
    """The row, with each optimizer's gain over no decay where the row has one without."""
    gains = {}
    for name, optimizer in row.items():
        control = row.get(name.removesuffix("W").removesuffix("+L2"))
        if control is not None and control is not optimizer:
            gain = sweep.advantage(landscape(control), landscape(optimizer)).best
            gains[name] = {"gain": gain}
    return {name: optimizer | gains.get(name, {}) for name, optimizer in row.items()}


def tells_nothing(optimizer: dict[str, Any]) -> bool:
    """Whether its best cell lies on the grid's edge, or it gains nothing over no decay."""
    no_gain = "gain" in optimizer and above_zero(optimizer["gain"]) != SUPPORTED
    return no_gain or best_on_edge(optimizer)


def best_on_edge(optimizer: dict[str, Any]) -> bool:
    """Whether the best cell has the grid's first or last rate or decay."""
    best = optimizer["best"]
    ends = (
        (best[name], (optimizer[axis][0], optimizer[axis][-1]))
        for name, axis in (("learning_rate", "learning_rates"), ("weight_decay", "weight_decays"))
    )
    return any(np.isclose(value, end).any() for value, end in ends)


def basins(names: str, l2: dict[str, Any], decoupled: dict[str, Any]) -> Iterator[str]:
    ours, theirs = (sweep.basin(landscape(x), tolerance=TOLERANCE) for x in (decoupled, l2))
    grid = [np.size(x["learning_rates"]) * np.size(x["weight_decays"]) for x in (decoupled, l2)]
    for what, of in (("learning rates", "rates"), ("share of cells", "cells")):
        a, b = getattr(ours, of), getattr(theirs, of)
        if of == "cells":
            a, b = (scaled(x, 100 / n) for x, n in zip((a, b), grid, strict=True))
        unit = " %" if of == "cells" else ""
        yield (
            f"{what.capitalize()} within 10 % of the best error, {names}: {_text(a)} and "
            f"{_text(b)}{unit}; more with the decoupled one: {above_zero(a - b, l2, decoupled)}."
        )


def costs(names: str, l2: dict[str, Any], decoupled: dict[str, Any]) -> Iterator[str]:
    kept, theirs = (sweep.tuning_cost(landscape(x)) for x in (decoupled, l2))
    ratio = sweep.tuning_cost(landscape(decoupled), keep_ratio=True)
    limit = TOLERANCE * decoupled["best"]["mean"]
    for what, order in (
        ("decay, then the rate", "decay_first"),
        ("rate, then decay", "rate_first"),
    ):
        a, b, c = (getattr(x, order) for x in (kept, theirs, ratio))
        told = interval_of(a.worst).high < limit and not tells_nothing(decoupled)
        small = SUPPORTED if told else UNDECIDED
        yield (
            f"Cost of tuning the {what}, {names}, in points of error, worst (mean) of all starts: "
            f"λ kept {_text(a.worst)} ({_text(a.mean)}), λ/α kept {_text(c.worst)} "
            f"({_text(c.mean)}), λ′ kept {_text(b.worst)} ({_text(b.mean)}). λ costs less than λ′: "
            f"{above_zero(b.worst - a.worst, l2, decoupled)}; less than λ/α: "
            f"{above_zero(c.worst - a.worst, decoupled)}; λ's cost is small: {small}."
        )


def improvements(where: str, l2: dict[str, Any], decoupled: dict[str, Any]) -> Iterator[str]:
    """AdamW's, in % of Adam+L2's error, at the default rate and best against best."""
    found = sweep.advantage(landscape(l2), landscape(decoupled), relative=True)
    places = {"best against best": found.best}
    near = np.flatnonzero(np.isclose(found.learning_rates, DEFAULT_RATE))
    places |= {f"at the rate {DEFAULT_RATE}": found.at_rate[i] for i in near}
    for place, gain in places.items():
        percent = scaled(gain, 100)
        word = verdict(AT_LEAST_15, interval_of(percent))
        if tells_nothing(l2) or tells_nothing(decoupled):
            word = UNDECIDED
        yield (
            f"AdamW's improvement over Adam+L2 {where}, {place}: {_text(percent)} %; "
            f"15 % or more: {word}."
        )


def shear_sentence(where: str, l2: dict[str, Any], decoupled: dict[str, Any]) -> str:
    found = sweep.shear(landscape(l2), landscape(decoupled), momentum=MOMENTUM)
    correlation, distance = interval_of(found.correlation), interval_of(found.distance)
    limit = TOLERANCE * decoupled["best"]["mean"]
    alike = correlation.value >= 0.9, distance.value <= limit
    word = {(True, True): SUPPORTED, (False, False): CONTRADICTED}.get(alike, UNDECIDED)
    if tells_nothing(l2) or tells_nothing(decoupled):
        word = UNDECIDED
    return (
        f"SGD+L2's landscape {where} is SGDW's, sheared by λ = αλ′/(1 - momentum): correlation "
        f"{correlation.text()} over {found.covered} cells, mean absolute difference "
        f"{distance.text()} points: {word}."
    )


def gains(where: str, row: Row) -> Iterator[str]:
    """The positive control: what decay gains over none."""
    for name, optimizer in row.items():
        if "gain" in optimizer:
            yield (
                f"Gain of {name} over no decay {where}: {_text(optimizer['gain'])} points; "
                f"above 0: {above_zero(optimizer['gain'])}."
            )


def _text(x: sweep.Estimate) -> str:
    value, low, high = (signed(y, 2).removeprefix("+") for y in interval_of(x))
    return f"{value} [{low}, {high}]"
