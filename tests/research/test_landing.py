"""The first page's picture: one decay, tuned at the middle rate and held over all."""

import numpy as np
import pytest

from benchmarks.figures import landing
from benchmarks.lib import readings
from optax_decoupled.sweep import Landscape

X, Y = np.arange(-2.0, 3), np.arange(-8.0, 5)


def _record(slope, shift=0):
    """A bowl whose best decay moves so as the rate doubles; 5 % at the middle rate."""
    error = 5 + 2 * (Y - shift - slope * X[:, None]) ** 2
    error = error[..., None] + np.linspace(-1, 1, 8)
    return readings.summary(Landscape(2.0**X, 2.0**Y, np.arange(8), {"error": error}))


@pytest.mark.parametrize(
    ("slope", "keep_ratio", "expected"),
    [
        (0, False, 5 + 0 * X),
        (0, True, 5 + 2 * X**2),
        (1, True, 5 + 0 * X),
        (-1, False, 5 + 2 * X**2),
        (-1, True, 5 + 8 * X**2),
    ],
)
def test_the_held_decay_is_wrong_by_what_the_best_one_moves(slope, keep_ratio, expected):
    found = landing.held(_record(slope), keep_ratio)
    np.testing.assert_allclose([x.value for x in found], expected)
    assert all(x.low < x.value < x.high for x in found)


def test_beyond_the_grid_the_last_decay_is_taken():
    found = landing.held(_record(0, shift=3), keep_ratio=True)
    np.testing.assert_allclose([x.value for x in found], [13, 7, 5, 7, 7])


def test_the_lines_of_the_picture_are_those_of_the_committed_results():
    record = landing._recorded("figure2_digits")
    worst = {
        name: max(x.value for x in errors)
        for name, errors in landing.lines(record, "batch norm").items()
    }
    l2, ratio, ours = worst.values()
    assert ours < 0.6 * ratio < 0.6 * l2
