"""Leaves of every sort, dtype and precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, kinds, small_params

import optax_decoupled as od


def test_shapes_will_do():
    params = {**small_params(), "step": jnp.arange(3)}
    tx = od.adamw(LR, 1e-4, mask=od.decay_mask)
    report = od.explain_weight_decay(tx, jax.eval_shape(lambda: params))
    assert report.rows == od.explain_weight_decay(tx, params).rows


@pytest.mark.parametrize("tx", [od.adamw(LR, 1e-4), od.sgdw(LR, 1e-4)], ids=["adamw", "sgdw"])
def test_leaves_of_every_sort(tx):
    params = {
        "array": np.ones(3, np.float32),
        "bool": jnp.array(True),
        "complex": jnp.ones(5, jnp.complex64),
        "empty": {},
        "half": jnp.ones(3, jnp.float16),
        "int": jnp.arange(3),
        "nan": jnp.full(4, jnp.nan),
        "none": None,
        "number": 1.5,
        "sized zero": jnp.zeros((0, 3)),
    }
    report = od.explain_weight_decay(tx, params)
    decaying = {row.path for row in report.rows if row.kind == "decoupled"}
    assert decaying == {"array", "complex", "half", "nan", "number"}
    assert {row.path for row in report.rows} - decaying == {"bool", "int", "sized zero"}
    chosen = [row.decay_per_step for row in report.rows if row.path in decaying]
    np.testing.assert_allclose(chosen, 1e-4, rtol=1e-3)


@pytest.mark.parametrize("params", [{}, {"count": jnp.arange(3)}], ids=["nothing", "integers"])
def test_nothing_to_decay(params):
    report = od.explain_weight_decay(optax.sgd(LR), params)
    assert kinds(report) <= {"none"}
    assert "Nothing decays" in report.warnings[0]
    assert len(str(report)) > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("side", [0.99, 1.01])
def test_decay_lost_to_rounding(dtype, side):
    """The row says what happens to every number of the dtype."""
    c = side * float(jnp.finfo(dtype).eps) / 4
    params = {"w": jnp.linspace(1, 2, 2**11, endpoint=False).astype(dtype)}
    tx = optax.chain(optax.add_decayed_weights(c / LR), optax.sgd(LR))
    report = od.explain_weight_decay(tx, params)
    (row,) = report.rows
    stays = (params["w"].astype(jnp.float32) * (1 - c)).astype(dtype) == params["w"]
    assert row.dtype == dtype
    assert row.decay_per_step == pytest.approx(c, rel=1e-3)
    assert row.lost_to_rounding == bool(stays.all()) == (side < 1)
    assert any("with apply_updates_with_stoch" in text for text in report.warnings) == (side < 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_narrow_parameters_are_probed_in_float32(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), small_params())
    for tx in (
        optax.adamw(LR, weight_decay=0.01),
        optax.apply_if_finite(optax.adamw(LR, weight_decay=0.01, mu_dtype=jnp.float32), 2),
        optax.MultiSteps(od.adamw(LR, 1e-5), 2),
    ):
        report = od.explain_weight_decay(tx, params, state=tx.init(params))
        assert kinds(report) == {"decoupled"}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-5, rtol=1e-3)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
def test_updates_that_are_not_finite_are_named(factor):
    tx = optax.chain(optax.adamw(LR, weight_decay=0.1), optax.scale(factor))
    report = od.explain_weight_decay(tx, small_params())
    assert "is not finite" in report.warnings[0]


def test_hyperparameters_that_underflow_are_named():
    """inject_hyperparams keeps b2 in bfloat16, where it is 1: every update is NaN."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), small_params())
    report = od.explain_weight_decay(optax.inject_hyperparams(optax.adamw)(LR), params)
    assert "not finite" in report.warnings[0]
    assert "hyperparam_dtype" in report.warnings[0]


def test_copies_of_float16_parameters_do_not_overflow():
    params = jax.tree.map(lambda p: p.astype(jnp.float16), small_params())
    tx = optax.contrib.schedule_free_adamw(LR, weight_decay=1.0)
    report = od.explain_weight_decay(tx, params)
    assert kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], LR, rtol=1e-2)
