"""What the tests of explain_weight_decay share: parameters, gradients, optimizers."""

import jax
import jax.numpy as jnp
import optax
import pytest

LR = 1e-3


KERNELS = {"dense": {"kernel": True, "bias": False}}


SLOW = {
    "optax.adafactor with momentum",
    "apply_if_finite",
    "noisy",
    "sgdwr",
    "decouple(lamb)",
    "decay before lion",
    "decay before Adagrad",
    "decay before MultiSteps' Adam",
    "optax.lars",
    "optax.novograd",
    "L2 and decoupled, lion",
    "L2 and decoupled, RMSProp",
}


def cases(table, slow=()):
    """The parametrization of a table, with its slower half left to the gate."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name,
            marks=[pytest.mark.slow] * (name in slow),
        )
        for name, case in table.items()
    ]


def small_params():
    kernel = 0.3 * jax.random.normal(jax.random.key(0), (8, 16))
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(16)}}


def random_grads(params, seed, scale=1.0):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten([g.astype(x.dtype) for g, x in zip(normal, leaves, strict=True)])


def trained(tx, params, steps):
    """The parameters and the state after some steps."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(steps):
        params, state = step(params, state, random_grads(params, seed))
    return params, state


def kinds(report):
    return {row.kind for row in report.rows}


def by_path(report):
    return {row.path: row for row in report.rows}


def only_kernels(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def half_frozen():
    groups = {"on": optax.adamw(LR, weight_decay=0.01), "off": optax.set_to_zero()}
    return optax.partition(groups, {"dense": {"kernel": "on", "bias": "off"}})


def with_l2(tx, l2=5e-4):
    return optax.chain(optax.add_decayed_weights(l2), tx)


def with_master_copy(tx):
    """The optimizer on float32 copies of the parameters, which its state keeps."""
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        return widen(params), tx.init(widen(params))

    def update(grads, state, params):
        master, state = state
        updates, state = tx.update(widen(grads), state, master)
        master = optax.apply_updates(master, updates)
        return jax.tree.map(lambda m, p: m.astype(p.dtype) - p, master, params), (master, state)

    return optax.GradientTransformation(init, update)


def steps_to_halve(tx, params):
    """Real updates with zero gradients until the largest weight is half of what it was."""
    start, zeros = jnp.max(jnp.abs(params["w"])), jax.tree.map(jnp.zeros_like, params)

    def step(carry):
        params, state, count = carry
        updates, state = tx.update(zeros, state, params)
        return optax.apply_updates(params, updates), state, count + 1

    halved = lambda carry: jnp.max(jnp.abs(carry[0]["w"])) > start / 2
    run = jax.jit(lambda carry: jax.lax.while_loop(halved, step, carry))
    return int(run((params, tx.init(params), 0))[2])


def deep(layers):
    layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    return {"embed": jnp.ones((9, 4)), **{f"layer_{i}": {"dense": layer} for i in range(layers)}}
