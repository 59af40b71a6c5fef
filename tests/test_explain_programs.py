"""Equal operations are computed once, and the outputs are those of the function itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optax_decoupled._explain import programs


def _layers(x):
    """Twenty equal branches, each of four equations."""
    return [jnp.sqrt(jnp.abs(x) * 2 + 1) for _ in range(20)]


@jax.custom_vjp
def _clipped(x):
    return jnp.clip(x, -0.5, 0.5)


_clipped.defvjp(lambda x: (_clipped(x), None), lambda _, g: (g,))


def _on_one_device(x):
    mesh = Mesh(jax.devices()[:1], ("d",))
    return jax.shard_map(lambda y: 2 * y, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(x)


FUNCTIONS = {
    "equal branches": _layers,
    "nested jit": lambda x: [jax.jit(_layers)(x), jax.jit(_layers)(x + 1)],
    "custom_jvp": lambda x: [jax.nn.relu(x), jax.nn.relu(-x)],
    "custom_vjp": lambda x: [_clipped(x), _clipped(-x)],
    "cond": lambda x: jax.lax.cond(x[0] > 0, lambda y: y + 1, lambda y: y - 1, x),
    "while": lambda x: jax.lax.while_loop(lambda y: y[0] < 9, lambda y: 2 * y + 1, abs(x)),
    "scan": lambda x: jax.lax.scan(lambda c, y: (c + y, c), 0.0, x),
    "shard_map": lambda x: [_on_one_device(x), _on_one_device(x + 1)],
    "random": lambda x: [x + jax.random.normal(jax.random.key(s), x.shape) for s in (0, 1, 0)],
    "signed zeros": lambda x: [jnp.copysign(1.0, 0.0 * x**0), jnp.copysign(1.0, -0.0 * x**0)],
    "dtypes": lambda x: [x + np.float32(1), x.astype(jnp.bfloat16) + jnp.bfloat16(1)],
    "gradient": lambda x: jax.grad(lambda y: jnp.sum(_clipped(y) * jnp.tanh(y)))(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_are_those_of_the_function(name):
    x = jnp.linspace(-1, 2, 8)
    expected = jax.jit(FUNCTIONS[name])(x)
    found = programs.jit_to_run_once(FUNCTIONS[name])(x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-6)


def _equations(function, *args):
    return len(function.trace(*args).jaxpr.jaxpr.eqns)


def test_equal_operations_are_one():
    x = jnp.ones(8)
    assert _equations(jax.jit(_layers), x) == 80
    assert _equations(programs.jit_to_run_once(_layers), x) == 4


def test_effects_happen_each_time():
    seen = []

    def function(x):
        for _ in range(3):
            jax.debug.callback(lambda y: seen.append(float(y)), x[0], ordered=True)
        return [jax.jit(lambda y: y + 1)(x), x]

    jax.block_until_ready(programs.jit_to_run_once(function)(jnp.ones(2)))
    jax.effects_barrier()
    assert seen == [1.0, 1.0, 1.0]
