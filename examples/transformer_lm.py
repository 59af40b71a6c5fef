"""
A language model, and the two ways to count its decay
=====================================================

One sweep shows whether the best :math:`λ` or the best :math:`v` stays as the learning rate
:math:`α` doubles. A full step removes the fraction :math:`λ` of a weight in the paper's convention,
and :math:`vα` in that of Optax and PyTorch, so each run has both values, :math:`λ = vα`. The
network is a character-level transformer, trained on a part of Python's standard library.
"""

import sysconfig
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import optax_decoupled as od
from optax_decoupled import sweep

STEPS, BATCH, CONTEXT, WIDTH, HIDDEN, TRAIN = 200, 8, 32, 32, 128, 8_000
source = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
text = jnp.asarray(np.frombuffer(source, np.uint8) % 128)
train_text, test_text = text[:TRAIN], text[TRAIN : 3 * TRAIN]  # short enough to overfit


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        up, down = (nnx.Linear(*sizes, rngs=rngs) for sizes in ((WIDTH, HIDDEN), (HIDDEN, WIDTH)))
        self.mlp = nnx.Sequential(up, nnx.gelu, down)

    def __call__(self, x, mask):
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.mlp(self.norms[1](x))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(128, WIDTH, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, text):  # [batch, CONTEXT]
        x = self.embed(text) + self.place(jnp.arange(CONTEXT))[None]
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(text))
        return self.head(self.norm(x))


graphdef, _ = nnx.split(Transformer(nnx.Rngs(0)), nnx.Param)


def cross_entropy(params, text, starts):
    windows = text[starts[:, None] + jnp.arange(CONTEXT + 1)[None]]
    logits = nnx.merge(graphdef, params, copy=True)(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


test_starts = jnp.arange(0, 2 * TRAIN - CONTEXT, CONTEXT)
task = sweep.Task(
    init=lambda key: (nnx.split(Transformer(nnx.Rngs(key)), nnx.Param)[1], ()),
    loss=lambda params, state, starts, key: (cross_entropy(params, train_text, starts), state),
    batches=lambda seed: np.random.default_rng(seed).integers(0, TRAIN - CONTEXT, (STEPS, BATCH)),
    evaluate=lambda params, state: {"error": cross_entropy(params, test_text, test_starts)},
    steps=STEPS,
)


def adamw(learning_rate, weight_decay):
    eta = optax.cosine_decay_schedule(1.0, STEPS)
    return od.adamw(learning_rate, weight_decay, schedule=eta, mask=od.decay_mask)


# %%
# The error is the cross-entropy on the text after the training text, in nats per character.

grid = dict(learning_rates=0.002 * 2.0 ** np.arange(3), weight_decays=2.0 ** np.arange(-11, -2))
landscape = sweep.run(task, adamw, **grid, seeds=range(3))
valley = landscape.valley_slope()
print("As the rate doubles, log2 of the best decay moves by (range of resampled seeds):")
for name, shift in {"λ": 0, "v": -1}.items():
    print(name, *(f"{x + shift:+.2f}" for x in (valley.slope, valley.low, valley.high)))

# %%
# In the paper the best :math:`λ` stays for image classifiers. Measure it for your network.

_, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
landscape.plot(ax=left)
alpha, best = np.array(valley.learning_rates), np.array(valley.weight_decays)
for label, values in {"λ": best, "v = λ/α": best / alpha}.items():
    right.loglog(alpha, values / values[0], "o-", base=2, label=label)
right.set(xlabel="learning rate", title="best decay, relative to the first")
right.legend()
plt.show()
