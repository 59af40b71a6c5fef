"""c_t over a run, and what it leaves of a weight without gradient, by the optimizers themselves."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import optax_decoupled as od

STEPS, PEAK, DECAY = 10_000, 0.001, 3e-4
warmup = optax.warmup_cosine_decay_schedule(0.0, 1.0, STEPS // 10, STEPS)
constant = dict(schedule=warmup, decay_schedule=1.0)
squared = dict(schedule=warmup, decay_schedule=lambda t: warmup(t) ** 2)
runs = {
    r"the paper: $λη_t$": od.adamw(PEAK, DECAY, schedule=warmup),
    r"PyTorch's at half the rate: $vαη_t$": od.adamw(PEAK / 2, DECAY / 2, schedule=warmup),
    r"corrected: $vαη_t^2$": od.adamw(PEAK, DECAY, **squared),
    r"constant: $λ$": od.adamw(PEAK, DECAY, **constant),
}


def weights_and_decay(tx):
    def step(carry, _):
        weight, state = carry
        updates, state = tx.update(jnp.zeros(()), state, weight)
        weight = optax.apply_updates(weight, updates)
        return (weight, state), (optax.tree.get(state, "decay_rate"), weight)

    weight = jnp.ones(())
    return jax.lax.scan(step, (weight, tx.init(weight)), length=STEPS)[1]


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for (name, tx), style in zip(runs.items(), ("-", "-", "--", ":"), strict=True):
    decays, weights = weights_and_decay(tx)
    left.plot(decays, style)
    right.plot(weights, style, label=name)
left.set(xlabel="step", title="fraction removed per step, $c_t$")
left.ticklabel_format(axis="y", scilimits=(0, 0))
right.set(xlabel="step", title="what is left of a weight without gradient", ylim=(0, 1.02))
right.legend(fontsize="small")
