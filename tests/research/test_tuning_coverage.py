"""The study of the intervals of `od.sweep`'s estimates, and what the docstring says of it."""

import json
import re

import numpy as np
import pytest

from benchmarks.lib.harness import RESULTS
from benchmarks.study import tuning_coverage
from optax_decoupled import sweep


@pytest.fixture(scope="module")
def networks():
    return tuning_coverage.populations()


def test_the_study_measures_the_packages_estimates(networks):
    row = tuning_coverage.draw(networks["batch norm"], np.random.default_rng(0), 6)
    found = tuning_coverage.estimates(row)
    for name in ("SGD+L2", "AdamW"):
        cost, basin = sweep.tuning_cost(row[name]), sweep.basin(row[name])
        orders = (cost.decay_first, cost.rate_first)
        costs = [part for order in orders for part in (order.mean, order.worst)]
        expected = [*costs, basin.cells, basin.rates]
        np.testing.assert_allclose(
            [x.value for x in found[name][:6]], [x.value for x in expected], rtol=1e-9, atol=1e-9
        )
    gain = sweep.advantage(row["Adam+L2"], row["AdamW"])
    *_, middling, best = found["Adam+L2 - AdamW"]
    assert best.value == pytest.approx(gain.best.value)
    assert middling.value == pytest.approx(gain.at_rate[4].value)


def test_the_true_landscape_is_the_mean_of_the_draws(networks):
    for population in networks.values():
        drawn = tuning_coverage.draw(population, np.random.default_rng(0), 2000)
        for name, (fixed, _, _) in population.items():
            error = drawn[name].metrics["error"]
            tolerance = 5 * error.std(-1) / 2000**0.5 + 1e-6
            off = abs(error.mean(-1) - fixed.mean())
            assert np.all((off < tolerance) | np.isnan(off))
            assert np.nanmin(error) >= 0
            assert np.nanmax(error) <= 100


def test_a_few_draws_of_each_method(networks):
    found = tuning_coverage.of_seeds({"batch norm": networks["batch norm"]}, 5, 2, 5)
    pooled = tuning_coverage.pooled(found)
    assert len(pooled) == 5
    assert all(0 <= x <= 1 for x in pooled.values())
    assert pooled["jackknife 95%"] > 0.5
    rows = tuning_coverage.rows(5, found)
    assert len({len(row) for row in rows}) == 1


def test_the_docstring_states_the_measured_coverage():
    record = json.loads((RESULTS / "tuning_coverage.json").read_text())
    text = " ".join((sweep.Estimate.interval.__doc__ or "").split())
    stated = {int(n): int(x) for x, n in re.findall(r"(\d+) % (?:of cases )?with (\d+)", text)}
    measured = {
        int(seeds): round(100 * tuning_coverage.pooled(found)["jackknife 95%"])
        for seeds, found in record["seeds"].items()
    }
    assert stated == measured
    assert set(measured) == set(tuning_coverage.SEEDS)
    every = [
        coverage
        for found in record["seeds"].values()
        for result in found.values()
        for x in result.values()
        for coverage in x["coverage"]["jackknife 95%"]
    ]
    assert f"down to {round(100 * min(every))} %" in text
    best = [
        max((x for x in tuning_coverage.pooled(found).items() if "95" in x[0]), key=lambda x: x[1])
        for found in record["seeds"].values()
    ]
    assert {name for name, _ in best} == {"jackknife 95%"}
