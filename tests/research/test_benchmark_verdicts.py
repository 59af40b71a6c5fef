"""The verdict table: records whose verdict is certain, and what turns each of them."""

import copy

import numpy as np
import pytest

from benchmarks.figures import figure2_digits, verdicts
from benchmarks.lib import rules
from benchmarks.lib.rules import NEARLY, REFUTED, REPRODUCED, UNDECIDED, Interval
from benchmarks.lib.tables import landscape_rows, plain, wrapped

SEEDS = 8
JITTER = np.tile([-0.01, 0.01], SEEDS // 2)  # of the errors, so that intervals have a length
CLAIMS = {claim.claim: claim for claim in verdicts.CLAIMS}
L2, W = "Adam+L2", "AdamW"


def _landscape(slope, lowest=10.0, steep=1.0, sign=1):
    """Whose best decay moves so as the rate doubles, with this lowest error."""
    rates, decays = np.arange(-3.0, 4), np.arange(-14.0, 3)
    bowl = (decays + 6 - slope * rates[:, None]) ** 2 + 0.3 * rates[:, None] ** 2
    errors = lowest + steep * bowl[..., None] + sign * JITTER
    return {
        "learning_rates": 2.0**rates,
        "weight_decays": 2.0**decays,
        "seeds": list(range(SEEDS)),
        "error_percent": errors,
        "valley_slope": {"slope": slope, "low": slope - 0.1, "high": slope + 0.1},
    }


def _long(l2, adamw):
    """Errors over the training loss, flat."""

    def curve(error):
        loss = np.repeat(np.logspace(-3, 0, 10)[:, None], SEEDS, 1)
        return {"seeds": list(range(SEEDS)), "train_loss": loss, "error_percent": 0 * loss + error}

    return {L2: curve(l2 + JITTER), W: curve(adamw - JITTER)}


def _at_the_ends(*errors):
    return {"error_percent": (np.array(errors)[:, None] + JITTER).tolist()}


def _records():
    """In which everything is as the paper has it."""
    slopes = {"SGD+L2": -1, "SGDW": 0, L2: -1, W: 0}
    normalized = {name: _landscape(slope) for name, slope in slopes.items()}
    normalized[L2] = _landscape(-1, lowest=12.5, sign=-1)
    normalized[L2]["error_percent"][0, 0] = 12.5 + JITTER  # with the least decay no worse
    opposite = {name: _landscape(slope + 1) for name, slope in slopes.items()}
    lowest = {"fixed": 12.0, "step drops": 11.0, "cosine": 10.0}
    ends = {"SGDW": (9.0, 8.0, 6.0), "SGDWR": (8.0, 7.0, 6.0)}
    found = {
        "figure1": {
            "schedules": {
                label: {"optimizers": {W: _landscape(0, x, sign=1 if label == "cosine" else -1)}}
                for label, x in lowest.items()
            }
        },
        "figure2_digits": {
            "networks": {
                "batch norm": {"optimizers": normalized},
                "no normalization": {"optimizers": opposite},
            }
        },
        "figure2_cifar10": {"networks": {"ResNet": {"optimizers": dict(normalized)}}},
        "figure3": {"optimizers": _long(8.0, 7.0)},
        "figure4": {
            "optimizers": {
                name.replace("SGD", method): _at_the_ends(*errors)
                for method in ("SGD", "Adam")
                for name, errors in ends.items()
            }
        },
        "normalized_decay": {
            "optimizers": {x: {"slope_over_steps": [-0.5, -0.6, -0.4]} for x in ("SGDW", W)}
        },
    }
    about = {"data": "digits", "budget": {"epochs": 1800, "seeds": SEEDS}}
    return {name: about | record for name, record in found.items()}


RECORDS = _records()
DIGITS = ("figure2_digits", "networks", "batch norm", "optimizers")
WITHOUT = ("figure2_digits", "networks", "no normalization", "optimizers")
CIFAR10 = ("figure2_cifar10", "networks", "ResNet", "optimizers")
FIXED = ("figure1", "schedules", "fixed", "optimizers", W)
LONG = ("figure3", "optimizers")
RESTARTS = ("figure4", "optimizers", "AdamWR")
OVER_STEPS = ("normalized_decay", "optimizers", W, "slope_over_steps")
UNSURE = {"slope": -0.5, "low": -1.2, "high": 0.2}

# What stands at a place of the records instead, and what this makes of a claim.
HALVES, SGDW, ADAMW = list(CLAIMS)[:3]
SEPARABLE, OPPOSITE, PART, LOWER, NO_GAIN, COSINE, EQUAL_LOSS, EARLY, NORMALIZED = list(CLAIMS)[3:]
CHANGES = [
    (HALVES, REFUTED, (*DIGITS, "SGD+L2"), _landscape(0)),
    (HALVES, UNDECIDED, (*DIGITS, "SGD+L2", "valley_slope"), UNSURE),
    (SGDW, REFUTED, (*DIGITS, "SGDW"), _landscape(-1)),
    (ADAMW, REFUTED, (*DIGITS, W), _landscape(-1)),
    (ADAMW, UNDECIDED, (*DIGITS, W, "valley_slope"), None),
    (ADAMW, UNDECIDED, (*DIGITS, W, "seeds"), [0, 1, 2]),
    (SEPARABLE, REFUTED, (*DIGITS, W), _landscape(1.5)),
    (SEPARABLE, UNDECIDED, (*DIGITS, W), _landscape(1)),
    (OPPOSITE, REFUTED, (*WITHOUT, "SGDW"), _landscape(0)),
    (OPPOSITE, UNDECIDED, (*WITHOUT, "SGDW", "valley_slope"), None),
    (PART, REFUTED, (*CIFAR10, W), _landscape(-0.4)),
    (LOWER, REFUTED, (*DIGITS, W), _landscape(0, lowest=11.9)),
    (LOWER, REFUTED, (*DIGITS, W), _landscape(0, lowest=14.0)),
    (NO_GAIN, REFUTED, (*DIGITS, L2), _landscape(-1, lowest=12.5)),
    (COSINE, REFUTED, FIXED, _landscape(0, lowest=9.0, sign=-1)),
    (COSINE, UNDECIDED, FIXED, _landscape(0, lowest=10.0, sign=-1)),
    (EQUAL_LOSS, REFUTED, LONG, _long(7.0, 8.0)),
    (EQUAL_LOSS, UNDECIDED, LONG, _long(7.0, 7.0)),
    (EARLY, REFUTED, RESTARTS, _at_the_ends(10.0, 8.0, 6.0)),
    (EARLY, REPRODUCED, RESTARTS, _at_the_ends(8.0, 7.0, 99.0)),
    (NORMALIZED, REFUTED, OVER_STEPS, [0.0, -0.1, 0.1]),
    (NORMALIZED, UNDECIDED, OVER_STEPS, [-0.3, -0.6, 0.1]),
    (NORMALIZED, UNDECIDED, OVER_STEPS, None),
]


def _word(claim, records):
    return verdicts.judged(CLAIMS[claim], records[CLAIMS[claim].record])[1]


@pytest.mark.parametrize("claim", CLAIMS)
def test_where_all_is_as_in_the_paper_all_is_reproduced(claim):
    assert _word(claim, RECORDS) == REPRODUCED


@pytest.mark.parametrize(("claim", "word", "place", "value"), CHANGES)
def test_a_change_turns_the_verdict(claim, word, place, value):
    records = copy.deepcopy(RECORDS)
    inner = records
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert _word(claim, records) == word


def test_every_claim_can_fail():
    assert {claim for claim, word, *_ in CHANGES if word == REFUTED} == set(CLAIMS)


def test_the_table_is_short_and_whole():
    header, *body = verdicts.rows(RECORDS.__getitem__)
    assert len(body) <= 12
    assert all(len(row) == len(header) and all(row) for row in body)
    assert not any("|" in cell for row in body for cell in row)
    assert body[0][2] == "SGD+L2 -1.00 [-1.10, -0.90]"
    assert body[0][-1] == "digits, batch norm, 1,800 epochs, 8 seeds"


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.0, -0.9, 0.9), REPRODUCED),
        (Interval(0.0, -1.0, 0.9), UNDECIDED),
        (Interval(0.0, -0.9, 1.0), UNDECIDED),
        (Interval(0.2, 0.1, 0.49), NEARLY),
        (Interval(-0.2, -0.49, -0.1), NEARLY),
        (Interval(0.2, 0.1, 0.51), REFUTED),
        (Interval(0.5, 0.1, 0.9), REFUTED),
        (Interval(-0.5, -0.9, -0.1), REFUTED),
        (Interval(np.nan, np.nan, np.nan), UNDECIDED),
        (None, UNDECIDED),
    ],
)
def test_a_whole_number_is_told_from_its_neighbours(interval, verdict):
    assert rules.verdict(rules.whole_number(0), interval) == verdict


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (rules.MORE, [REFUTED, UNDECIDED, REPRODUCED, UNDECIDED, REPRODUCED, UNDECIDED]),
        (rules.AT_LEAST_15, [REFUTED, REFUTED, REFUTED, UNDECIDED, REPRODUCED, REFUTED]),
        (rules.NOTHING, [REPRODUCED, REPRODUCED, REFUTED, UNDECIDED, REFUTED, REPRODUCED]),
        (
            rules.BELOW_MINUS_QUARTER,
            [REPRODUCED, UNDECIDED, REFUTED, UNDECIDED, REFUTED, UNDECIDED],
        ),
    ],
)
def test_rules(rule, words):
    ends = [(-2, -1), (-2, 1), (1, 14), (-2, 16), (14, 16), (-2, 14)]
    found = [rules.verdict(rule, Interval((low + high) / 2, low, high)) for low, high in ends]
    assert found == words


