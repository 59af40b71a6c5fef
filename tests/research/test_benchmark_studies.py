"""The studies beyond the paper: what is held out, who chooses, and that their scripts run."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.lib import data, fine_tuning
from benchmarks.study import hyperball, where_to

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.mark.slow
@pytest.mark.parametrize("script", [where_to, hyperball])
def test_scripts_run(script, tmp_path):
    name = script.__name__.rpartition(".")[2]
    command = [sys.executable, "-m", script.__name__, "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert script.report(record) in done.stdout
