"""One of two processes that explain parameters spread over both: COORDINATOR NUMBER."""

import sys

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od


def _params():
    kernel = 0.3 * jax.random.normal(jax.random.key(0), (64, 32))
    return {"kernel": kernel, "bias": jnp.zeros(32), "step": jnp.arange(4)}


def main() -> None:
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    spec = lambda p: NamedSharding(mesh, P("data") if p.ndim > 1 else P())
    layout = jax.tree.map(spec, jax.eval_shape(_params))
    params = jax.jit(_params, out_shardings=layout)()
    assert not params["kernel"].is_fully_addressable
    l2 = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, 0.9))
    for tx, kind in ((od.adamw(1e-3, 1e-4, mask=od.decay_mask), "decoupled"), (l2, "coupled")):
        state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)
        for given in ({}, {"state": state}, {"state": state, "grads": params}):
            rows = {row.path: row for row in od.explain_weight_decay(tx, params, **given).rows}
            assert rows["kernel"].kind == kind
            assert abs(rows["kernel"].decay_per_step / 1e-4 - 1) < 1e-3
    print("explained")


if __name__ == "__main__":
    main()
