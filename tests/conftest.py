"""Eight CPU devices; rank promotion is refused; warnings are errors (see pyproject.toml)."""

import importlib.metadata
import os
from pathlib import Path

# Compiling takes two thirds of the tests' time, so compiled programs are kept between runs, and
# shared with other workers and with the scripts that tests start. JAX finds one by its text, the
# compiler's options and the version. JAX_ENABLE_COMPILATION_CACHE=0 turns this off.
_CACHE = Path(__file__).parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small programs too
# JAX 0.10 can still generate code for the CPU as its earlier versions did, which compiles in two
# thirds of the time. Newer ones cannot, so the package tests run with the usual code there.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import hypothesis
import jax
import pytest
from fast_subset import is_left_to_the_slow_tests

collect_ignore = ["ecosystem/golden"]  # a script that needs PyTorch

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; no deadline, because the first one compiles.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test, _, case = item.name.partition("[")
        if is_left_to_the_slow_tests(item.path.name, test, case.removesuffix("]")):
            item.add_marker(pytest.mark.slow)
