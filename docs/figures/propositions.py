"""How far L2 runs are from runs with decay: logistic regression on digits, in float64."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_decoupled as od

STEPS, RATE, DECAY = 300, 0.05, 1e-3
L2 = od.convert.to_l2(DECAY, RATE)
images, labels = load_digits(return_X_y=True)
scale = np.geomspace(0.2, 20.0, 640).reshape(64, 10)  # s, a fixed preconditioner's inverse


def loss(kernel):
    logits = jnp.asarray(images / 16) @ kernel
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def path(tx):
    def step(carry, _):
        kernel, state = carry
        updates, state = tx.update(jax.grad(loss)(kernel), state, kernel)
        kernel = optax.apply_updates(kernel, updates)
        return (kernel, state), kernel

    kernel = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=(64, 10)))
    return jax.lax.scan(step, (kernel, tx.init(kernel)), length=STEPS)[1]


def preconditioned(*first, decay=0.0):
    precondition = optax.stateless(lambda g, _: g / scale)
    return od.decouple(optax.chain(*first, precondition, optax.scale(-RATE)), decay)


def adjusted(l2):
    return preconditioned(od.scale_adjusted_l2_to_grad(l2, scale))


decayed = preconditioned(decay=DECAY)
pairs = {
    "SGD (Prop. 1)": (od.sgd_l2(RATE, L2, momentum=0.0), od.sgdw(RATE, DECAY, momentum=0.0)),
    "SGD with momentum": (od.sgd_l2(RATE, L2), od.sgdw(RATE, DECAY)),
    "Adam (Prop. 2)": (od.adam_l2(RATE, L2), od.adamw(RATE, DECAY)),
    "scale-adjusted (Prop. 3)": (adjusted(L2), decayed),
    "the same by Eq. 2": (adjusted(L2 / RATE), decayed),
}
figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
with jax.enable_x64(True):
    for name, (coupled, decoupled) in pairs.items():
        a, b = path(coupled), path(decoupled)
        distance = jnp.linalg.norm(a - b, axis=(1, 2)) / jnp.linalg.norm(b, axis=(1, 2))
        ax.loglog(jnp.arange(1, STEPS + 1), jnp.maximum(distance, 1e-17), label=name)
ax.set(xlabel="step", ylabel="relative distance", title="L2 against decay, λ′ = λ/α")
figure.legend(loc="outside right upper", fontsize="small")
