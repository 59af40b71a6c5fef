"""Checks and fingerprints of a task's batches."""

import hashlib
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled.sweep.task import Batch, Task

# The fingerprint of a sweep covers the first 4 MiB of each seed's batches.
_FINGERPRINT_BYTES = 4 * 2**20


def first_batch(task: Task, seed: int) -> Batch:
    """Returns a seed's first batch; refuses random keys and batches that differ between calls."""
    missing = object()
    batch, again = (next(iter(task.batches(seed)), missing) for _ in range(2))
    if batch is missing:
        raise ValueError(
            f"task.batches({seed}) is empty; it must yield one batch for each of the "
            f"steps={task.steps}."
        )
    if any(jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended) for x in jax.tree.leaves(batch)):
        raise ValueError(
            f"A batch of task.batches({seed}) holds random keys; it must hold arrays of numbers. "
            "loss gets a new key at every step."
        )
    if again is missing or _digest(batch) != _digest(again):
        raise ValueError(
            f"task.batches({seed}) gave another first batch when it was called again; every cell "
            "of a seed must see the same batches. Return a new iterable at each call, and make "
            "its random generator from the seed."
        )
    return batch


def batch_digests(task: Task, seed: int) -> Iterator[str]:
    """Yields the digests of a seed's batches until they reach `_FINGERPRINT_BYTES`."""
    size = 0
    for batch in itertools.islice(task.batches(seed), task.steps):
        yield _digest(batch)
        size += sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
        if size >= _FINGERPRINT_BYTES:
            return


def _digest(batch: Batch) -> str:
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(batch)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
