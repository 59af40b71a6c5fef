"""Estimates about tuning, on landscapes whose answers are known."""

import numpy as np
import pytest
from scipy import stats

from optax_decoupled import sweep
from optax_decoupled.sweep._landscape import crossfit

SEEDS = 6
X, Y = np.arange(-3.0, 4), np.arange(-16.0, 7)  # log₂ of rates and decays
CENTRE = -5  # log₂ of the best decay at the best rate, which is 1


def landscape(error, x=X, y=Y):
    """Of errors [L, W] that all seeds have, or [L, W, S]."""
    error = np.asarray(error, float)
    error = error if error.ndim == 3 else np.repeat(error[..., None], SEEDS, 2)
    return sweep.Landscape(2.0**x, 2.0**y, np.arange(error.shape[-1]), {"error": error})


def bowl(slope, x=X, y=Y):
    """Its best decay moves by `slope` powers of two as the rate doubles."""
    return 5 + x[:, None] ** 2 + (y - CENTRE - slope * x[:, None]) ** 2


def steep(distance):
    """The cost from a start so many powers of two from the best rate, where the slope is ±1.

    The decay goes along; then x² + (x - distance)² is least at half the distance.
    """
    return (distance**2 + distance % 2) / 2


def at_start(cost):
    return np.array([x.value for x in cost.at_start])


def test_a_separable_bowl_costs_nothing_in_either_order():
    cost = sweep.tuning_cost(landscape(bowl(0)))
    for order, starts in ((cost.decay_first, 2**X), (cost.rate_first, 2**Y)):
        assert order.starts == tuple(starts)
        assert not at_start(order).any()
        assert order.mean.value == order.worst.value == 0
        assert order.worst.interval() == (0, 0)


@pytest.mark.parametrize("slope", [1, -1])
def test_a_sheared_bowl_costs_half_the_squared_distance(slope):
    cost = sweep.tuning_cost(landscape(bowl(slope)))
    np.testing.assert_allclose(at_start(cost.decay_first), steep(X), rtol=1e-12)
    assert cost.decay_first.worst.value == steep(3)
    assert np.isclose(cost.decay_first.mean.value, steep(X).mean())
    even = (Y - CENTRE) % 2 == 0  # else two rates tie
    halfway = ((Y - CENTRE) / 2).clip(-3, 3) ** 2
    np.testing.assert_allclose(at_start(cost.rate_first)[even], halfway[even], rtol=1e-12)
    assert cost.rate_first.worst.value == pytest.approx(9)


@pytest.mark.parametrize(("slope", "kept"), [(0, steep(X)), (1, 0 * X)])
def test_what_is_kept_decides_what_a_bowl_costs(slope, kept):
    """Where the best decay follows the rate, keeping the ratio costs nothing."""
    cost = sweep.tuning_cost(landscape(bowl(slope)), keep_ratio=True)
    np.testing.assert_allclose(at_start(cost.decay_first), kept, atol=1e-12)
    ratios = 2.0 ** np.arange(Y[0] - X[0], Y[-1] - X[-1] + 1)
    np.testing.assert_allclose(cost.rate_first.starts, ratios, rtol=1e-5)
    worst = {0: 9, 1: 0}[slope]
    assert cost.rate_first.worst.value == pytest.approx(worst)


def test_a_grid_of_other_steps_keeps_only_what_it_has():
    """Decays in steps of four share a ratio with every second rate."""
    y = Y[1::2]
    cost = sweep.tuning_cost(landscape(bowl(1, y=y), y=y), keep_ratio=True).decay_first
    assert cost.worst.value == 2  # from an odd rate the best one is not tried


def test_costs_are_in_units_of_the_metric():
    once, thrice = (sweep.tuning_cost(landscape(k * bowl(1))) for k in (1, 3))
    assert thrice.decay_first.mean.value == pytest.approx(3 * once.decay_first.mean.value)
    assert "worst 5 [5, 5] over 7 starts" in str(once)


def test_noise_alone_costs_nothing_and_has_no_advantage():
    """Seeds that choose and measure would find both: the lowest of many numbers is low."""
    rng = np.random.default_rng(0)
    x, y = np.arange(5), np.arange(8)
    flat = landscape(np.full((5, 8), 7.0), x, y)
    found, naive = [], []
    for _ in range(200):
        noisy = landscape(7 + rng.normal(size=(5, 8, SEEDS)), x, y)
        gain = sweep.advantage(noisy, flat)
        cost = sweep.tuning_cost(noisy)
        numbers = (cost.decay_first.mean, cost.rate_first.worst, gain.best, *gain.at_rate)
        found.append([number.value for number in numbers])
        naive.append(noisy.best().mean - 7)
    error = np.std(found, axis=0, ddof=1) / 200**0.5
    assert (abs(np.mean(found, axis=0)) < 4 * error).all()
    assert np.mean(naive) < -10 * error.max()


