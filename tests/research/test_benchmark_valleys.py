"""Slopes under resampled seeds: those of the package, and paired between two landscapes."""

import json

import numpy as np
import pytest

from benchmarks.lib import readings, valleys
from benchmarks.lib.harness import RESULTS
from optax_decoupled.sweep import Landscape

NETWORKS = json.loads((RESULTS / "figure2_digits.json").read_text())["networks"]
RECORDED = {
    f"{name}, {network}": optimizer
    for network, row in NETWORKS.items()
    for name, optimizer in row["optimizers"].items()
    if optimizer["valley_slope"]
}


@pytest.mark.parametrize("name", RECORDED)
def test_slopes_are_those_of_valley_slope(name):
    optimizer = RECORDED[name]
    first, *resampled = valleys.slopes(optimizer)
    recorded = optimizer["valley_slope"]
    assert first == pytest.approx(recorded["slope"], abs=1e-5)
    ends = np.nanpercentile(resampled, [2.5, 97.5])
    width = recorded["high"] - recorded["low"]
    np.testing.assert_allclose(ends, [recorded["low"], recorded["high"]], atol=0.1 * width)


def _record(slopes, diverged=()):
    """Of a landscape in which each seed's best decay moves with its own slope."""
    rates, decays = np.arange(-3.0, 4), np.arange(-14.0, 3)
    errors = 5 + (decays[:, None] + 6 - np.asarray(slopes) * rates[:, None, None]) ** 2
    for rate, decay in diverged:
        errors[rate, decay] = np.nan
    seeds = np.arange(len(slopes))
    return readings.summary(Landscape(2.0**rates, 2.0**decays, seeds, {"error": errors}))


def _width(interval):
    assert interval is not None
    return interval.high - interval.low


def test_pairs_share_their_seeds():
    """What both slopes have of a seed cancels in their difference."""
    of_seed = np.random.default_rng(0).normal(-0.5, 0.4, 20)
    first, second = _record(of_seed - 0.5), _record(of_seed)
    both = valleys.slope_difference(first, second)
    assert both is not None
    assert both.value == pytest.approx(0.5, abs=0.05)
    assert _width(both) < 0.3 * _width(readings.slope_interval(first))
    assert _width(both) < 0.3 * _width(valleys.slope_difference(first, _record(of_seed[::-1])))


def test_distances_from_zero_and_differences():
    pair = _record([-1.0] * 4), _record([0.5] * 4)
    assert valleys.closer_to_zero(*pair) == pytest.approx((0.5, 0.5, 0.5), abs=0.02)
    assert valleys.slope_difference(*pair) == pytest.approx((1.5, 1.5, 1.5), abs=0.02)


def test_other_seeds_make_no_pair():
    assert valleys.slope_difference(_record([0.0] * 4), _record([0.0] * 5)) is None


def test_where_every_seed_diverged_is_the_worst_cell():
    diverged = [(rate, decay) for rate in range(7) for decay in (14, 15, 16)]
    (slope, *_) = valleys.slopes(_record([0.5] * 4, diverged))
    assert slope == pytest.approx(0.5, abs=0.05)


def test_two_rates_are_too_few():
    optimizer = _record([0.0] * 4)
    assert np.isfinite(valleys.slopes(optimizer)).all()
    two = {key: optimizer[key][:2] for key in ("learning_rates", "error_percent")}
    assert np.isnan(valleys.slopes(optimizer | two)).all()


def test_a_valley_on_the_edge_is_not_located():
    optimizer = _record([0.0] * 4)
    cut = np.array(optimizer["error_percent"])[:, 8:]  # the best decay comes first
    edge = {"weight_decays": optimizer["weight_decays"][8:], "error_percent": cut.tolist()}
    assert np.isnan(valleys.slopes(optimizer | edge)).all()
    errors = np.array(optimizer["error_percent"])
    errors[:, 0] = 4.0  # the best cell of each row, though its neighbours are poor
    assert np.isnan(valleys.slopes(optimizer | {"error_percent": errors.tolist()})).all()


@pytest.mark.parametrize("decays", [1, 2])
def test_a_row_of_edges_alone_is_not_located(decays):
    record = _record([0.5] * 4)
    cut = {"error_percent": [row[:decays] for row in record["error_percent"]]}
    cut |= {"weight_decays": record["weight_decays"][:decays], "valley_slope": None}
    assert valleys.slope_of_seeds(record | cut) is None
    assert readings.slope_text(record | cut) == "not located"
