"""What a run leaves of an initial weight, and how old the updates are that make up the last one."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od

STEPS, RATE = 100_000, 3e-4
DECAY = od.weight_decay_from_pytorch(0.1, RATE)
eta = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2_000, STEPS)
conventions = {
    r"the paper: $λη_t$": lambda t: DECAY * eta(t),
    r"PyTorch's at half the rate: $vαη_t$": lambda t: DECAY / 2 * eta(t),
    r"corrected: $vαη_t^2$": lambda t: DECAY * eta(t) ** 2,
    r"constant: $λ$": lambda t: jnp.full((), DECAY),
}

steps = np.arange(STEPS)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for (name, decay), style in zip(conventions.items(), ("-", "-", "--", ":"), strict=True):
    removed = np.asarray(jax.vmap(decay)(steps), float)
    kept = np.cumsum(np.log1p(-removed))  # the logarithm of what step t leaves
    share = removed * np.exp(kept[-1] - kept)  # of the update of step t in the last weights
    left.plot(steps / STEPS, np.exp(kept), style)
    right.plot(steps / STEPS, STEPS * share, style, label=name)
left.set(xlabel="share of the run", title="what is left of an initial weight", ylim=(0, 1.02))
right.set(
    xlabel="share of the run", title="weight of step $t$ in the final average", ylim=(0, None)
)
right.legend(fontsize="small")
