"""valley_slope is exact without noise, within its interval with noise, and explains refusals."""

import numpy as np
import pytest

from optax_decoupled import sweep


def _synthetic(slope, *, noise=0.0, seeds=5, shift=0.0, one_sided=False, decays=14):
    """A parabola in log2 of the decay, whose minimum moves by `slope` per doubling."""
    rates, log_decays = 2.0 ** np.arange(-3, 4), np.arange(-decays, 0.0)
    centre = -decays / 2 + shift + slope * np.log2(rates)
    distance = log_decays - centre[:, None]
    error = 6 + 0.1 * distance**2
    if one_sided:  # it rises slowly below the best decay, and fast above it
        error = 6 + np.where(distance < 0, np.minimum(-0.1 * distance, 0.3), 3.0**distance - 1)
    rng = np.random.default_rng(1)
    per_seed = rng.normal(size=seeds)  # the same offset in all cells of a seed
    values = error[..., None] + per_seed + noise * rng.normal(size=(*error.shape, seeds))
    return sweep.Landscape(rates, 2.0**log_decays, np.arange(seeds), {"error": values})


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_valley_slope_is_exact_without_noise(slope, one_sided):
    found = _synthetic(slope, one_sided=one_sided).valley_slope()
    assert abs(found.slope - slope) < 0.01
    assert found.high - found.low < 0.01
    assert len(found.learning_rates) == 7


@pytest.mark.parametrize("shift", [0.0, 0.5])  # on a cell, and between two of them
def test_the_best_decays_are_reported(shift):
    found = _synthetic(-1.0, shift=shift).valley_slope()
    rates = 2.0 ** np.arange(-3, 4)
    assert found.learning_rates == tuple(rates)
    np.testing.assert_allclose(found.weight_decays, 2.0 ** (shift - 7) / rates, rtol=1e-12)


def _best_log_decay(row, log_decays):
    """From the definition: None if it is on the edge of the grid."""
    ranks = [np.sum(row < x) + (np.sum(row == x) - 1) / 2 for x in row]
    capped = np.minimum(ranks, len(row) / 2)
    smooth = np.convolve(np.pad(capped, 1, "edge"), [0.25, 0.5, 0.25], "valid")
    k = int(np.argmin(smooth))
    if {k, int(np.argmin(row))} & {0, len(row) - 1}:
        return None
    a, b, _ = np.polyfit([-1, 0, 1], smooth[k - 1 : k + 2], 2)
    return np.interp(k - b / (2 * a) if a > 1e-9 else k, np.arange(len(row)), log_decays)


@pytest.mark.parametrize("rows", [12, 40])
@pytest.mark.parametrize("levels", [4, 1000])  # with many ties, and with few
def test_the_best_decays_are_those_of_their_definition(rows, levels):
    rng = np.random.default_rng(levels)
    log_decays = np.cumsum(rng.uniform(0.5, 2.0, 17)) - 20
    distance = np.arange(17) - rng.uniform(3, 13, (rows, 1))
    error = distance**2 + 40 * rng.random((rows, 17))
    error = np.floor(levels * error / error.max()) + 1
    rates = 2.0 ** np.arange(rows)
    found = sweep.Landscape(rates, 2.0**log_decays, np.arange(1), {"error": error[..., None]})
    trains = error.min(1) <= np.median(error)
    best = [
        _best_log_decay(row, log_decays) if ok else None
        for row, ok in zip(error, trains, strict=True)
    ]
    inside = [k for k, x in enumerate(best) if x is not None]
    assert rows / 2 < len(inside)
    slope = found.valley_slope()
    assert slope.learning_rates == tuple(rates[inside])
    np.testing.assert_allclose(np.log2(slope.weight_decays), [best[k] for k in inside], rtol=1e-9)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_valley_slope_is_within_its_interval_under_noise(slope):
    found = _synthetic(slope, noise=0.3).valley_slope()
    assert abs(found.slope - slope) < 0.1
    assert 0.05 < found.high - found.low < 0.5


