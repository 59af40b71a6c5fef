"""The studies beyond the paper: what is held out, who chooses, and that their scripts run."""

import json

import numpy as np
import pytest
from scripts import run_quickly

from benchmarks.lib import data, fine_tuning
from benchmarks.study import hyperball, language_model, modular_addition, where_to


@pytest.mark.parametrize("name", fine_tuning.TASKS)
def test_images_that_measure_were_never_learned(name):
    labels, task = data.digits().labels, fine_tuning.TASKS[name]
    drawn = fine_tuning.draw(labels, task, 0)
    old, new = drawn.tests
    assert min(old.sum(), new.sum()) > 300
    for learned in (drawn.batches, drawn.few):
        assert not (old | new)[learned].any()
    assert set(labels[old]) == set(labels[drawn.batches.ravel()]) == set(task.source)
    assert np.unique_counts(labels[drawn.few]).counts.tolist() == [5] * len(task.target)
    assert set(labels[new]) == set(labels[drawn.few]) == set(task.target)
    other = fine_tuning.draw(labels, task, 1)
    assert not np.array_equal(other.few, drawn.few)


def test_the_seeds_that_choose_do_not_compare():
    """The first half prefers the second cell, the other half the first."""
    found = {"new": [[[9.0, 9.0, 1.0, 1.0], [2.0, 2.0, 5.0, 7.0]]]}
    found["old"] = [[[0.0] * 4, [3.0, 3.0, 4.0, 6.0]]]
    assert where_to.chosen(found) == (0, 1)
    compared = where_to.compared(found)
    np.testing.assert_array_equal(compared["new"], [5.0, 7.0])
    np.testing.assert_array_equal(compared["old"], [4.0, 6.0])
    none = {key: [[[8.0, 8.0, 8.0, 10.0]]] for key in ("new", "old")}
    text = where_to.sentences({"none": none, "to 0": found, "to the start": none})
    assert "“none” minus error with “to 0”: on the new +3.00" in text[0]


def test_the_matrices_of_the_blocks_go_to_the_sphere():
    shape = {"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}
    params = {"embed": {"embedding": np.zeros((2, 2))}, "blocks": {0: {"up": shape}}, "head": shape}
    labels = hyperball.labels(params)
    assert labels["blocks"][0]["up"] == {"kernel": "matrices", "bias": "rest"}
    assert labels["embed"]["embedding"] == labels["head"]["kernel"] == "rest"


def _landscape(edge):
    """Errors that fall from 100 % to 0 across an edge (rate, steps), as log₂ of the decay."""
    decays, rates, steps = np.arange(-10.0, 0), np.arange(-3.0, 0), (1000, 2000, 4000)
    spread = np.linspace(-0.2, 0.2, 5)  # of the seeds
    error = {
        str(n): [
            [(50 - 30 * (d - edge(r, n) - spread)).clip(0, 100) for d in decays] for r in rates
        ]
        for n in steps
    }
    train_error = np.zeros((len(rates), len(decays)))
    train_error[0, :2] = 3
    axes = {"learning_rates": 2**rates, "weight_decays": 2**decays}
    return axes | {"error": error, "train_error": train_error}


def test_budgets_are_told_from_decays():
    budget = _landscape(lambda rate, steps: -4 - np.log2(steps / 1000))
    edges = modular_addition.budgets(budget)
    np.testing.assert_allclose(edges[0], 1000 / 16, rtol=1e-9)
    value, low, high = modular_addition.interval(edges[:, 0, 0]) or (0, 0, 0)
    assert 0.8 * value < low < value < high < 1.25 * value
    text = modular_addition.sentence("AdamW", budget)
    assert "9 of 9 edges" in text
    assert "above 1 % in 2 of 30 cells" in text
    assert "As a budget λS they differ by a factor of 1 [1, 1], as a decay λ by 4 [4, 4]" in text
    decay = _landscape(lambda rate, steps: -4.5 + rate)
    assert "by a factor of 16 [16, 16], as a decay λ by 4 [4, 4]" in (
        modular_addition.sentence("AdamW", decay)
    )


def test_an_edge_outside_the_grid_does_not_count():
    half = _landscape(lambda rate, steps: -20 if steps == 1000 else 5 if rate < -2 else -4)
    text = modular_addition.sentence("AdamW", half)
    assert "4 of 9 edges" in text
    rows = modular_addition.rows("no norm", {"AdamW": half})
    assert rows[1][1:] == ["none in the grid"] * 3
    assert rows[2][1].startswith("none")
    assert rows[2][2].startswith("125 [")
    nowhere = _landscape(lambda rate, steps: 5)
    text = modular_addition.sentence("AdamW", nowhere)
    assert text.startswith("AdamW: 0 of 9 edges are in the grid. After 4,000 steps λ is best at")


@pytest.mark.slow
def test_scripts_run(tmp_path):
    scripts = (where_to, hyperball, language_model, modular_addition)
    done = run_quickly([script.__name__ for script in scripts], tmp_path)
    assert done.returncode == 0, done.stderr
    for script in scripts:
        name = script.__name__.rpartition(".")[2]
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert script.report(record) in done.stdout
