"""The reported fractions and half-lives are those of real steps."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import (
    LR,
    by_path,
    kinds,
    random_grads,
    small_params,
    steps_to_halve,
    trained,
    with_l2,
    with_master_copy,
)

import optax_decoupled as od


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_l2(optax.sgd(0.1, momentum=0.9)),
        lambda: with_l2(optax.sgd(0.1, momentum=0.9, nesterov=True)),
        lambda: od.sgd_l2(0.1, 5e-4, scale_before_momentum=False),
        lambda: with_l2(optax.chain(optax.ema(0.9), optax.scale(-1.0)), 1e-3),
        lambda: with_master_copy(with_l2(optax.sgd(0.1, momentum=0.9))),
        lambda: with_master_copy(od.sgdw(0.1, 1e-3)),
    ],
    ids=["momentum", "nesterov", "sgd_l2", "ema", "master copy", "decoupled, master copy"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_half_lives_are_those_of_real_steps(make, dtype):
    """Momentum 0.9 repeats a decay until it is ten times as much."""
    params = {"w": jnp.ones((8, 16), dtype)}
    tx = make()
    (row,) = od.explain_weight_decay(tx, params).rows
    assert row.half_life == pytest.approx(693 if row.decay_per_step > 5e-4 else 1386, rel=0.02)
    copied = isinstance(tx.init(params)[0], dict)
    assert row.lost_to_rounding == (dtype == jnp.bfloat16 and not copied)
    if not row.lost_to_rounding:
        assert steps_to_halve(tx, params) == pytest.approx(row.half_life, rel=0.02)


def test_momentum_that_outlasts_the_decay_has_no_half_life():
    params = {"w": jnp.ones((8, 8))}
    for momentum, known in [(0.9, True), (0.99, False), (0.999, False)]:
        tx = od.sgd_l2(1e-2, 1e-2, momentum=momentum)
        (row,) = od.explain_weight_decay(tx, params).rows
        assert math.isnan(row.half_life) != known
        if known:
            assert steps_to_halve(tx, params) == pytest.approx(row.half_life, rel=0.02)


def test_a_mask_may_scale_the_decay():
    rules = od.decay_rules((".*/kernel", 0.5), (".*", 1.0))
    rows = by_path(od.explain_weight_decay(od.adamw(LR, 1e-3, mask=rules), small_params()))
    assert rows["dense/kernel"].decay_per_step == pytest.approx(0.5e-3, rel=1e-3)
    assert rows["dense/bias"].decay_per_step == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("learning_rate", [0.1, 0.02])
@pytest.mark.parametrize(
    "make",
    [
        lambda lr: optax.adamw(lr, weight_decay=0.05),
        lambda lr: od.adamw(lr, 0.003),
        lambda lr: od.sgdw(lr, 0.003, schedule=optax.cosine_decay_schedule(1.0, 40)),
        lambda lr: optax.lion(optax.linear_schedule(lr, lr / 4, 40), weight_decay=0.05),
        lambda lr: od.adamwr(lr, 0.01, first_cycle_steps=12),
    ],
    ids=["optax.adamw", "adamw", "sgdw cosine", "lion linear", "adamwr"],
)
def test_real_steps_remove_the_reported_fraction(make, learning_rate):
    """At a later state, real gradients: the distance of two parameters shrinks by 1 − c."""
    tx = make(learning_rate)
    params, state = trained(tx, small_params(), 20)
    grads = random_grads(params, 99)
    shift = jax.tree.map(lambda g: 10.0 * jnp.sign(g), random_grads(params, 100))
    starts = params, jax.tree.map(jnp.add, params, shift)
    ends = [optax.apply_updates(p, tx.update(grads, state, p)[0]) for p in starts]
    report = od.explain_weight_decay(tx, params, state=state, grads=grads)
    assert kinds(report) == {"decoupled"}
    for row, a, b, d in zip(report.rows, *map(jax.tree.leaves, (*ends, shift)), strict=True):
        distance, d = np.asarray(b, np.float64) - np.asarray(a, np.float64), np.float64(d)
        removed = 1 - np.sum(distance * d) / np.sum(d * d)
        assert removed > 100 * np.finfo(np.float32).eps
        assert row.decay_per_step == pytest.approx(removed, rel=1e-3)


def test_zero_gradients_decay_at_the_reported_fraction():
    tx, params = od.adamw(0.1, 0.005), {"w": jnp.linspace(0.5, 2.0, 7)}
    (row,) = od.explain_weight_decay(tx, params).rows
    theta, state = params, tx.init(params)
    for _ in range(50):
        updates, state = tx.update({"w": jnp.zeros(7)}, state, theta)
        theta = optax.apply_updates(theta, updates)
    measured = 1 - (theta["w"] / params["w"]) ** (1 / 50)
    chex.assert_trees_all_close(measured, jnp.full(7, row.decay_per_step), rtol=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_cautious_decay_is_that_of_the_elements_that_decay(sparse):
    params = small_params()
    grads = random_grads(params, 0, 1e-3)
    if sparse:
        grads = jax.tree.map(lambda g: jnp.where(g > 0, g, 0.0), grads)
    for tx in (od.sgdw(LR, 1e-4, cautious=True), od.adamw(LR, 1e-4, cautious=True)):
        report = od.explain_weight_decay(tx, params, grads=grads)
        assert kinds(report) == {"cautious"}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-4, rtol=1e-3)
        (note,) = [note for note in report.notes if "Cautious" in note]
        (share,) = map(int, re.findall(r"(\d+)%", note))
        assert 25 <= share <= 75  # about half of the random signs agree


def test_steps_that_grow_with_the_weights_are_not_cautious():
    """Here a step is as large as the decay: at first one of them undoes the other."""
    tx = optax.adafactor(LR, weight_decay_rate=1e-4, momentum=0.9)
    report = od.explain_weight_decay(tx, small_params())
    assert kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-4, rtol=1e-3)


def _left_after(tx, params, calls):
    """What this many calls with zero gradients leave of each weight."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    theta, state = params, tx.init(params)
    for _ in range(calls):
        updates, state = tx.update(zeros, state, theta)
        theta = optax.apply_updates(theta, updates)
    return float(jnp.mean(theta["w"] / params["w"]))


