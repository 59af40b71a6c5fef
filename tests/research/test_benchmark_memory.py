"""The bytes per device that the docs print are those of real states on real devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding

import optax_decoupled as od
from benchmarks.cost import state_bytes


@pytest.mark.parametrize("choice", state_bytes.CHOICES)
def test_bytes_per_device_are_those_of_real_arrays(choice):
    layers, width, devices = 2, 16, len(jax.devices())
    make, dtype = state_bytes.CHOICES[choice]
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))

    def zeros(leaf):
        return jnp.zeros(leaf.shape, dtype, device=NamedSharding(mesh, leaf.sharding.spec))

    params = jax.tree.map(zeros, state_bytes.transformer(layers, width, dtype, devices))
    tx = make()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)

    def held(tree):
        first = jax.devices()[0]
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == first)

    computed = state_bytes.measure(state_bytes.CHOICES[choice], layers, width, devices)
    assert (computed["weights"], computed["state"]) == (held(params), held(state))
    assert computed["state"] < 1.01 * 2 * computed["parameters"] * 4 / devices
