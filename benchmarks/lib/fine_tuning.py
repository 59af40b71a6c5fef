"""A small network that has learned one task on the digits and is tuned to another one's few images.

Plain JAX: the seeds are vmapped, the cells of a grid follow each other in one compiled program.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib.data import Images

LAYERS = (64, 32, 32, 10)
SHOTS, BATCH = 5, 64  # images of each class to tune on; images of a batch before that
PRETRAINING, STEPS = 400, 200
PRETRAINING_RATE = 0.004


class Task(NamedTuple):
    """Attributes:
    source: the classes that are learned first.
    target: the classes of the few images.
    inverted: whether those are shown as negatives, 1 minus the pixel.
    """

    source: tuple[int, ...]
    target: tuple[int, ...]
    inverted: bool


TASKS = {
    "other classes": Task(tuple(range(5)), tuple(range(5, 10)), inverted=False),
    "inverted images": Task(tuple(range(10)), tuple(range(10)), inverted=True),
}


class Draw(NamedTuple):
    """What a seed draws; one half of the images is for learning, of the other come the few.

    Attributes:
      batches: indices of the source's training images, int32 [PRETRAINING, BATCH].
      few: indices of the images to tune on, int32 [SHOTS · classes].
      tests: which images measure the old task and the new, bool [2, N].
    """

    batches: np.ndarray
    few: np.ndarray
    tests: np.ndarray


def draw(labels: np.ndarray, task: Task, seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    half, rest = np.split(order, [len(order) // 2])
    learned = half[np.isin(labels[half], task.source)]
    few = np.concatenate([rest[labels[rest] == c][:SHOTS] for c in task.target])
    unseen = np.zeros(len(labels), bool)
    unseen[rest], unseen[few] = True, False
    tests = np.stack([unseen & np.isin(labels, x) for x in (task.source, task.target)])
    return Draw(rng.choice(learned, (PRETRAINING, BATCH)), few, tests)


def start(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    pairs = list(itertools.pairwise(LAYERS))
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, pair) * (2 / pair[0]) ** 0.5,
            "bias": jnp.zeros(pair[1]),
        }
        for i, (k, pair) in enumerate(zip(jax.random.split(key, len(pairs)), pairs, strict=True))
    }


def logits(params: Any, x: jax.Array) -> jax.Array:
    *hidden, head = (params[f"layer_{i}"] for i in range(len(LAYERS) - 1))
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ head["kernel"] + head["bias"][None]


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def trained(
    tx: optax.GradientTransformationExtraArgs, params: Any, x: jax.Array, y: jax.Array
) -> Any:
    """The parameters after a step on each batch of x [steps, batch, pixels] and y."""

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), (x, y))[0][0]


def pretrained(data: Images, draws: Draw, seeds: list[int]) -> Any:
    """The networks of all seeds that have learned the source; draws are stacked."""
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    tx = od.adamw(PRETRAINING_RATE, 0.0, schedule=optax.cosine_decay_schedule(1.0, PRETRAINING))

    def one(seed: jax.Array, batches: jax.Array) -> Any:
        return trained(tx, start(jax.random.key(seed)), images[batches], labels[batches])

    return jax.jit(jax.vmap(one))(jnp.asarray(seeds), jnp.asarray(draws.batches))


def tuned(
    data: Images, task: Task, draws: Draw, networks: Any, cells: np.ndarray, **how: Any
) -> np.ndarray:
    """Errors after tuning, in percent: of the old task and the new, [2, cells, seeds].

    Cells are pairs of learning rate and decay, [cells, 2]. The few images are one batch. `how`
    goes to `adamw`.
    """
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    shown = 1 - images if task.inverted else images
    eta = optax.cosine_decay_schedule(1.0, STEPS)

    def one(cell: jax.Array, network: Any, few: jax.Array, tests: jax.Array) -> jax.Array:
        tx = od.adamw(cell[0], cell[1], schedule=eta, mask=od.decay_mask, **how)
        x, y = (jnp.broadcast_to(a[few], (STEPS, *a[few].shape)) for a in (shown, labels))
        params = trained(tx, network, x, y)
        wrong = [jnp.argmax(logits(params, a), axis=-1) != labels for a in (images, shown)]
        return jnp.stack([100 * w.mean(where=t) for w, t in zip(wrong, tests, strict=True)])

    over_seeds = jax.vmap(one, in_axes=(None, 0, 0, 0))
    # A cell at a time: the networks of all seeds fit into the cache.
    grid = jax.jit(lambda cells, *x: jax.lax.map(lambda cell: over_seeds(cell, *x), cells))
    found = grid(jnp.asarray(cells), networks, jnp.asarray(draws.few), jnp.asarray(draws.tests))
    return np.asarray(found, float).transpose(2, 0, 1)
