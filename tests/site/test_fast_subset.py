"""The table of tests that `make test` runs in part names tests that exist."""

import pathlib
import re

from fast_subset import SUBSET, is_left_to_the_slow_tests

ROOT = pathlib.Path(__file__).parents[1]
TESTS = {path.name: path.read_text() for path in ROOT.rglob("test_*.py")}


def test_every_entry_names_a_test():
    for name in SUBSET:
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", TESTS[file], re.MULTILINE), name


def test_a_case_runs_if_a_text_of_its_entry_is_in_its_id():
    file, test = "test_contract.py", "test_convergence"
    assert not is_left_to_the_slow_tests(file, test, "parabola-float32-sgdw")
    assert is_left_to_the_slow_tests(file, test, "rosenbrock-float32-adamw cautious")
    assert not is_left_to_the_slow_tests(file, test, "rosenbrock-float32-adamw")
    assert not is_left_to_the_slow_tests(file, "test_of_no_entry", "")


def test_a_case_of_a_tuple_has_all_of_its_texts():
    file, test = "test_contract.py", "test_dtypes_are_stable_with_float32_hyperparameters"
    assert not is_left_to_the_slow_tests(file, test, "bfloat16-adamw")
    assert is_left_to_the_slow_tests(file, test, "bfloat16-adamw cautious")
    assert is_left_to_the_slow_tests(file, test, "float16-adamw")
