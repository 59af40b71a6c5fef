"""
Training in bfloat16
====================

Rounding to nearest loses annealed steps and decay, and stochastic rounding keeps them: in bfloat16
a change below 2⁻⁹ of a weight rounds to nothing. A small transformer reads scikit-learn's digits
row by row. (The run takes minutes; the site shows its result.)
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS, BATCH, SEEDS = 800, 64, 3
MODES = {  # the parameters' dtype, and whether they are rounded stochastically
    "float32": (jnp.float32, False),
    "bfloat16, to nearest": (jnp.bfloat16, False),
    "bfloat16, stochastic": (jnp.bfloat16, True),
}

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images.reshape(-1, 8, 8) / 16), jnp.asarray(labels)
train_images, train_labels = images[:1200], labels[:1200]  # the others are held out


class Block(nnx.Module):
    def __init__(self, width, options):
        self.norms = nnx.List([nnx.LayerNorm(width, **options) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, **options)
        self.up = nnx.Linear(width, 4 * width, **options)
        self.down = nnx.Linear(4 * width, width, **options)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, width, depth, options):
        self.embed = nnx.Linear(8, width, **options)
        self.place = nnx.Embed(8, width, **options)
        self.blocks = nnx.List([Block(width, options) for _ in range(depth)])
        self.head = nnx.Linear(width, 10, **options)

    def __call__(self, x):  # [batch, 8 rows, 8 pixels]
        x = self.embed(x) + self.place(jnp.arange(8))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=1))


def train(seed, dtype, stochastic, adamw=od.adamw):
    """The training loss after each step, averaged over the last 20, and the test error."""
    model = Transformer(32, 2, dict(dtype=jnp.float32, param_dtype=dtype, rngs=nnx.Rngs(seed)))
    graphdef, params = nnx.split(model, nnx.Param)
    cosine = optax.cosine_decay_schedule(1.0, STEPS)
    tx = adamw(0.002, 1e-3, schedule=cosine, mask=od.decay_mask)

    def loss_fn(params, x, y):
        logits = nnx.merge(graphdef, params, copy=True)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, t):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(seed), t))
        batch = jax.random.randint(data_key, (BATCH,), 0, len(train_images))
        x, y = train_images[batch], train_labels[batch]
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(grads, state, params)
        if stochastic:
            return od.apply_updates_with_stochastic_rounding(params, updates, key), state, loss
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), np.zeros(STEPS)
    for t in range(STEPS):
        params, state, losses[t] = step(params, state, t)
    wrong = nnx.merge(graphdef, params)(images[1200:]).argmax(-1) != labels[1200:]
    return np.convolve(losses, np.ones(20) / 20, "valid"), 100 * float(wrong.mean())


if __name__ == "__main__":
    runs = {name: [train(seed, *mode) for seed in range(SEEDS)] for name, mode in MODES.items()}
    final = {mode: np.mean([curve[-1] for curve, _ in results]) for mode, results in runs.items()}
    for mode, results in runs.items():
        spread = np.std([curve[-1] for curve, _ in results], ddof=1)
        errors = ", ".join(f"{error:.1f}" for _, error in results)
        print(f"{mode:22} loss {final[mode]:.4f} ± {spread:.4f}, test errors {errors} %")
    assert final["bfloat16, to nearest"] > 1.4 * final["float32"]
    assert final["bfloat16, stochastic"] < 1.2 * final["float32"]
    for mode, results in runs.items():
        plt.semilogy(np.mean([curve for curve, _ in results], axis=0), label=mode)
    plt.legend()
    plt.gca().set(xlabel="step", ylabel="training loss, mean of 20 steps and 3 seeds")
    plt.show()
