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


_CONSTANT = jnp.arange(8.0)
FUNCTIONS = {
    "equal branches": _layers,
    "nested jit": lambda x: jax.jit(_layers)(x) + jax.jit(_layers)(x + 1),
    "custom_jvp": lambda x: [jax.nn.relu(x), jax.nn.relu(-x)],
    "custom_vjp": lambda x: [_clipped(x), _clipped(-x)],
    "cond": lambda x: [jax.lax.cond(x[0] > 0, lambda y: y + 1, lambda y: y - 1, x)],
    "switch": lambda x: [
        jax.lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x) for i in (0, 2, jnp.int32(x[0]) + 2)
    ],
    "while": lambda x: [jax.lax.while_loop(lambda y: y[0] < 9, lambda y: 2 * y + 1, abs(x))],
    "scan": lambda x: list(jax.lax.scan(lambda c, y: (c + y, c), 0.0, x)),
    "shard_map": lambda x: [_on_one_device(x), _on_one_device(x + 1)],
    "random": lambda x: [x + jax.random.normal(jax.random.key(s), x.shape) for s in (0, 1, 0)],
    "signed zeros": lambda x: [jnp.copysign(1.0, 0.0 * x**0), jnp.copysign(1.0, -0.0 * x**0)],
    "dtypes": lambda x: [x + np.float32(1), x.astype(jnp.bfloat16) + jnp.bfloat16(1)],
    "gradient": lambda x: [jax.grad(lambda y: jnp.sum(_clipped(y) * jnp.tanh(y)))(x)],
    "constants": lambda x: [x + _CONSTANT, x * _CONSTANT, jnp.float32(2), x],
    "callback": lambda x: [jax.pure_callback(np.sin, x, x), jax.pure_callback(np.cos, x, x)],
    "nothing": lambda x: [],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outputs_are_those_of_the_function(name):
    x = jnp.linspace(-1, 2, 8)
    expected = jax.jit(FUNCTIONS[name])(x)
    program = programs.PerParameter(FUNCTIONS[name])
    for found in (program(x), program(x)):
        assert [y.dtype for y in found] == [y.dtype for y in expected]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-6)


def _plan(program):
    (plan,) = program._plans.values()
    return plan


def test_equal_operations_are_one():
    program = programs.PerParameter(_layers)
    program(jnp.ones(8))
    assert len(set(_plan(program).entries)) == 1


def _step(xs, states, scale):
    """A parameter's own state, the norm of all, and a scalar that all need."""
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in xs))
    return [
        jnp.sum(x * jnp.exp(s) / norm * jnp.sin(scale)) for x, s in zip(xs, states, strict=True)
    ]


def test_parameters_with_states_of_their_own_share_a_compiled_part():
    shapes = [(8,), (8,), (4, 2), (8,)]
    xs = [jnp.arange(1.0, 9.0).reshape(shape) + i for i, shape in enumerate(shapes)]
    states = [0.1 * x for x in xs]
    program = programs.PerParameter(_step)
    found = program(xs, states, np.float32(0.5))
    np.testing.assert_allclose(found, _step(xs, states, 0.5), rtol=1e-5)
    common, *own = [part.function for part in _plan(program).parts]
    assert len(own) == 4
    assert own[0] is own[1] is own[3] is not own[2]
    assert common not in own
    # Other values of the same shapes run the same parts.
    found = program(states, xs, np.float32(0.7))
    np.testing.assert_allclose(found, _step(states, xs, 0.7), rtol=1e-5)
    assert len(program._plans) == 1


def test_conditions_are_divided():
    def conditional(flag, xs):
        chosen = jax.lax.cond(flag, lambda: xs, lambda: [jnp.cos(x) for x in xs])
        return [jnp.sum(x) for x in chosen]

    xs = [jnp.arange(20.0) + i for i in range(5)]
    program = programs.PerParameter(conditional)
    for flag in (True, False):
        np.testing.assert_allclose(program(flag, xs), conditional(flag, xs), rtol=1e-5)
    assert len({part.function for part in _plan(program).parts}) <= 2


def test_a_branch_that_would_not_end_is_not_taken():
    def endless(x):
        return jax.lax.while_loop(lambda y: y[0] < 2, jnp.sin, x)

    program = programs.PerParameter(lambda x: [jax.lax.cond(x[0] > 0, jnp.cos, endless, x)])
    np.testing.assert_allclose(program(jnp.ones(3))[0], np.cos(np.ones(3)), rtol=1e-6)


def test_what_cannot_be_divided_is_one_part():
    def concatenated(xs):
        whole = jnp.sort(jnp.concatenate(xs))
        return [jnp.sum(whole[i : i + 20] * x) for i, x in enumerate(xs)]

    def looped(xs):
        last = jax.lax.while_loop(lambda c: c[0][0] < 9, lambda c: [x + 1 for x in c], xs)
        return [jnp.sum(jnp.tile(x, 20) * x[0]) for x in last]

    xs = [jnp.arange(20.0) + i for i in range(30)]
    for function in (concatenated, looped):
        program = programs.PerParameter(function)
        np.testing.assert_allclose(program(xs), function(xs), rtol=1e-5)
        assert len(_plan(program).parts) == 1


def test_effects_without_a_result_are_left_out():
    seen = []

    def function(x):
        jax.debug.callback(lambda y: seen.append(float(y)), x[0])
        return [x + 1]

    np.testing.assert_array_equal(programs.PerParameter(function)(jnp.ones(2))[0], [2, 2])
    jax.effects_barrier()
    assert not seen
