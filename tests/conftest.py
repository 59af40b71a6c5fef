"""Eight CPU devices; rank promotion is refused; warnings are errors (see pyproject.toml)."""

import gc
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Compiling takes much of the tests' time, so compiled programs are kept between runs, and
# shared with other workers and with the scripts that tests start. JAX finds one by its text, the
# compiler's options and the version. JAX_ENABLE_COMPILATION_CACHE=0 turns this off.
_CACHE = Path(__file__).parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # small programs too
# Most tests' programs compile for longer than they run, so XLA leaves out most optimizations, and
# compiles each program as one part. JAX 0.10 can also generate code as its earlier versions did.
# Together that takes 40 % of the time with JAX 0.10, and 75 % with 0.12. XLA ends the process if it
# does not have a flag, so each is set only for versions that have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_VERSION = importlib.metadata.version("jaxlib")
_FLAGS = {
    "--xla_cpu_parallel_codegen_split_count=1": ("0.10.", "0.11.", "0.12."),
    "--xla_cpu_use_fusion_emitters=false": ("0.10.",),
}
_FLAGS_HERE = [flag for flag, versions in _FLAGS.items() if _VERSION.startswith(versions)]
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS_HERE))
# Each worker has one processor: more threads of NumPy would wait for one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest
from fast_subset import COLLECTED, left_to_the_slow_tests, spread

# Traced programs are many objects, and each full collection visits all: 5 % of the tests' time.
gc.set_threshold(20_000, 20, 50)


def _reused(make: Callable[[], Any]) -> Callable[[], Any]:
    """Gives each thread the same MLIR context some ten times, as JAX 0.12 does by itself."""
    kept = threading.local()

    def context() -> Any:
        if getattr(kept, "uses", 10) == 10:
            kept.context, kept.uses = make(), 0
        kept.uses += 1
        return kept.context

    return context


# JAX 0.10 makes a context for each program that it lowers: 15 % of the tests' time.
if _VERSION.startswith("0.10."):
    from jax._src.interpreters import mlir

    mlir.make_ir_context = _reused(mlir.make_ir_context)

collect_ignore = ["ecosystem/golden"]  # a script that needs PyTorch

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run; no deadline, because the first one compiles.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """XLA optimizes what the test compiles: for tests that train for long, or compare bits.

    What the same process compiled before stays as it is. Scripts that the test starts have the
    flags of users.
    """
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.delenv("XLA_FLAGS")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--most-cases", type=int, help="run at most so many fast cases of each test")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests: dict[tuple[str, str], list[tuple[str, pytest.Item]]] = {}
    for item in items:
        test, _, case = item.name.partition("[")
        tests.setdefault((item.path.name, test), []).append((case.removesuffix("]"), item))
    collected = config.stash[COLLECTED] = {}
    most, left_out = config.getoption("--most-cases"), set()
    for (file, test), cases in tests.items():
        collected[f"{file}::{test}"] = [case for case, _ in cases]
        slow = left_to_the_slow_tests(file, test, [case for case, _ in cases])
        for case, item in cases:
            if case in slow:
                item.add_marker(pytest.mark.slow)
        fast = [item for _, item in cases if not item.get_closest_marker("slow")]
        if most and len(fast) > most:
            left_out |= set(fast) - {fast[i] for i in spread(most, len(fast))}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    # First those that start scripts of a minute: begun last, one would leave a processor idle.
    items.sort(key=lambda item: item.path.parent.name not in ("research", "sweep"))
