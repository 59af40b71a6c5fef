"""A task's batches: that each seed has its own, of one kind, and the same at every call."""

import hashlib
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from optax_decoupled.sweep.task import Batch, Task

# Of the batches of a seed, so many tell one sweep from another.
_BYTES_OF_FINGERPRINT = 4 * 2**20


def first_batch(task: Task, seed: int) -> Batch:
    """A seed's first batch, of numbers and the same at every call."""
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
    if again is missing or digest(batch) != digest(again):
        raise ValueError(
            f"task.batches({seed}) gave another first batch when it was called again; every cell "
            "of a seed must see the same batches. Return a new iterable at each call, and make "
            "its random generator from the seed."
        )
    return batch


def fingerprints(task: Task, seed: int) -> Iterator[str]:
    """Of a seed's batches: of at least one, and of no more than some bytes of them."""
    left = _BYTES_OF_FINGERPRINT
    for batch in itertools.islice(task.batches(seed), task.steps):
        yield digest(batch)
        left -= sum(np.asarray(x).nbytes for x in jax.tree.leaves(batch))
        if left <= 0:
            return


def digest(batch: Batch) -> str:
    """SHA-256 of the values of its arrays."""
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(batch)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
