"""The verdict table: records whose verdict is certain, and what turns each of them."""

import copy
import re

import numpy as np
import pytest

from benchmarks.figures import figure2_digits, figure4, verdicts
from benchmarks.lib import docs_parts, questions, readings, rules
from benchmarks.lib.rules import CONTRADICTED, SUPPORTED, UNDECIDED, Interval
from benchmarks.lib.tables import landscape_rows, plain, wrapped
from optax_decoupled.sweep import Landscape

SEEDS = 8
JITTER = np.tile([-0.01, 0.01], SEEDS // 2)  # of the errors, so that intervals have a length
CLAIMS = {claim.claim: claim for claim in verdicts.CLAIMS}
L2, W = "Adam+L2", "AdamW"


def _landscape(slope, lowest=10.0, sign=1, narrow=1.0, centre=-6):
    """Whose best decay moves so as the rate doubles, with this lowest error."""
    rates, decays = np.arange(-3.0, 4), np.arange(-14.0, 3)
    bowl = 0.9 * (decays - centre - slope * rates[:, None]) ** 2
    across = 0.3 * (narrow * rates[:, None]) ** 2
    errors = lowest + (bowl + across)[..., None] + sign * JITTER
    axes = 0.001 * 2.0**rates, 2.0**decays, np.arange(SEEDS)
    with pytest.MonkeyPatch.context() as patch:  # 0.4 s for an interval that no verdict reads
        patch.setattr(readings, "slope", lambda x: None)
        return readings.summary(Landscape(*axes, {"error": errors}))


def _over_steps(slope):
    x = _landscape(slope)
    return x | {"steps": x["learning_rates"], "slope_over_steps": [slope] * 3}


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
    normalized = {
        name: _landscape(x, narrow=1 if name.endswith("W") else 3) for name, x in slopes.items()
    }
    normalized[L2] = _landscape(-1, lowest=12.5, sign=-1, narrow=3)
    normalized[L2]["error_percent"][3][0] = (12.501 + JITTER).tolist()  # the least decay: no worse
    opposite = {name: _landscape(slope + 1) for name, slope in slopes.items()}
    lowest = {"fixed": 12.0, "step drops": 11.0, "cosine": 10.0}
    ends = {"SGDW": (9.0, 8.0, 6.0), "SGDWR": (6.5, 6.2, 6.0)}
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
            "cycle_ends": [20, 60, 300],
            "optimizers": {
                name.replace("SGD", method): _at_the_ends(*errors)
                for method in ("SGD", "Adam")
                for name, errors in ends.items()
            },
        },
        "normalized_decay": {"optimizers": {x: _over_steps(-0.5) for x in ("SGDW", W)}},
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
OVER_STEPS = ("normalized_decay", "optimizers", W)
ROW = RECORDS["figure2_digits"]["networks"]["batch norm"]["optimizers"]
SWAPPED = {"SGD+L2": ROW["SGDW"], "SGDW": ROW["SGD+L2"], L2: ROW[W], W: ROW[L2]}
EQUAL = dict.fromkeys(ROW, ROW["SGDW"])
UNSURE = _landscape(0)  # of seeds whose slopes are far apart
UNSURE["error_percent"] = np.concatenate(
    [np.array(_landscape(x)["error_percent"])[..., : SEEDS // 2] for x in (-1, 0.4)], -1
).tolist()

# What stands at a place of the records instead, and what this makes of a claim.
RATES, CELLS, COST, RATIO, DEFAULT, BEST, SLOPES, SEPARABLE, OPPOSITE, PART = list(CLAIMS)[:10]
NO_GAIN, COSINE, EQUAL_LOSS, EARLY, NORMALIZED = list(CLAIMS)[10:]
CHANGES = [
    *((claim, CONTRADICTED, DIGITS, SWAPPED) for claim in (RATES, CELLS, COST, SEPARABLE)),
    *((claim, UNDECIDED, DIGITS, EQUAL) for claim in (RATES, CELLS, COST, SEPARABLE)),
    (RATES, UNDECIDED, (*DIGITS, W), _landscape(0, centre=2)),  # its best is on the grid's edge
    (RATIO, CONTRADICTED, (*DIGITS, "SGDW"), _landscape(1)),
    (RATIO, UNDECIDED, (*DIGITS, W), _landscape(0, centre=2)),
    (DEFAULT, CONTRADICTED, (*DIGITS, W), _landscape(0, lowest=11.9)),
    (DEFAULT, CONTRADICTED, (*DIGITS, W), _landscape(0, lowest=14.0)),
    (DEFAULT, UNDECIDED, (*DIGITS, W), _landscape(0, centre=2)),
    (BEST, CONTRADICTED, (*DIGITS, W), _landscape(0, lowest=11.9)),
    (BEST, UNDECIDED, (*DIGITS, L2), _landscape(-1, lowest=12.5, centre=-14)),
    (SLOPES, CONTRADICTED, (*DIGITS, "SGD+L2"), _landscape(0)),
    (SLOPES, CONTRADICTED, (*DIGITS, "SGDW"), _landscape(-1)),
    (SLOPES, CONTRADICTED, (*DIGITS, W), _landscape(-0.6)),
    (SLOPES, UNDECIDED, (*DIGITS, W), UNSURE),
    (SLOPES, UNDECIDED, (*DIGITS, W, "seeds"), [0, 1, 2]),
    (OPPOSITE, CONTRADICTED, (*WITHOUT, "SGDW"), _landscape(0)),
    (OPPOSITE, UNDECIDED, (*WITHOUT, "SGDW"), _landscape(1, centre=-30)),
    (PART, CONTRADICTED, (*CIFAR10, W), _landscape(-0.6)),
    (PART, CONTRADICTED, (*CIFAR10, W), _landscape(0, lowest=12.9)),
    (NO_GAIN, CONTRADICTED, (*DIGITS, L2), _landscape(-1, lowest=12.5)),
    (COSINE, CONTRADICTED, FIXED, _landscape(0, lowest=9.0, sign=-1)),
    (COSINE, UNDECIDED, FIXED, _landscape(0, lowest=10.0, sign=-1)),
    (EQUAL_LOSS, CONTRADICTED, LONG, _long(7.0, 8.0)),
    (EQUAL_LOSS, UNDECIDED, LONG, _long(7.0, 7.0)),
    (EARLY, CONTRADICTED, RESTARTS, _at_the_ends(10.0, 8.0, 7.0)),
    (EARLY, UNDECIDED, RESTARTS, _at_the_ends(8.0, 7.0, 6.5)),
    (NORMALIZED, CONTRADICTED, OVER_STEPS, _over_steps(0.0)),
    (NORMALIZED, UNDECIDED, (*OVER_STEPS, "slope_over_steps"), None),
]


def _words(claim, records):
    source = CLAIMS[claim].sources[0]
    parts = CLAIMS[claim].answer(records[source.record], *source.groups)
    return {part.word for part in parts}


@pytest.mark.parametrize("claim", CLAIMS)
def test_where_all_is_as_in_the_paper_all_is_supported(claim):
    assert _words(claim, RECORDS) == {SUPPORTED}


@pytest.mark.parametrize(("claim", "word", "place", "value"), CHANGES)
def test_a_change_turns_the_verdict(claim, word, place, value):
    records = copy.deepcopy(RECORDS)
    inner = records
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert word in _words(claim, records)


def test_every_claim_can_fail():
    assert {claim for claim, word, *_ in CHANGES if word == CONTRADICTED} == set(CLAIMS)


def test_the_readmes_table_is_short_and_the_questions_lead():
    first = [claim for claim in verdicts.CLAIMS if claim.first]
    header, *body = verdicts.rows(RECORDS.get, first)
    assert len(body) <= 10
    assert all(len(row) == len(header) and all(row) for row in body)
    assert not any("|" in cell for row in body for cell in row)
    assert body[0][2].startswith("SGD+L2 1.0, SGDW 3.0 of 7, difference +2.0 [+2.0, +2.0]")
    assert body[0][-1] == "digits, batch norm, 1,800 epochs, 8 seeds"
    assert "SGD+L2 -1.00 [-1.00, -1.00], 0.00 from the claim" in body[6][2]


def test_a_cell_of_the_readmes_table_is_read_once_and_no_verdict_is_left_out():
    """With the committed results: at most 30 words, and every verdict word of the whole table."""
    first = [claim for claim in verdicts.CLAIMS if claim.first]
    whole, short = (
        verdicts.rows(verdicts.recorded, first),
        verdicts.short_rows(verdicts.recorded, first),
    )
    for long_row, row in zip(whole[1:], short[1:], strict=True):
        assert max(len(cell.split()) for cell in row) <= 30
        assert row[:2] == long_row[:2]
        words = re.compile(f"{SUPPORTED}|{CONTRADICTED}|{UNDECIDED}")
        assert set(words.findall(row[2])) == set(words.findall(long_row[3]))
        for regime in long_row[4].split("<br>"):
            data, where, _, seeds = regime.split(", ")
            assert f"{data}: " in row[2]
            assert where in row[3]
            assert seeds.removesuffix(" seeds") in row[3]
    numbers = re.compile(r"[+-]\d+\.\d+")
    assert set(numbers.findall(str(short))) <= set(numbers.findall(str(whole)))


def test_the_readmes_short_answers():
    found = [
        questions.Found("a", "a 1", "x", value=1.0),
        questions.Found("b", "b 2, more", "y", "b 2", -0.5),
        questions.Found("c", "c 3", "x", value=0.25),
    ]
    assert questions.grouped(found) == "**x** a 1, c 3; **y** b 2"
    assert questions.counted(found) == "**2 of 3 x, 1 of 3 y**, -0.50 to +1.00"


def test_mnist1d_has_a_line_of_its_own_once_it_is_there():
    groups = RECORDS["figure2_digits"]["networks"]
    part = {"networks": {"batch norm": groups["batch norm"]}, "data": "MNIST-1D"}
    records = RECORDS | {"figure2_mnist1d": RECORDS["figure2_digits"] | part}
    by_claim = {row[0]: row for row in verdicts.rows(records.get)[1:]}
    one, two = by_claim[COST][-1].split("<br>")
    assert (one, two) == (
        "digits, batch norm, 1,800 epochs, 8 seeds",
        "MNIST-1D, batch norm, 1,800 epochs, 8 seeds",
    )
    assert by_claim[COST][3] == "digits: supported<br>MNIST-1D: supported"
    assert "<br>" not in by_claim[OPPOSITE][-1]  # that part is not there
    sentences = verdicts.sentences(verdicts.CLAIMS, records.get)
    assert len(sentences) == len(CLAIMS)
    assert sentences[0].count("supported: SGD+L2") == 2
    assert "<br>" not in verdicts.rows(RECORDS.get)[3][-1]


def test_the_words_say_which_part_they_are_of():
    found = [questions.Found(x, x, word) for x, word in zip("abc", "xyx", strict=True)]
    assert questions.judgement(found) == "2 of 3 x, 1 of 3 y"
    assert questions.judgement(found[::2]) == "x"
    assert questions.judgement(found[:2]) == "x: a; y: b"
    assert questions.numbers(found) == "a (x); b (y); c (x)"
    assert questions.numbers(found[::2]) == "a; c"


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.0, -0.49, 0.49), SUPPORTED),
        (Interval(0.0, -0.9, 0.9), UNDECIDED),
        (Interval(0.2, 0.1, 0.51), UNDECIDED),
        (Interval(0.7, 0.51, 0.9), CONTRADICTED),
        (Interval(-0.7, -0.9, -0.51), CONTRADICTED),
        (Interval(np.nan, np.nan, np.nan), UNDECIDED),
        (None, UNDECIDED),
    ],
)
def test_a_slope_is_near_or_far_or_undecided(interval, verdict):
    assert rules.verdict(rules.about(0), interval) == verdict
    if interval is not None:
        moved = Interval(*(x - 1 for x in interval))
        assert rules.verdict(rules.about(-1), moved) == verdict


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (rules.MORE, [CONTRADICTED, UNDECIDED, SUPPORTED, UNDECIDED, SUPPORTED, UNDECIDED]),
        (
            rules.AT_LEAST_15,
            [CONTRADICTED, CONTRADICTED, CONTRADICTED, UNDECIDED, SUPPORTED, CONTRADICTED],
        ),
        (rules.NOTHING, [SUPPORTED, SUPPORTED, CONTRADICTED, UNDECIDED, CONTRADICTED, SUPPORTED]),
        (
            rules.BELOW_MINUS_QUARTER,
            [SUPPORTED, UNDECIDED, CONTRADICTED, UNDECIDED, CONTRADICTED, UNDECIDED],
        ),
    ],
)
def test_rules(rule, words):
    ends = [(-2, -1), (-2, 1), (1, 14), (-2, 16), (14, 16), (-2, 14)]
    found = [rules.verdict(rule, Interval((low + high) / 2, low, high)) for low, high in ends]
    assert found == words


