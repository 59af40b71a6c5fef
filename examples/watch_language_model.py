"""
Watch a language model
======================

The rms and rotation of query and key matrices can be predicted: queries and keys are normalized, so
the lengths of their matrices do not change the output. The other matrices, the embedding and the
head have no norm behind them. The transformer's text is a part of Python's standard library.
"""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import optax_decoupled as od

STEPS, BATCH, CONTEXT, WIDTH, RATE, DECAY, B1 = 2000, 8, 32, 32, 0.003, 0.003, 0.9
text = jnp.asarray(np.fromfile(Path(sysconfig.get_path("stdlib"), "argparse.py"), np.uint8) % 128)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        how = dict(decode=False, use_bias=False, normalize_qk=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, WIDTH, **how)
        sizes = ((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
        self.up, self.down = (nnx.Linear(*size, rngs=rngs) for size in sizes)

    def __call__(self, x, mask):
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.place = (nnx.Embed(n, WIDTH, rngs=rngs) for n in (128, CONTEXT))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, text):  # [batch, CONTEXT]
        x = self.embed(text) + self.place(jnp.arange(CONTEXT))[None]
        for block in self.blocks:
            x = block(x, nnx.make_causal_mask(text))
        return self.head(self.norm(x))


graph, params = nnx.split(Transformer(nnx.Rngs(0)), nnx.Param)
eta = optax.cosine_decay_schedule(1.0, STEPS)
rules = od.decay_rules((".*/(kernel|embedding)", 1.0), (".*", 0.0))
tx = od.adamw(RATE, DECAY, schedule=eta, b1=B1, mask=rules)


def loss(params, key):
    starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - CONTEXT)
    windows = text[starts + jnp.arange(CONTEXT + 1)[None]]
    logits = nnx.merge(graph, params, copy=True)(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


@jax.jit
def step(carry, key):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params, key), state, params)
    measured = od.weight_dynamics(params, updates)
    return (optax.apply_updates(params, updates), state), measured


keys = jax.random.split(jax.random.key(1), STEPS)
(params, _), measured = jax.lax.scan(step, (params, tx.init(params)), keys)
print(f"loss {loss(params, jax.random.key(2)):.2f} nats per character")

# %%
# Queries and keys rotate as predicted and are a third longer; so is the embedding. Without a norm,
# the MLP's first matrix is 1.5 times as long as predicted, and the head three times as long.

names = ("query", "key", "value", "up", "down", "embed", "head")
leaves = [nnx.to_flat_state(tree) for tree in measured]  # of the blocks the last counts
flat = [{path[-2]: x[...] for path, x in pairs if path[-1] != "bias"} for pairs in leaves]
_, panels = plt.subplots(2, len(names), figsize=(14, 5), sharey="row", layout="constrained")
for (top, bottom), name in zip(panels.T, names, strict=True):
    rms, rotation, _ = (np.asarray(values[name]) for values in flat)
    expected = od.equilibrium.rms_over_run(RATE, DECAY, eta, STEPS, rms[0])[:-1]
    turns = RATE * eta(np.arange(STEPS)) * ((1 - B1) / (1 + B1)) ** 0.5 / expected
    for panel, values, line in ((top, rms, expected), (bottom, rotation, turns)):
        panel.plot(values, lw=1, label="measured")
        panel.plot(line, "k--", lw=1, label="predicted")
    off = (x[STEPS // 4 : -STEPS // 4].mean() for x in (rms / expected, rotation / turns))
    print("{} measured over predicted: rms {:.2f}, rotation {:.2f}".format(f"{name:6}", *off))
    top.set_title(name + (", normalized" if name in ("query", "key") else ", no norm"))
    bottom.set(xlabel="step", yscale="log", ylim=(1e-4, 1e-1))
panels[0, 0].set(ylabel="rms of the weights", ylim=(0, None))
panels[1, 0].set(ylabel="rotation per step, radians")
panels[0, 0].legend()
plt.show()
