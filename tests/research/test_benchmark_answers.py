"""The answers to the plan's questions: known landscapes, known verdicts."""

import numpy as np
import pytest

from benchmarks.figures import figure2_mnist1d
from benchmarks.lib import answers, readings
from benchmarks.lib.rules import Interval, about, verdict
from optax_decoupled.sweep import Landscape

SEEDS = 6
X, Y = np.arange(-3.0, 4), np.arange(-14.0, 3)


def _record(slope=0.0, *, best=5.0, rates=1.0, peak=1.0, spread=0.0, decays=Y):
    """A bowl whose best decay moves by `slope`, of `best` error, as wide as `rates` says."""
    rng = np.random.default_rng(0)
    error = best + (X[:, None] / rates) ** 2 + 0.3 * (decays + 6 - slope * X[:, None]) ** 2
    error = error[..., None] + rng.normal(0, 0.05 + spread, (*error.shape, SEEDS))
    axes = peak * 2.0**X, 2.0**decays, np.arange(SEEDS)
    return readings.summary(Landscape(*axes, {"error": error}))


def _row(l2, decoupled):
    return {"SGD+L2": l2, "SGDW": decoupled, "Adam+L2": l2, "AdamW": decoupled}


def _verdicts(row, beginning):
    found = answers.sentences("here", row, {"SGD+L2": -1, "SGDW": 0})
    return [x for x in found if x.startswith(beginning)]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((-0.4, 0.49), "supported"),
        ((-0.6, 0.2), "undecided"),
        ((0.51, 0.9), "contradicted"),
        ((0.1, 0.6), "undecided"),
        ((-3.0, 3.0), "undecided"),
        ((-0.9, -0.51), "contradicted"),
        (None, "undecided"),
    ],
)
def test_a_slope_is_supported_within_half_of_the_claim(ends, expected):
    interval = None if ends is None else Interval(np.mean(ends), *ends)
    assert verdict(about(0), interval) == expected
    if interval is not None:
        moved = Interval(*(x + 1 for x in interval))
        assert verdict(about(1), moved) == expected


def test_the_papers_picture_is_supported():
    row = _row(_record(-1.0, rates=1.5), _record(0.0, rates=4))
    (slopes,) = _verdicts(row, "Slope")
    assert slopes.count("supported") == 2
    for what in ("Learning rates", "Share of cells"):
        assert all(x.endswith("supported.") for x in _verdicts(row, what))
    first, *_ = _verdicts(row, "Cost of tuning the decay")
    assert "λ costs less than λ′: supported" in first
    assert "λ's cost is small: supported" in first


def test_its_reverse_is_contradicted():
    row = _row(_record(0.0, rates=4), _record(1.0, rates=1.5))
    (slopes,) = _verdicts(row, "Slope")
    assert slopes.count("contradicted") == 2
    assert all(x.endswith("contradicted.") for x in _verdicts(row, "Learning rates"))
    first, *_ = _verdicts(row, "Cost of tuning the decay")
    assert "λ costs less than λ′: contradicted; less than λ/α: contradicted" in first


def test_a_best_cell_on_the_edge_leaves_its_comparisons_undecided():
    cut = _record(-1.0, rates=1.5, decays=Y[Y <= -6])
    assert answers.best_on_edge(cut)
    assert not answers.best_on_edge(_record())
    row = _row(cut, _record(0.0, rates=4))
    assert all(x.endswith("undecided.") for x in _verdicts(row, "Learning rates"))


@pytest.mark.parametrize(
    ("best", "expected"), [(5.0, "contradicted"), (4.5, "contradicted"), (4.0, "supported")]
)
def test_an_improvement_must_be_fifteen_percent(best, expected):
    row = _row(_record(peak=0.001), _record(best=best, peak=0.001))
    found = _verdicts(row, "AdamW's improvement")
    assert [x.endswith(f"or more: {expected}.") for x in found] == [True, True]
    assert "at the rate 0.001" in found[1]


def test_a_sheared_landscape_is_recognized_by_its_momentum():
    shift = np.log2(1 / (1 - answers.MOMENTUM))
    decoupled, decays = _record(0.0, rates=4), Y - shift
    sheared = _record(-1.0, rates=4, decays=decays)
    moved = {"weight_decays": (np.array(sheared["weight_decays"])).tolist()}
    error = 5 + (X[:, None] / 4) ** 2 + 0.3 * (decays + shift + 6 + X[:, None]) ** 2
    moved["error_percent"] = np.repeat(error[..., None], SEEDS, 2).tolist()
    (text,) = _verdicts(_row(sheared | moved, decoupled), "SGD+L2's landscape")
    assert text.endswith("points: supported.")
    (text,) = _verdicts(_row(decoupled, decoupled), "SGD+L2's landscape")
    assert not text.endswith("points: supported.")


def test_the_positive_control_compares_with_no_decay():
    row = {"AdamW": _record(), "Adam": _record(best=7.0)}
    assert _verdicts(row, "Gain of AdamW")[0].endswith("above 0: supported.")
    assert "2.0" in _verdicts(row, "Gain of AdamW")[0]
    row["Adam"] = _record(best=4.0)
    assert _verdicts(row, "Gain of AdamW")[0].endswith("above 0: contradicted.")


def test_optimizers_that_gain_nothing_leave_their_comparisons_undecided():
    row = _row(_record(-1.0, rates=1.5), _record(0.0, rates=4))
    assert _verdicts(row, "Share of cells")[1].endswith("supported.")
    for control, expected in ((4.0, "undecided."), (9.0, "supported.")):
        with_control = row | {"Adam": _record(best=control)}
        assert _verdicts(with_control, "Share of cells")[1].endswith(expected)
        first = _verdicts(with_control, "Cost of tuning the decay")[1]
        assert first.endswith(f"λ's cost is small: {expected}")


def test_few_seeds_answer_nothing():
    few = _record() | {"seeds": [0, 1, 2]}
    assert answers.sentences("here", {"AdamW": few}, {}) == ["Tuning here: too few seeds to tell."]


def test_the_figure_concludes_for_every_part():
    row = _row(_record(-1.0), _record(0.0)) | {"SGD": _record(best=9), "Adam": _record(best=9)}
    parts = {name: {"optimizers": row} for name in ("batch norm", figure2_mnist1d.PLAIN)}
    found = figure2_mnist1d.conclusion({"networks": parts})
    slopes = [x for x in found if x.startswith("Slope")]
    assert "SGDW" in slopes[0]
    assert [x.count("claimed 1") for x in slopes] == [0, 2]
    assert sum("no decay" in x for x in found) == 8