def test_valley_slope_leaves_out_rates_whose_best_decay_is_on_the_edge():
    found = _synthetic(1.0, shift=5.0).valley_slope()
    assert found.learning_rates == (0.125, 0.25, 0.5, 1.0)
    assert abs(found.slope - 1) < 0.1


def test_valley_slope_refuses_too_many_optima_on_the_edge():
    with pytest.raises(ValueError, match="best decay of 2 of 7 learning rates inside the grid"):
        _synthetic(1.0, shift=7.0).valley_slope()


def _refusal(landscape):
    with pytest.raises(ValueError, match="valley_slope found") as caught:
        landscape.valley_slope()
    return str(caught.value)


def test_a_refusal_names_the_rates_at_each_edge():
    largest = _refusal(_synthetic(1.0, shift=7.0))
    assert "The best decay of learning rates 0.5, 1, 2, 4, 8 is the grid's largest, 0.5" in largest
    assert largest.endswith("add larger ones.")
    smallest = _refusal(_synthetic(0.0, shift=-9.0))
    assert "The best decay of learning rates 0.125, 0.25, 0.5, 1, 2, 4, 8 is the grid's" in smallest
    assert smallest.endswith("smallest, 6.1e-5, so it may lie below: add smaller ones.")


def test_a_refusal_names_the_rates_that_do_not_train():
    x = _synthetic(-1.0)
    error = x.metrics["error"].copy()
    error[2:] = np.nan
    landscape = sweep.Landscape(x.learning_rates, x.weight_decays, x.seeds, {"error": error})
    message = _refusal(landscape)
    assert "At learning rates 0.5, 1, 2, 4, 8 even the best cell is worse" in message
    assert "edge" not in message
    assert "grid's smallest" not in message


def test_a_refusal_of_too_few_rates_asks_for_more():
    x = _synthetic(-1.0)
    two = sweep.Landscape(
        x.learning_rates[:2], x.weight_decays, x.seeds, {"error": x.metrics["error"][:2]}
    )
    assert "Add learning rates." in _refusal(two) or "closer" in _refusal(two)


def test_a_slope_prints_as_a_sentence():
    slope = sweep.ValleySlope(-0.93, -1.1, -0.8, (0.01, 0.02, 0.04), (1e-3, 5e-4, 2.5e-4))
    assert str(slope) == (
        "slope -0.93 (resampled: -1.10 to -0.80): each doubling of the rate multiplies\n"
        "the best weight decay by 0.525, over 3 learning rates, 0.01 to 0.04"
    )
    assert max(map(len, str(slope).splitlines())) <= 80
    assert "resampled" not in str(slope._replace(low=-0.93, high=-0.93))  # of one seed


def test_valley_slope_survives_cliffs_diverged_cells_and_rates_that_do_not_train():
    x = _synthetic(-1.0, noise=0.05)
    error = x.metrics["error"].copy()
    error[:, -3:] = np.nan  # too much decay diverges
    error[:, -4] = 90.0
    error[-1] = np.nan  # so does the highest rate
    error[0] = 90 + 0.01 * np.arange(5)  # and the lowest does not train
    found = sweep.Landscape(x.learning_rates, x.weight_decays, x.seeds, {"error": error})
    slope = found.valley_slope()
    assert abs(slope.slope + 1) < 0.2
    assert set(slope.learning_rates) <= set(x.learning_rates[1:-1])


def test_equal_counts_tie_in_float32_too():
    """Means of equal counts differ by rounding if the counts were divided in float32."""
    counts = np.round(3 * _synthetic(-1.0, noise=0.3).metrics["error"])
    assert len(np.unique(counts.sum(-1))) < counts.shape[0] * counts.shape[1] / 2
    make = lambda error: sweep.Landscape(
        2.0 ** np.arange(-3, 4), 2.0 ** np.arange(-14, 0.0), np.arange(5), {"error": error}
    )
    exact, rounded = make(counts), make((counts / 1647 * 100).astype(np.float32))
    assert exact.ranked() == rounded.ranked()
    assert exact.valley_slope() == rounded.valley_slope()


def test_valley_slope_of_one_seed_has_an_empty_interval():
    found = _synthetic(-1.0, seeds=1).valley_slope()
    assert found.low == found.slope == found.high
