"""One small regression in three kinds of parameter tree: Flax NNX, Flax Linen, a plain dict."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

_rng = np.random.default_rng(0)
X, Y = (_rng.normal(size=(16, width)).astype(np.float32) for width in (3, 4))


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, bias_init=nnx.initializers.normal(1.0), rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.dense(x))


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4, bias_init=nn.initializers.normal(1.0), name="dense")(x))


def _loss(outputs):
    return jnp.mean((outputs - Y) ** 2)


@functools.cache
def nnx_state():
    graph, params = nnx.split(NNXNetwork(nnx.Rngs(0)), nnx.Param)
    return params, lambda params: _loss(nnx.merge(graph, params)(X))


@functools.cache
def linen_params():
    network = LinenNetwork()
    params = network.init(jax.random.key(1), X)["params"]
    return params, lambda params: _loss(network.apply({"params": params}, X))


@functools.cache
def plain_dict():
    normal = np.random.default_rng(2).normal
    params = {"dense": {"kernel": normal(size=(3, 4)), "bias": normal(size=4)}}

    def loss(params):
        return _loss(jnp.tanh(X @ params["dense"]["kernel"] + params["dense"]["bias"][None]))

    return params, loss


TREES = {"nnx": nnx_state, "linen": linen_params, "dict": plain_dict}


@functools.cache
def problem(kind, dtype="float32"):
    """Parameters of one kind of tree and one dtype, and the function that gives their gradient."""
    params, loss = TREES[kind]()
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params), jax.jit(jax.grad(loss))


def total_updates(variant, optimizers, kind, dtype="float32", steps=3):
    """For each optimizer the sum of its first updates, in their dtype.

    The variant runs one step of all optimizers at once, which compiles faster than each alone.
    """

    def update(grads, states, params):
        rows = zip(optimizers, grads, states, params, strict=True)
        return [tx.update(*arguments) for tx, *arguments in rows]

    start, gradient = problem(kind, dtype)
    update = variant(update, n_devices=2)
    params, states = zip(*[(start, tx.init(start)) for tx in optimizers], strict=True)
    totals = optax.tree.zeros_like(params)
    for _ in range(steps):
        grads = [gradient(each) for each in params]
        updates, states = zip(*update(grads, states, params), strict=True)
        params = optax.apply_updates(params, updates)
        totals = optax.tree.add(totals, updates)
    return totals
