"""The schedules of AdamWR over three cycles."""

import jax.numpy as jnp
import matplotlib.pyplot as plt

import optax_decoupled as od

cycles = dict(first_cycle_steps=100, cycle_mult=2)
steps = jnp.arange(700)
eta = od.schedules.warm_restarts(**cycles)(steps)
decay = od.schedules.normalized_weight_decay(0.05, **cycles)(steps)
_, within, length = od.schedules.warm_restart_position(steps, **cycles)
ends = steps[within == length - 1]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot(steps, eta)
left.plot(ends, eta[ends], "o", label="weights to keep")
left.set(xlabel="step", title="multiplier $η_t$")
left.legend(loc="upper center", fontsize="small")
right.plot(steps, decay, "--", label="$λ_i$")
right.plot(steps, decay * eta, label="removed per step, $λ_i η_t$")
right.set(xlabel="step", title="normalized decay, $λ_{norm} = 0.05$")
right.legend(fontsize="small")
