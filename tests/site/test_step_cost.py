"""The summary of the page on step cost says what its prose says, and what was measured."""

import json
import pathlib
import re

import numpy as np
import pytest

from benchmarks.lib import step_parts

ROOT = pathlib.Path(__file__).parents[2]
ROW = re.compile(
    r"^\| `([^`]+)` \| `([^`]+)` \| (\S+).*? \| (\S+).*? \| (\S+).*? \|$", re.MULTILINE
)
RECORD = json.loads((ROOT / "benchmarks" / "results" / "step_cost.json").read_text())
TREES = list(RECORD["variants"]["trees"].values())
ROWS = {
    name: (baseline, *map(float, x))
    for name, baseline, *x in ROW.findall(step_parts.step_summary())
}


def test_every_variant_has_a_row():
    assert set(ROWS) == {name for tree in TREES for name in tree} - {"optax.adamw"}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_geometric_mean_of_what_was_measured(name):
    for kind, printed, digits in zip(
        ["time", "bytes", "compile"], ROWS[name][1:], [2, 3, 2], strict=True
    ):
        ratios = [tree[name][f"{kind}_ratio"] for tree in TREES if name in tree]
        np.testing.assert_allclose(
            printed, np.exp(np.mean(np.log(ratios))), atol=0.51 * 10**-digits
        )


def test_our_steps_move_the_bytes_of_their_counterparts():
    ours = {name: row[2] for name, row in ROWS.items() if name.startswith("od.")}
    assert len(ours) == 7
    assert set(ours.values()) == {1.0}
    assert ROWS["optax.sgd + decay"][2] == 0.6  # where the work differs, so do the bytes
