"""Many devices: moments lie where their parameters lie, and the trajectory is the same."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from steps import jitted_step

import optax_decoupled as od

AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# How the parameters of a two-layer network lie on a mesh of 4 × 2 devices.
LAYOUTS = {
    "data parallel": {"up": P(), "down": P(), "bias": P()},
    "fully sharded": {"up": P("data"), "down": P("data"), "bias": P("data")},
    "tensor parallel": {
        "up": P("data", "model"),
        "down": P("model", "data"),
        "bias": P("model"),
    },
}
every_axis_type = pytest.mark.parametrize("axis_type", AXES.values(), ids=AXES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def _mesh(axis_type):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))


def _params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "up": jax.random.normal(keys[0], (8, 16)),
        "down": jax.random.normal(keys[1], (16, 8)) / 4,
        "bias": jax.random.normal(keys[2], (16,)) / 4,
    }


def _placed(mesh, layout):
    return {k: jax.device_put(v, NamedSharding(mesh, layout[k])) for k, v in _params().items()}


def _loss(params, x):
    hidden = jnp.tanh(x @ params["up"] + params["bias"][None])
    return jnp.mean((hidden @ params["down"] - x) ** 2)


def _train(tx, params, state, steps=25):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        updates, state = tx.update(jax.grad(_loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    for t in range(steps):
        x = jax.random.normal(jax.random.key(t), (32, 8))
        if isinstance(params["up"].sharding, NamedSharding):
            mesh = params["up"].sharding.mesh
            x = jax.device_put(x, NamedSharding(mesh, P()))
        params, state = step(params, state, x)
    return params, state, step._cache_size()


MAKE = {
    "adamw": lambda: od.adamw(
        0.01, 5e-3, schedule=od.schedules.warm_restarts(10), mask=od.decay_mask
    ),
    "sgdw": lambda: od.sgdw(0.05, 5e-3, mask=od.decay_mask, cautious=True),
}


@pytest.mark.parametrize("name", MAKE)
@every_layout
def test_trajectory_is_that_of_one_device(layout, name):
    tx = MAKE[name]()
    expected, _, _ = _train(tx, _params(), tx.init(_params()))
    params = _placed(_mesh(AxisType.Auto), layout)
    shardings = od.opt_state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    actual, state, compilations = _train(tx, params, state)
    chex.assert_trees_all_close(jax.device_get(actual), expected, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), expected, _params())
    assert min(moved.values()) > 1e-2
    assert compilations == 1
    assert jax.tree.map(lambda x: x.sharding, state[:2]) == shardings[:2]


@every_axis_type
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_moments_lie_like_their_parameters(case, axis_type):
    mesh = _mesh(axis_type)
    params = _placed(mesh, LAYOUTS["tensor parallel"])
    tx = case.make()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape != ()]
    assert len(moments) >= 3
    by_shape = {p.shape: p.sharding for p in params.values()}
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding == by_shape.get(leaf.shape, NamedSharding(mesh, P()))


@every_axis_type
def test_the_step_moves_nothing_between_devices(axis_type):
    """Read off the compiled module: an elementwise step needs no collective."""
    params = _placed(_mesh(axis_type), LAYOUTS["tensor parallel"])
    tx = MAKE["adamw"]()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)
    step = jitted_step(tx, donate_argnums=(1, 2))
    compiled = step.lower(params, state, params).compile()
    collectives = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert not re.search(collectives, compiled.as_text())
    new_params, new_state = compiled.output_shardings
    expected = jax.tree.map(lambda x: x.sharding, (params, state[0].mu))
    assert (new_params, new_state[0].mu) == expected


def test_without_it_the_moments_of_an_auto_mesh_lie_elsewhere():
    params = _placed(_mesh(AxisType.Auto), LAYOUTS["tensor parallel"])
    state = jax.jit(od.adamw(0.01, 1e-3).init)(params)
    assert state[0].mu["up"].sharding != params["up"].sharding
    assert state[0].mu["up"].addressable_shards[0].data.shape == (8, 16)  # whole, not (2, 8)


@every_axis_type
def test_abstract_parameters(axis_type):
    mesh = _mesh(axis_type)
    layout = {k: NamedSharding(mesh, spec) for k, spec in LAYOUTS["fully sharded"].items()}
    abstract = jax.eval_shape(jax.jit(_params, out_shardings=layout))
    tx = MAKE["adamw"]()
    shardings = od.opt_state_shardings(tx, abstract)
    assert shardings == od.opt_state_shardings(tx, _placed(mesh, LAYOUTS["fully sharded"]))


WRAPPED = {
    "injected": lambda: optax.inject_hyperparams(od.adamw)(0.01, 1e-3),
    "accumulated": lambda: optax.MultiSteps(od.adamw(0.01, 1e-3), 2).gradient_transformation(),
    "masked": lambda: optax.masked(od.adamw(0.01, 1e-3), {"up": True, "down": False, "bias": True}),
    "partitioned": lambda: optax.partition(
        {"a": od.adamw(0.01, 1e-3), "b": od.sgdw(0.1, 1e-3)}, {"up": "a", "down": "b", "bias": "a"}
    ),
    "factored": lambda: od.decouple(
        optax.adafactor(0.01, min_dim_size_to_factor=4, momentum=0.9), 1e-3
    ),
    "muon": lambda: od.decouple(optax.contrib.muon(0.01), 1e-3),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_optimizers(name):
    mesh = _mesh(AxisType.Auto)
    params = _placed(mesh, LAYOUTS["fully sharded"])
    tx = WRAPPED[name]()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)
    sharded = [x for x in jax.tree.leaves(state) if x.shape == (8, 16)]
    assert sharded
    assert all(x.sharding == params["up"].sharding for x in sharded)
    updates, _ = jax.jit(tx.update)(params, state, params)
    expected, _ = jax.jit(tx.update)(_params(), tx.init(_params()), _params())
    chex.assert_trees_all_close(jax.device_get(updates), expected, rtol=1e-4, atol=1e-6)


def test_one_device():
    params = _params()
    tx = MAKE["adamw"]()
    shardings = od.opt_state_shardings(tx, params)
    assert set(jax.tree.leaves(shardings)) == {params["up"].sharding}
    jax.jit(tx.init, out_shardings=shardings)(params)


def test_stochastic_rounding_keeps_the_sharding_and_does_not_depend_on_it():
    params = jax.tree.map(
        lambda p: p.astype(jnp.bfloat16), _placed(_mesh(AxisType.Auto), LAYOUTS["tensor parallel"])
    )
    updates = jax.tree.map(lambda p: -1e-3 * p, params)
    whole = jax.tree.map(lambda x: jnp.asarray(jax.device_get(x)), (params, updates))
    alone = od.apply_updates_with_stochastic_rounding(*whole, jax.random.key(0))
    for apply in (
        od.apply_updates_with_stochastic_rounding,
        jax.jit(od.apply_updates_with_stochastic_rounding),
    ):
        new = apply(params, updates, jax.random.key(0))
        assert jax.tree.map(lambda p: p.sharding, new) == jax.tree.map(lambda p: p.sharding, params)
        assert not np.array_equal(new["up"], params["up"])
        chex.assert_trees_all_equal(jax.device_get(new), jax.device_get(alone))


@every_axis_type
def test_stochastic_rounding_draws_each_random_bit_once(axis_type):
    mesh = _mesh(axis_type)
    with jax.set_mesh(mesh):
        params = jax.device_put(
            jnp.ones((64, 32), jnp.bfloat16), NamedSharding(mesh, P("data", "model"))
        )
        apply = jax.jit(od.apply_updates_with_stochastic_rounding)
        compiled = apply.lower(params, params, jax.random.key(0)).compile().as_text()
    assert "[16,16]" in compiled  # a device's part of the parameters
    assert "u16[64,32]" not in compiled
    assert "u32[64,32]" not in compiled


def test_parameters_without_a_sharding_are_refused():
    abstract = jax.eval_shape(_params)
    with pytest.raises(ValueError, match=r"params at 'bias' has no sharding\. .*out_shardings"):
        od.opt_state_shardings(MAKE["adamw"](), abstract)


def test_parameters_on_several_meshes_are_refused():
    params = _placed(_mesh(AxisType.Auto), LAYOUTS["fully sharded"])
    params["up"] = jax.device_put(params["up"], jax.devices()[0])
    with pytest.raises(ValueError, match=r"params lie on different meshes.*one mesh"):
        od.opt_state_shardings(MAKE["adamw"](), params)