def test_a_difference_of_nothing_supports_nothing():
    assert rules.verdict(rules.MORE, Interval(0.0, 0.0, 0.0)) == UNDECIDED


def test_restarts_are_as_many_times_as_early_as_the_cycles_ends_allow():
    """Within 10 % of 6 % at 20 epochs, where the run without restarts takes all 300."""
    record = copy.deepcopy(RECORDS["figure4"])
    assert figure4.times_as_early(record, "SGDW") == (15, 15, 15)
    record["optimizers"]["SGDWR"] = _at_the_ends(6.7, 6.5, 6.0)
    assert figure4.times_as_early(record, "SGDW") == (5, 5, 5)


def test_the_improvement_at_half_of_the_default_rate_is_told_beside_it():
    (found,) = questions.improvement_at_default(ROW)
    assert found.text.startswith("lower by 20.")
    assert "at half that rate by +3" in found.text  # (12.5 + 2.7 - 10.3) / 15.2
    few = {name: x for name, x in ROW.items() if name in (L2, W)}
    assert [x.name for x in questions.lower_at_rates(few)][3] == "at the rate 0.001 by"


def test_the_costs_have_a_column_for_each_regime(monkeypatch):
    """The language model has one optimizer; layer norm has no results on MNIST-1D yet."""
    text = docs_parts.tuning_costs()
    header, _, *rows = text.split("\n\n")[0].splitlines()
    assert header.startswith("| with normalization, decay first | digits, batch norm | MNIST-1D, ")
    plain = text.split("\n\n")[2].splitlines()[0]
    assert plain.startswith("| without normalization | digits, decay first | digits, rate first |")
    assert all(" †" in cell for cell in text.split("\n\n")[2].splitlines()[2].split("|")[4:6])
    names = ("λ kept", "λ/α kept", "λ′ kept")
    assert [row.split(" | ")[0].split(", ")[1] for row in rows] == [*names, *names]
    assert rows[0].endswith("| - |")
    assert not rows[3].endswith("| - |")
    load = docs_parts._load
    other = {"networks": {"layer norm": {"optimizers": ROW}}}
    is_other = lambda name: name == "figure2_mnist1d"
    monkeypatch.setattr(docs_parts, "_load", lambda name: other if is_other(name) else load(name))
    assert "| MNIST-1D, layer norm |" in docs_parts.tuning_costs().splitlines()[0]


def _ending(row, seeds=SEEDS):
    networks = {"batch norm": {"optimizers": row}}
    return figure2_digits.ending({"networks": networks, "budget": {"seeds": seeds}})


def test_the_main_job_ends_with_the_cost_of_each_optimizer_and_what_it_decides():
    text = _ending(ROW)
    for name in ("SGDW, λ kept", "SGDW, λ/α kept", "SGD+L2, λ′ kept", "AdamW, λ kept"):
        assert sum(line.startswith(name) for line in text.splitlines()) == 1
    assert "undecided" not in text
    equal = _ending(EQUAL)
    assert "undecided at 8 seeds" in " ".join(equal.split())
    assert "undecided at 2 seeds" in _ending(ROW, seeds=2)


def test_what_the_main_job_prints_fits_80_columns():
    record = verdicts.recorded("figure2_digits")
    assert record is not None
    tables = [plain(landscape_rows(*item)) for item in record["networks"].items()]
    sentences = wrapped(figure2_digits.conclusion(record))
    text = "\n".join([*tables, sentences, figure2_digits.ending(record)])
    assert 70 < max(map(len, text.splitlines())) <= 80
