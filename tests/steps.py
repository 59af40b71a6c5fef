"""A whole step as one program: applied one by one, updates compile a sum for each shape."""

import jax
import optax


def jitted_step(tx, **options):
    """``step(grads, state, params)`` gives new parameters and state; options are `jax.jit`'s."""

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, **options)
