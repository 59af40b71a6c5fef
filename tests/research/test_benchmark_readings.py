"""What the figures' scripts conclude from numbers: known numbers, known sentences."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.figures import figure1, figure3, figure4, normalized_decay
from benchmarks.lib import readings
from benchmarks.lib.sizes import SIZES, Run
from optax_decoupled.sweep import Landscape

SEEDS = 5


def _optimizer(slope=None, low=None, high=None, seeds=SEEDS, errors=None):
    found = None if slope is None else {"slope": slope, "low": low, "high": high}
    return {"valley_slope": found, "seeds": list(range(seeds)), "error_percent": errors}


def _valley(slope):
    """The record of a landscape whose best decay moves so as the rate doubles, for each seed."""
    rates, decays = np.arange(-3.0, 4), np.arange(-14.0, 3)
    slopes = np.broadcast_to(slope, SEEDS)
    errors = 5 + (decays[:, None] + 6 - slopes * rates[:, None, None]) ** 2
    return readings.summary(Landscape(2.0**rates, 2.0**decays, np.arange(SEEDS), {"error": errors}))


@pytest.mark.parametrize(
    ("slope", "spread", "verdict"),
    [
        (0.1, 0.1, "(0.09 away): supported"),
        (-0.5, 0.5, "undecided"),
        (0.7, 0.1, "(0.70 away): contradicted"),
        (-1.0, 0.1, "(1.00 away): contradicted"),
    ],
)
def test_a_slope_is_supported_if_its_interval_says_so(slope, spread, verdict):
    slopes = slope + spread * np.linspace(-1, 1, SEEDS)
    text = readings.slopes_as_claimed("The claim", {"AdamW": _valley(slopes)}, {"AdamW": 0})
    assert text.endswith(f"{verdict}.")


@pytest.mark.parametrize("optimizer", [_optimizer(0.0, -0.1, 0.1, seeds=2), _optimizer(seeds=2)])
def test_a_slope_without_an_interval_is_undecided(optimizer):
    text = readings.slopes_as_claimed("The claim", {"AdamW": optimizer}, {"AdamW": 0})
    assert text.endswith("claimed 0: undecided.")


def test_few_seeds_have_no_interval():
    errors = [[[7.0, 8.0], [6.0, 7.0]]]
    row = dict.fromkeys(("Adam+L2", "AdamW"), _optimizer(seeds=2, errors=errors))
    assert "too few seeds to tell" in readings.improvement("here", row)
    assert readings.slope_text(_valley(0.5)) == "+0.50 [+0.50, +0.50]"
    assert readings.slope_text(_optimizer(0.12, 0.1, 0.2, seeds=2)) == "+0.12, 2 seeds"
    assert readings.slope_text(_optimizer(seeds=2)) == "not located"


@pytest.mark.parametrize(
    ("l2", "decoupled", "begins", "ends"),
    [
        (-1, 0, "AdamW makes rate and decay more separable", "closer to 0 by +1.00 [+1.00, +1.00]"),
        (0, 1, "AdamW makes rate and decay less separable", "closer to 0 by -1.00 [-1.00, -1.00]"),
        (-1, 1, "Whether AdamW makes", "the slopes differ by +2.00 [+2.00, +2.00]."),
    ],
)
def test_the_slope_closer_to_zero_is_more_separable(l2, decoupled, begins, ends):
    text = readings.more_separable("here", {"Adam+L2": _valley(l2), "AdamW": _valley(decoupled)})
    assert text.startswith(begins)
    assert ends in text


def test_a_valley_that_is_not_located_leaves_it_undecided():
    flat = _valley(0)
    shape = np.shape(flat["error_percent"])
    flat |= {"error_percent": np.full(shape, 5.0).tolist(), "valley_slope": None}
    text = readings.more_separable("here", {"Adam+L2": flat, "AdamW": _valley(0)})
    assert text.startswith("Whether AdamW makes")
    assert "closer" not in text


def test_differences_have_the_interval_of_students_t():
    first, second = np.random.default_rng(0).normal(7, 1, (2, SEEDS))
    found = readings.paired(first, second)
    expected = stats.ttest_rel(first, second)
    np.testing.assert_allclose(
        [found.points.low, found.points.high], expected.confidence_interval(0.9)
    )
    assert found.points.may_be_chance == (expected.pvalue > 0.1)
    assert not readings.paired(first + 10, second).points.may_be_chance
    np.testing.assert_allclose(np.divide(found.percent, found.points), 100 / first.mean())


def test_half_of_the_seeds_choose_and_the_other_half_compare():
    clear = [[[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, None]], [[7.0, 8.0, 0.0, 0.0], [9.0] * 4]]
    assert readings.chosen_by_half(_optimizer(errors=clear)).tolist() == [3, 4]
    tied = [[[1.0, 2.0, 3.0, 4.0], [2.0, 1.0 + 1e-9, 5.0, 6.0]]]
    assert readings.chosen_by_half(_optimizer(errors=tied)).tolist() == [4, 5]
    assert np.isnan(readings.chosen_by_half(_optimizer(errors=[[[None, 1.0]]]))).all()


def test_two_equal_optimizers_seldom_differ_and_two_others_mostly_do():
    """What chooses the best cell must not make the interval of the comparison too short."""
    rng = np.random.default_rng(0)

    def told(lower):
        first, second = rng.normal(7, 1, (2, 4, 5, 10)) - np.reshape([0, lower], (2, 1, 1, 1))
        errors = (_optimizer(errors=x.tolist()) for x in (first, second))
        return "chance" not in readings.difference(*errors)

    assert np.mean([told(0.0) for _ in range(100)]) <= 0.1
    assert np.mean([told(2.0) for _ in range(30)]) >= 0.9


def test_the_improvement_is_that_of_the_lowest_errors():
    row = {
        "Adam+L2": _optimizer(errors=[[[10.0, 10.0, 11.0, 9.0], [20.0] * 4]]),
        "AdamW": _optimizer(errors=[[[8.0, 8.0, 9.0, 7.0], [0.0, 0.0, 0.0, None]]]),
    }
    text = readings.improvement("here", row)
    assert "+20.0 %, in the paper 15 %" in text
    assert text.endswith("+2.00 [+2.00, +2.00] points.")
    least = {"Adam+L2": _optimizer(errors=[[[9.0] * 4, [7.0] * 4]])}
    assert "best: +2.00 [+2.00, +2.00] points;" in readings.no_gain_from_l2("here", least)


def test_steps_drop_after_30_60_and_80_percent():
    eta = figure1.schedules(300)["step drops"]
    steps = np.array([0, 89, 91, 179, 181, 239, 241, 299])
    np.testing.assert_allclose(
        [eta(t) for t in steps], [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5
    )


def test_errors_are_compared_at_equal_loss():
    losses, shift = np.logspace(-3, 0, 30), 0.2

    def errors(loss):
        return 5 + np.log10(loss) ** 2

    both = {
        "Adam+L2": {"train_loss": losses, "error_percent": errors(losses) + shift},
        "AdamW": {"train_loss": losses[::-2], "error_percent": errors(losses[::-2])},
    }
    optimizers = {
        name: {key: np.repeat(x[:, None], SEEDS, 1).tolist() for key, x in values.items()}
        | {"seeds": list(range(SEEDS))}
        for name, values in both.items()
    }
    found = figure3.at_equal_loss(optimizers)
    assert list(found) == list(figure3.HALVES)
    for x in found.values():
        assert abs(x.points.value - shift) < 0.01


def test_the_common_cell_is_best_for_both_together():
    def landscape(errors):
        errors = np.array(errors, float)
        return Landscape(
            np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.arange(2), {"error": errors}
        )

    plain = landscape([[[1, 1], [0, np.nan]], [[3, 3], [4, 4]]])
    restarted = landscape([[[9, 9], [0, 0]], [[3, 3], [4, 4]]])
    assert figure4._common_best(plain, restarted) == (1, 0)


def test_the_best_decay_over_steps_is_a_valley():
    size = SIZES["digits"]
    run = Run("normalized_decay", None, size, None, None, False)
    decays = 2.0 ** np.arange(-12, 1)
    row = {}
    for budget in normalized_decay.epochs(run):
        best = 0.3 / np.sqrt(budget * size.steps_per_epoch)
        errors = budget + np.log2(decays / best) ** 2
        row[str(budget)] = Landscape(
            np.array([0.1]),
            decays,
            np.arange(SEEDS),
            {"error": np.repeat(errors[None, :, None], SEEDS, 2)},
        )
    found = normalized_decay.valley(normalized_decay.stacked(run, row))
    assert found is not None
    assert abs(found.slope + 0.5) < 0.1
