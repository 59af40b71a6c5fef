"""Writes rollfast.json: trajectories of rollfast's hyperball and SODA, which compute in float32.

Run `python tests/ecosystem/golden/make_rollfast.py` where rollfast is installed. The problem and
the cosine are those of pytorch.json, with the six parameters as a matrix of 2 rows.
"""

import importlib.metadata
import json
import pathlib

import jax
import jax.numpy as jnp
import optax
from rollfast.optim.hyperball import (  # pyright: ignore[reportMissingImports]
    adamw_hyperball,
)
from rollfast.optim.soda import soda  # pyright: ignore[reportMissingImports]

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE / "pytorch.json").read_text())
SHAPE = (2, 3)


def train(tx) -> list[list[float]]:
    matrix = lambda x: jnp.asarray(x, jnp.float32).reshape(SHAPE)
    params = matrix(GOLDEN["theta"])
    state, update, path = tx.init(params), jax.jit(tx.update), []
    for noise in GOLDEN["noise"]:
        grad = matrix(GOLDEN["curvature"]) * params + matrix(noise)
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params.ravel().tolist())
    return [path[t] for t in GOLDEN["keep"]]


def rate(lr):
    return optax.cosine_decay_schedule(lr, GOLDEN["steps"])


def record():
    cases = {}
    for lr in (0.02, 0.005):
        cases[f"soda at {lr}"] = {"lr": lr, "theta": train(soda(optax.adam(rate(lr))))}
        for decay in (0.0, 0.3):
            theta = train(adamw_hyperball(rate(lr), weight_decay=decay))
            cases[f"hyperball at {lr}, {decay}"] = {"lr": lr, "decay": decay, "theta": theta}
    return {"rollfast": importlib.metadata.version("rollfast"), "cases": cases}


if __name__ == "__main__":
    (HERE / "rollfast.json").write_text(json.dumps(record()) + "\n")
