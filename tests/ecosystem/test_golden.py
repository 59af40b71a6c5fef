"""Trajectories of PyTorch's own optimizers, reached through the conversion functions."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "pytorch.json").read_text())


def _cosine(count):
    return 0.5 * (1 + jnp.cos(jnp.pi * count.astype(float) / GOLDEN["steps"]))


def _adamw(lr, weight_decay, convert=True):
    decay = od.weight_decay_from_pytorch(weight_decay, lr) if convert else weight_decay / 100
    return od.adamw(lr, decay, schedule=_cosine)


def _sgdw(lr, weight_decay):
    decay = od.weight_decay_from_pytorch(weight_decay, lr)  # Proposition 1: no momentum
    return od.sgdw(lr, decay, schedule=_cosine, momentum=0.0)


def _sgd_l2(lr, weight_decay, momentum, nesterov=False):
    return od.sgd_l2(
        lr,
        weight_decay,
        schedule=_cosine,
        momentum=momentum,
        nesterov=nesterov,
        scale_before_momentum=False,
    )


def _adam_l2(lr, weight_decay):
    return od.adam_l2(lr, weight_decay, schedule=_cosine)


PORTS = {
    "adamw": _adamw,
    "adamw_other_rate": _adamw,
    "sgd": _sgdw,
    "sgd_momentum": _sgd_l2,
    "sgd_nesterov": _sgd_l2,
    "adam_l2": _adam_l2,
}


def _path(tx):
    with jax.enable_x64(True):
        theta = jnp.asarray(GOLDEN["theta"], float)
        curvature = jnp.asarray(GOLDEN["curvature"], float)

        def step(carry, noise):
            params, state = carry
            updates, state = tx.update(curvature * params + noise, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        noise = jnp.asarray(GOLDEN["noise"], float)
        path = jax.jit(lambda c: jax.lax.scan(step, c, noise)[1])((theta, tx.init(theta)))
        return np.asarray(path)[GOLDEN["keep"]]


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_port_of_a_pytorch_optimizer_takes_its_steps(name):
    case = GOLDEN["cases"][name]
    np.testing.assert_allclose(_path(PORTS[name](**case["options"])), case["theta"], rtol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adamw_other_rate"])
def test_an_unconverted_decay_does_not(name):
    case = GOLDEN["cases"][name]
    path = _path(_adamw(**case["options"], convert=False))
    assert np.max(np.abs(path / np.asarray(case["theta"]) - 1)) > 1e-3