def test_the_basin_counts_cells_and_rates():
    found = sweep.basin(landscape(bowl(0)), tolerance=0.2)  # up to 6: the best and four beside it
    assert (found.cells.value, found.rates.value) == (5, 3)
    along = sweep.basin(landscape(bowl(1)), tolerance=0.2)
    assert (along.cells.value, along.rates.value) == (5, 3)
    assert sweep.basin(landscape(bowl(0)), tolerance=0).cells.value == 1


def test_a_cell_in_which_one_seed_diverged_is_nobodys_choice():
    error = np.repeat(bowl(0)[..., None], SEEDS, 2)
    best = 3, int(CENTRE - Y[0])
    error[best] = 1.0
    error[(*best, 2)] = np.nan
    holed = landscape(error)
    # The next best have 6; up to 7.2 there are the four of them and the four that have 7.
    assert sweep.basin(holed, tolerance=0.2).cells.value == 8
    advantage = sweep.advantage(holed, landscape(bowl(0)))
    assert advantage.best.value == 1
    assert [x.value for x in advantage.at_rate] == [0, 0, 0, 1, 0, 0, 0]
    assert np.isfinite(at_start(sweep.tuning_cost(holed).decay_first)).all()


def test_the_advantage_at_each_rate_is_that_of_the_tuned_decays():
    worse = landscape(bowl(1) + np.arange(7.0)[:, None])
    found = sweep.advantage(worse, landscape(bowl(0)))
    assert found.learning_rates == tuple(2.0**X)
    np.testing.assert_allclose([x.value for x in found.at_rate], np.arange(7), atol=1e-12)
    # 5 + x² + 3 + x is least, 8, at x = 0 and at -1.
    assert found.best.value == 3
    relative = sweep.advantage(worse, landscape(bowl(0)), relative=True)
    np.testing.assert_allclose(
        [x.value for x in relative.at_rate], np.arange(7) / (5 + X**2 + np.arange(7))
    )
    assert relative.best.value == 3 / 8


def test_luck_that_two_landscapes_share_cancels():
    luck = np.random.default_rng(0).normal(size=SEEDS)
    first, second = (landscape(bowl(0)[..., None] + gap + luck) for gap in (2, 0))
    assert sweep.advantage(first, second).best.value == pytest.approx(2)
    assert np.ptp(sweep.advantage(first, second).best.interval()) < 1e-9
    low, high = sweep.advantage(first, landscape(bowl(0))).best.interval()
    assert high - low > 0.5


def sheared(momentum, peak=1.0):
    """SGD's two landscapes if αλ′/(1 - m) is what counts, and linear in log₂ of it."""
    x = X + np.log2(peak)
    valley = lambda log_decay: 5 + X[:, None] ** 2 + abs(log_decay - CENTRE)
    l2 = valley(Y + x[:, None] - np.log2(1 - momentum))
    return landscape(l2, x), landscape(valley(np.broadcast_to(Y, l2.shape)), x)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_l2_is_decay_sheared_by_the_rate_and_the_momentum(momentum):
    coupled, decoupled = sheared(momentum)
    found = sweep.shear(coupled, decoupled, momentum=momentum, near=10)
    assert found.distance.value < 1e-9
    assert found.correlation.value == pytest.approx(1)
    assert found.covered == sum(23 - abs(x + (momentum > 0)) for x in X)
    other = sweep.shear(coupled, decoupled, momentum=0.5 - momentum, near=10)
    assert other.distance.value > 0.5
    # Without the shear they are not alike.
    assert sweep.shear(decoupled, decoupled, near=10).correlation.value < 0.95


def test_between_cells_l2_is_interpolated():
    coupled, decoupled = sheared(0.9, peak=0.07)
    found = sweep.shear(coupled, decoupled, momentum=0.9, near=1.5)
    assert found.distance.value < 0.15  # a kink of 1 is missed by at most half a cell
    assert found.correlation.value > 0.999


def test_differences_have_a_sign_and_distances_none():
    coupled, decoupled = sheared(0.0)
    tilt = np.where(Y < CENTRE, 1.0, -1.0)
    tilted = landscape(decoupled.mean() + tilt)
    found = sweep.shear(coupled, tilted, near=10)
    assert found.distance.value == pytest.approx(1)
    assert abs(found.difference.value) < 0.5
    flat = landscape(decoupled.mean() - 1)
    assert sweep.shear(coupled, flat).difference.value == pytest.approx(1)