def test_a_part_that_fails_decides_before_one_that_waits():
    assert rules.verdict_of_all([REPRODUCED, UNDECIDED, REFUTED]) == REFUTED
    assert rules.verdict_of_all([REPRODUCED, UNDECIDED]) == UNDECIDED
    assert rules.verdict_of_all([REPRODUCED, NEARLY]) == NEARLY
    assert rules.verdict_of_all([NEARLY, UNDECIDED]) == UNDECIDED
    assert rules.verdict_of_all([REPRODUCED, REPRODUCED]) == REPRODUCED


def test_the_main_job_ends_with_the_number_of_slopes():
    record = copy.deepcopy(RECORDS["figure2_digits"])
    assert figure2_digits.conclusion(record)[-1] == "6 of 6 predicted slopes reproduced."
    record["networks"]["batch norm"]["optimizers"]["SGDW"] = _landscape(1)
    assert figure2_digits.conclusion(record)[-1] == "5 of 6 predicted slopes reproduced."


def test_what_the_main_job_prints_fits_80_columns():
    record = verdicts.recorded("figure2_digits")
    tables = [plain(landscape_rows(*item)) for item in record["networks"].items()]
    text = "\n".join([*tables, wrapped(figure2_digits.conclusion(record))])
    assert 70 < max(map(len, text.splitlines())) <= 80
