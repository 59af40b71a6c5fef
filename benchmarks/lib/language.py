"""A small character-level language model as a sweep task: that of `examples/transformer_lm.py`."""

import hashlib
import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optax_decoupled import sweep

STEPS, BATCH, CONTEXT, WIDTH, HIDDEN, HEADS, BLOCKS = 200, 8, 32, 32, 128, 4, 2
TRAIN = 8_000  # characters, short enough to overfit
SOURCE = Path(sysconfig.get_path("stdlib"), "argparse.py")


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(*sizes, rngs=rngs) for sizes in ((WIDTH, HIDDEN), (HIDDEN, WIDTH))
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(128, WIDTH, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.embed(text) + self.place(jnp.arange(CONTEXT))[None]
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(text))
        return self.head(self.norm(x))


def language_task(steps: int = STEPS) -> tuple[sweep.Task, str]:
    """The task and the SHA-256 of its text; "error" is the cross-entropy on text that follows,
    in nats per character.
    """
    source = SOURCE.read_bytes()
    text = jnp.asarray(np.frombuffer(source, np.uint8) % 128)
    train, test = text[:TRAIN], text[TRAIN : 3 * TRAIN]
    test_starts = jnp.arange(0, 2 * TRAIN - CONTEXT, CONTEXT)
    graphdef, _ = nnx.split(Transformer(nnx.Rngs(0)), nnx.Param)

    def cross_entropy(params: Any, text: jax.Array, starts: jax.Array) -> jax.Array:
        windows = text[starts[:, None] + jnp.arange(CONTEXT + 1)[None]]
        logits = nnx.merge(graphdef, params, copy=True)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def batches(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, TRAIN - CONTEXT, (steps, BATCH))

    task = sweep.Task(
        init=lambda key: (nnx.split(Transformer(nnx.Rngs(key)), nnx.Param)[1], ()),
        loss=lambda params, state, starts, key: (cross_entropy(params, train, starts), state),
        batches=batches,
        evaluate=lambda params, state: {"error": cross_entropy(params, test, test_starts)},
        steps=steps,
    )
    return task, hashlib.sha256(source).hexdigest()
