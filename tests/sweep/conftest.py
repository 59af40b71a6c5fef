"""The fixture `untrained`."""

import jax
import pytest
from sweep_cases import task_that_records_steps


@pytest.fixture
def untrained():
    """A task; the test fails if it is trained."""
    steps = []
    yield task_that_records_steps(steps)
    jax.effects_barrier()
    assert not steps
