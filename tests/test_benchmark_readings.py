"""What the figures' scripts conclude from numbers: known numbers, known sentences."""

import figure1
import figure3
import figure4
import normalized_decay
import numpy as np
import pytest
import readings
from scipy import stats
from sizes import SIZES, Run

from optax_decoupled.sweep import Landscape

SEEDS = 5


def _optimizer(slope=None, low=None, high=None, seeds=SEEDS, errors=None):
    found = None if slope is None else {"slope": slope, "low": low, "high": high}
    return {"valley_slope": found, "seeds": list(range(seeds)), "error_percent": errors}


@pytest.mark.parametrize(
    ("optimizer", "verdict"),
    [
        (_optimizer(0.1, -0.3, 0.3), "reproduced for AdamW"),
        (_optimizer(-0.34, -0.8, -0.2), "not reproduced for AdamW"),
        (_optimizer(1.0, 0.9, 1.1), "not reproduced for AdamW"),
        (_optimizer(0.5, -0.2, 1.2), "cannot be told for AdamW"),
        (_optimizer(0.0, -0.1, 0.1, seeds=2), "cannot be told for AdamW"),
        (_optimizer(), "cannot be told for AdamW"),
    ],
)
def test_a_slope_is_reproduced_if_its_interval_says_so(optimizer, verdict):
    text = readings.separability("The claim", {"AdamW": optimizer}, {"AdamW": 0})
    assert f": {verdict}" in text


def test_few_seeds_have_no_interval():
    errors = [[[7.0, 8.0], [6.0, 7.0]]]
    row = dict.fromkeys(("Adam+L2", "AdamW"), _optimizer(seeds=2, errors=errors))
    assert "2 seeds cannot say" in readings.improvement("here", row)
    assert readings.slope_text(_optimizer(0.12, 0.1, 0.2)) == "+0.12 [+0.10, +0.20]"
    assert readings.slope_text(_optimizer(0.12, 0.1, 0.2, seeds=2)) == "+0.12, 2 seeds"
    assert readings.slope_text(_optimizer()) == "not located"


@pytest.mark.parametrize(
    ("l2", "decoupled", "verdict"),
    [
        ((-1.0, -1.2, -0.8), (0.1, -0.3, 0.3), "more separable"),
        ((0.1, -0.3, 0.3), (1.0, 0.8, 1.2), "less separable"),
        ((-1.0, -2.0, 0.1), (0.1, -0.3, 0.3), "cannot be told"),
    ],
)
def test_the_slope_closer_to_zero_is_more_separable(l2, decoupled, verdict):
    row = {"Adam+L2": _optimizer(*l2), "AdamW": _optimizer(*decoupled)}
    assert verdict in readings.more_separable("here", row)


def test_differences_have_the_interval_of_students_t():
    first, second = np.random.default_rng(0).normal(7, 1, (2, SEEDS))
    found = readings.paired(first, second)
    expected = stats.ttest_rel(first, second)
    np.testing.assert_allclose([found.low, found.high], expected.confidence_interval(0.95))
    assert found.may_be_chance == (expected.pvalue > 0.05)
    assert not readings.paired(first + 10, second).may_be_chance


def test_a_seeds_cell_is_chosen_by_the_other_seeds():
    # Each cell is perfect for one seed and bad for the others: choosing by itself finds 0.
    errors = [(10 - 10 * np.eye(3)).tolist()]
    assert readings.chosen_by_others(_optimizer(errors=errors)).tolist() == [10, 10, 10]
    clear = [[[1.0, 2.0, 3.0], [4.0, None, 6.0]], [[7.0, 8.0, 9.0], [5.0, 5.0, 5.0]]]
    assert readings.chosen_by_others(_optimizer(errors=clear)).tolist() == [1, 2, 3]


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
        assert abs(x.difference - shift) < 0.01


def test_the_common_cell_is_best_for_both_together():
    def landscape(errors):
        errors = np.array(errors, float)[..., None]
        return Landscape(
            np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.arange(1), {"error": errors}
        )

    plain, restarted = landscape([[1, 5], [3, 4]]), landscape([[9, 5], [3, 4]])
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