def test_correlation_is_that_below_the_noise():
    rng = np.random.default_rng(0)
    coupled, decoupled = sheared(0.0)
    noisy = [
        landscape(x.metrics["error"] + 4 * rng.normal(size=(*x.mean().shape, SEEDS)), X)
        for x in (coupled, decoupled)
    ]
    found = sweep.shear(*noisy).correlation
    plain = np.corrcoef(noisy[1].mean().ravel(), decoupled.mean().ravel())[0, 1] ** 2
    assert found.value > 0.97
    assert plain < 0.95


def test_rates_that_only_one_has_are_left_out():
    coupled, decoupled = sheared(0.0)
    part = sweep.Landscape(
        coupled.learning_rates[1:3],
        coupled.weight_decays,
        coupled.seeds,
        {"error": coupled.metrics["error"][1:3]},
    )
    assert sweep.shear(part, decoupled).covered == (23 - 2) + (23 - 1)
    away = landscape(decoupled.mean(), X + 0.3)
    with pytest.raises(ValueError, match="0 cells of the decoupled landscape lie on"):
        sweep.shear(coupled, away)


def test_of_an_average_the_interval_is_students():
    x, y = np.random.default_rng(0).normal(5, 1, (2, 12))

    def mean(choose, measure):
        return measure[:, :1]

    fitted = crossfit.cross_fitted(x[None], np.arange(12), mean)[0]
    assert fitted.value == pytest.approx(x.mean(), rel=0.05)
    exact = [sweep.Estimate(z.mean(), (z.sum() - z) / 11, np.arange(12)) for z in (x, y)]
    for level in (0.9, 0.95):
        expected = stats.ttest_1samp(x, 0).confidence_interval(level)
        np.testing.assert_allclose(exact[0].interval(level), expected, rtol=1e-5)
        paired = stats.ttest_rel(x, y).confidence_interval(level)
        np.testing.assert_allclose((exact[0] - exact[1]).interval(level), paired, rtol=1e-4)
    ratio = exact[0] / exact[1]
    assert ratio.value == x.mean() / y.mean()
    assert ratio.interval()[0] < ratio.value < ratio.interval()[1]


@pytest.mark.parametrize("count", [4, 5, 10, 48])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_of_a_mean_is_students(count, level):
    x = np.random.default_rng(0).normal(size=count)
    mean = sweep.Estimate(x.mean(), (x.sum() - x) / (count - 1), np.arange(count))
    expected = stats.ttest_1samp(x, 0).confidence_interval(level)
    np.testing.assert_allclose(mean.interval(level), expected, rtol=1e-10)


@pytest.mark.parametrize("count", [4, 5, 48])
def test_no_seed_chooses_and_measures(count):
    halves = crossfit.random_halves(count)
    assert set(halves.sum(1)) == {count // 2, count - count // 2}
    assert np.array_equal(halves.mean(0), np.full(count, 0.5))
    assert len(np.unique(halves, axis=0)) > min(5, len(halves) - 5)


def test_numbers_from_other_seeds_are_not_paired():
    first = sweep.basin(landscape(bowl(0)))
    error = np.repeat(bowl(0)[..., None], 4, 2)
    other = sweep.basin(landscape(error))
    with pytest.raises(ValueError, match=r"seeds \[0, 1, 2, 3, 4, 5\] and \[0, 1, 2, 3\]; they"):
        _ = first.cells - other.cells
    with pytest.raises(ValueError, match=r"level=95 must be between 0 and 1"):
        first.cells.interval(95)


REFUSALS = {
    "has 3 seeds; cross-fitting needs 4": lambda x: sweep.basin(
        landscape(np.repeat(bowl(0)[..., None], 3, 2))
    ),
    "metric='loss' is not in this landscape": lambda x: sweep.tuning_cost(x, "loss"),
    "tolerance=-0.1 must be 0 or more": lambda x: sweep.basin(x, tolerance=-0.1),
    "tolerance=nan must be 0 or more": lambda x: sweep.basin(x, tolerance=np.nan),
    "momentum=1 must be at least 0 and less than 1": lambda x: sweep.shear(x, x, momentum=1),
    "near=0.5 must be at least 1": lambda x: sweep.shear(x, x, near=0.5),
    "In every cell a seed diverged": lambda x: sweep.tuning_cost(landscape(x.mean() * np.nan)),
    r"they must have the same, because they are compared": lambda x: sweep.advantage(
        x, landscape(bowl(0), X + 0.1)
    ),
    r"have the seeds \[0, 1, 2, 3, 4, 5\] and \[0, 1, 2, 3\]; they": lambda x: sweep.advantage(
        x, landscape(np.repeat(bowl(0)[..., None], 4, 2))
    ),
    r"have the seeds \[0, 1, 2, 3\] and \[0, 1, 2, 3, 4, 5\]; they": lambda x: sweep.shear(
        landscape(np.repeat(bowl(0)[..., None], 4, 2)), x
    ),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals(message):
    with pytest.raises(ValueError, match=message):
        REFUSALS[message](landscape(bowl(0)))
