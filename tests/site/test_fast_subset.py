"""The table of tests that `make test` runs in part names tests that exist."""

import pathlib
import re

import pytest
from fast_subset import COLLECTED, SUBSET, left_to_the_slow_tests

ROOT = pathlib.Path(__file__).parents[1]
TESTS = {path.name: path.read_text() for path in ROOT.rglob("test_*.py")}


def test_every_entry_names_a_test():
    for name in SUBSET:
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", TESTS[file], re.MULTILINE), name


def test_every_text_is_in_the_id_of_a_case(request):
    """Of the tests that this run collected; a number is less than that of the cases."""
    collected = request.config.stash[COLLECTED]
    if any("::" in argument for argument in request.config.args):
        pytest.skip("only some cases are collected")
    for name, cases in collected.items():
        kept = SUBSET.get(name, ())
        if isinstance(kept, int):
            assert 0 < kept < len(cases), name
            continue
        for texts in kept:
            each = (texts,) if isinstance(texts, str) else texts
            assert any(all(text in f"[{case}]" for text in each) for case in cases), (name, texts)


def test_a_case_runs_if_a_text_of_its_entry_is_in_its_id():
    cases = ["parabola-float32-sgdw", "rosenbrock-float32-adamw", "rosenbrock-float32-sgdw"]
    assert left_to_the_slow_tests("test_contract.py", "test_convergence", cases) == cases[2:]
    assert left_to_the_slow_tests("test_contract.py", "test_of_no_entry", cases) == []
    whole = left_to_the_slow_tests("test_settling.py", "test_lion_settles_where_predicted", [""])
    assert whole == [""]


def test_a_case_of_a_tuple_has_all_of_its_texts():
    cases = ["bfloat16-adamw", "bfloat16-adamw cautious", "float16-adamw"]
    test = "test_dtypes_are_stable_with_float32_hyperparameters"
    assert left_to_the_slow_tests("test_contract.py", test, cases) == cases[1:]


def test_a_number_of_cases_is_spread_over_all():
    cases = [str(i) for i in range(13)]
    test = "test_weight_dynamics_in_every_mode"
    assert left_to_the_slow_tests("test_modes_of_jax.py", test, cases) == cases[1::2]