@pytest.mark.parametrize(
    ("make", "decay"),
    [
        (lambda: optax.chain(optax.adamw(LR, weight_decay=1.0), optax.apply_every(4)), 4e-3),
        (lambda: optax.MultiSteps(optax.adamw(LR, weight_decay=1.0), 4), 1e-3),
    ],
    ids=["apply_every", "MultiSteps"],
)
@pytest.mark.parametrize("before", [0, 3])
def test_half_lives_count_the_calls(make, decay, before):
    """Of which four make one update; a state may be from their midst."""
    tx, params = make(), {"w": jnp.linspace(0.5, 2.0, 16)}
    _, state = trained(tx, params, before)
    report = od.explain_weight_decay(tx, params, state=state)
    (row,) = report.rows
    assert row.kind == "decoupled"
    assert row.decay_per_step == pytest.approx(decay, rel=1e-3)
    assert row.half_life == pytest.approx(4 * math.log(2) / decay, rel=5e-3)
    assert 1 - _left_after(tx, params, 4) == pytest.approx(decay, rel=1e-2)
    assert any(note.startswith("4 calls of update make one") for note in report.notes)


@pytest.mark.parametrize("calls", [1, 4])
def test_the_last_update_of_a_schedule_has_its_own_half_life(calls):
    """Though no later one moves anything."""
    schedule = optax.piecewise_constant_schedule(LR, {10: 0.0})
    tx = optax.MultiSteps(optax.adamw(schedule, weight_decay=1.0), calls)
    (row,) = od.explain_weight_decay(tx, {"w": jnp.ones((8, 8))}, step=9).rows
    assert row.half_life == pytest.approx(calls * math.log(2) / 1e-3, rel=5e-3)
    (row,) = od.explain_weight_decay(tx, {"w": jnp.ones((8, 8))}, step=10).rows
    assert (row.kind, row.half_life) == ("none", math.inf)


def test_half_lives_count_the_gaps_of_a_schedule():
    schedule = lambda count: jnp.where(count % 3 == 0, 1.0, 0.0)
    tx, params = od.adamw(LR, 1e-3, schedule=schedule), {"w": jnp.ones((8, 8))}
    (row,) = od.explain_weight_decay(tx, params).rows
    assert row.half_life == pytest.approx(3 * math.log(2) / 1e-3, rel=5e-3)
    assert od.explain_weight_decay(tx, params, step=1).rows[0].kind == "none"


def test_an_update_that_moves_nothing_is_not_taken_for_the_only_one_that_does():
    schedule = lambda count: jnp.where(count == 1, LR, 0.0)
    tx = optax.adamw(schedule, weight_decay=1.0)
    report = od.explain_weight_decay(tx, {"w": jnp.ones((8, 8))}, step=0)
    assert report.rows[0].kind == "none"
    assert any("the update with count 0 moves nothing" in text for text in report.warnings)


@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("before", [0, 1])
def test_sam_decays_once_in_each_of_its_periods(period, before):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    tx = optax.contrib.sam(optax.adamw(LR, weight_decay=1.0), adversary, sync_period=period)
    params, state = trained(tx, {"w": jnp.linspace(0.5, 2.0, 16)}, before)
    (row,) = od.explain_weight_decay(tx, params, state=state).rows
    assert (row.kind, row.decay_per_step) == ("decoupled", pytest.approx(1e-3, rel=1e-3))
    assert row.half_life == pytest.approx(period * math.log(2) / 1e-3, rel=5e-3)


def test_adams_first_step_does_not_hide_l2():
    """There only eps shows it, a thousandth of what the second step removes."""
    params = {"w": jnp.ones((40, 50))}
    make = lambda eps: with_l2(optax.adam(LR, eps=eps), 1e-3)
    rows = [od.explain_weight_decay(make(eps), params).rows[0] for eps in (1e-8, 1e-5)]
    assert rows[0].decay_per_step > 1e-5
    assert rows[1].decay_per_step == pytest.approx(rows[0].decay_per_step, rel=1e-2)


def test_a_coupled_fraction_depends_on_the_gradients():
    """L2 through Adam is divided by the size of the gradient."""
    tx, params = od.adam_l2(LR, 1e-4), {"w": jnp.ones((40, 50))}
    _, state = trained(tx, params, 20)
    (row,) = od.explain_weight_decay(tx, params, state=state).rows
    small, large = (
        od.explain_weight_decay(tx, params, grads=random_grads(params, 0, scale)).rows[0]
        for scale in (1e-2, 1.0)
    )
    assert {row.kind, small.kind, large.kind} == {"coupled"}
    assert small.decay_per_step > 5 * large.decay_per_step
