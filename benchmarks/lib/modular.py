"""Modular addition as a sweep task: a network that only weight decay makes generalize.

It learns (a + b) mod 23 from 60 % of the pairs, all of them in every batch. Two embeddings are
summed, ReLU, logits; where asked, a layer norm without parameters stands before the logits.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_decoupled import sweep

MODULUS, WIDTH = 23, 128
TRAIN = round(0.6 * MODULUS**2)  # pairs
B2 = 0.98
GENERALIZES = 50  # percent of the held-out pairs; below, a network has started to
_PAIRS = np.indices((MODULUS, MODULUS)).reshape(2, -1)
_SUMS = jax.nn.one_hot(_PAIRS.sum(0) % MODULUS, MODULUS)


def modular_task(lengths: Sequence[int], *, layer_norm: bool = False) -> sweep.Task:
    """The task; "error" is that on the pairs held out, in percent, "train_error" on the others.

    Without a schedule a short run is the beginning of a long one: all are measured in the longest,
    as "error_1000" and "train_error_1000" after 1,000 steps.

    The model state is an order of the pairs, of which the first are trained on (each seed draws
    its own), and what has been measured.

    Args:
      lengths: of the runs in steps, increasing.
      layer_norm: whether to normalize what the logits are computed from.
    """
    *early, steps = lengths

    def init(key: jax.Array) -> tuple[Any, Any]:
        drawn, *keys = jax.random.split(key, 4)
        shapes = {"first": (MODULUS, WIDTH), "second": (MODULUS, WIDTH), "head": (WIDTH, MODULUS)}
        params = {
            name: jax.random.normal(key, shape) / WIDTH**0.5
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return params, (jax.random.permutation(drawn, MODULUS**2), jnp.zeros((len(early), 2)))

    def logits(params: Any, pairs: jax.Array) -> jax.Array:
        a, b = jnp.asarray(_PAIRS)[:, pairs]
        x = jax.nn.relu(params["first"][a] + params["second"][b])
        return (jax.nn.standardize(x, epsilon=1e-6) if layer_norm else x) @ params["head"]

    def errors(params: Any, order: jax.Array) -> jax.Array:
        wrong = 100.0 * (logits(params, order).argmax(-1) != _SUMS[order].argmax(-1))
        return jnp.stack([wrong[TRAIN:].mean(), wrong[:TRAIN].mean()])

    def loss(params: Any, state: Any, t: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        del key  # nothing random
        order, measured = state
        now = (t == jnp.array(early))[:, None] if early else jnp.zeros((0, 1), bool)
        fixed = jax.lax.stop_gradient(params)
        new = jax.lax.cond(now.any(), lambda: errors(fixed, order), lambda: jnp.zeros(2))
        pairs = order[:TRAIN]
        value = optax.softmax_cross_entropy(logits(params, pairs), _SUMS[pairs]).mean()
        return value, (order, jnp.where(now, new, measured))

    def evaluate(params: Any, state: Any) -> dict[str, jax.Array]:
        order, measured = state
        values = [*measured, errors(params, order)]
        ends = [*(f"_{length}" for length in early), ""]
        names = ("error", "train_error")
        both = list(zip(ends, values, strict=True))
        return {name + end: x[i] for i, name in enumerate(names) for end, x in both}

    steps_at = lambda seed: np.arange(steps, dtype=np.int32)  # the batch is its number
    return sweep.Task(init=init, loss=loss, batches=steps_at, evaluate=evaluate, steps=steps)


def lower_edge(errors: np.ndarray, decays: Sequence[float]) -> np.ndarray:
    """The least decay with which a network starts to generalize: where the error falls below 50 %.

    Between two decays it is interpolated over their logarithms. NaN where no decay does it, or
    where the least one already does.

    Args:
      errors: [..., decays], in percent.
      decays: increasing.
    """
    below = errors < GENERALIZES
    at = np.maximum(below.argmax(-1), 1)[..., None]
    before, after = (np.take_along_axis(errors, at - k, -1)[..., 0] for k in (1, 0))
    with np.errstate(invalid="ignore", divide="ignore"):  # where it does not cross
        part = (before - GENERALIZES) / (before - after)
    place = at[..., 0] - 1 + part
    edge = 2 ** np.interp(place, np.arange(len(decays)), np.log2(decays))
    return np.where(below.any(-1) & ~below[..., 0], edge, np.nan)
