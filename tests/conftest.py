"""Eight CPU devices; rank promotion is refused; warnings are errors (see pyproject.toml)."""

import gc
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

# Compiling takes two thirds of the tests' time, so compiled programs are kept between runs, and
# shared with other workers and with the scripts that tests start. JAX finds one by its text, the
# compiler's options and the version. JAX_ENABLE_COMPILATION_CACHE=0 turns this off.
_CACHE = Path(__file__).parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small programs too
# Most tests' programs compile for longer than they run, so they are not optimized: that takes half
# of the time to compile. JAX 0.10 can also generate code as its earlier versions did, which halves
# it again. Tests that train, or compare programs bit for bit, use the fixture `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_QUICK_TO_COMPILE = ["--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK_TO_COMPILE))

import hypothesis
import jax
import pytest
from fast_subset import is_left_to_the_slow_tests

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers share the processors
gc.set_threshold(20_000, 20, 50)  # traced programs are many objects, and each pass sees them all

collect_ignore = ["ecosystem/golden"]  # a script that needs PyTorch

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; no deadline, because the first one compiles.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs, also those of scripts that the test starts, are compiled as users have them."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test, _, case = item.name.partition("[")
        if is_left_to_the_slow_tests(item.path.name, test, case.removesuffix("]")):
            item.add_marker(pytest.mark.slow)
