"""Any state of an optimizer is taken, and left alone."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import (
    LR,
    by_path,
    half_frozen,
    kinds,
    random_grads,
    small_params,
    trained,
    with_l2,
    with_master_copy,
)
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("steps", [0, 5])
def test_decay_before_adam_is_found_behind_a_master_copy(dtype, steps):
    tx = with_master_copy(with_l2(optax.adam(LR), 1e-2))
    params = jax.tree.map(lambda p: p.astype(dtype), small_params())
    params, state = trained(tx, params, steps)
    report = od.explain_weight_decay(tx, params, state=state)
    assert kinds(report) == {"coupled"}
    assert "is coupled" in report.warnings[0]
    assert all(math.isnan(row.half_life) and not row.lost_to_rounding for row in report.rows)
    assert "varies" in str(report)


def test_a_copy_counts_only_where_updates_are_made_of_it():
    """Not an average of the weights, nor the master copy of another parameter."""
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    mean = lambda old, new: jax.tree.map(lambda m, p: 0.99 * m + 0.01 * p, old, widen(new))
    average = optax.GradientTransformation(widen, lambda u, s, p: (u, mean(s, p)))
    params = {"a": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones((8, 8), jnp.bfloat16)}
    lost = lambda tx: [r.lost_to_rounding for r in od.explain_weight_decay(tx, params).rows]
    plain = od.adamw(LR, 1e-5)
    assert lost(optax.chain(plain, average)) == [True, True]
    groups = {"m": with_master_copy(plain), "p": plain}
    assert lost(optax.partition(groups, {"a": "m", "b": "p"})) == [False, True]


@pytest.mark.parametrize("steps", [100, 101, 102])
def test_the_last_update_that_is_looked_at(steps):
    report = od.explain_weight_decay(optax.MultiSteps(od.adamw(LR, 1e-5), steps), small_params())
    if steps <= 101:
        assert kinds(report) == {"decoupled"}
        assert report.notes[0].startswith(f"Measured at update {steps}")
    else:
        assert "Nothing decays within 100 updates" in report.warnings[0]


def test_what_cannot_be_measured_is_not_called_no_decay():
    report = od.explain_weight_decay(optax.MultiSteps(optax.adamw(LR), 128), small_params())
    assert "If others do, pass their step= or state=." in report.warnings[0]
    assert not any("its coefficient is 0" in warning for warning in report.warnings)


def test_a_warmup_from_zero_is_measured_at_its_first_step():
    warmup = optax.linear_schedule(0.0, 0.1, 10)
    report = od.explain_weight_decay(optax.adamw(warmup, weight_decay=0.1), small_params())
    assert by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-3, rel=1e-3)
    assert "Measured at update 2" in report.notes[0]


def test_accumulated_gradients_are_measured_when_they_are_applied():
    tx = optax.MultiSteps(od.adamw(LR, 1e-4, mask=od.decay_mask), 4)
    params, state = trained(tx, small_params(), 5)
    report = od.explain_weight_decay(tx, params, state=state)
    assert by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-4, rel=1e-3)
    assert "Measured at update 3" in report.notes[0]
    report.check()


def test_an_optimizer_that_never_moves_is_told():
    report = od.explain_weight_decay(optax.set_to_zero(), small_params())
    assert report.warnings[0].startswith("Nothing decays within 100 updates, none of which moves")
    assert report.notes == ()


def test_frozen_parameters_are_noted():
    report = od.explain_weight_decay(half_frozen(), small_params())
    assert report.notes == ("Not moved by this update: 'dense/bias'.",)


def test_copies_of_the_parameters_are_probed_with_them():
    """Schedule-free's z would read as a fraction of about 1."""
    tx = optax.contrib.schedule_free_adamw(LR, weight_decay=1.0)
    params, state = trained(tx, small_params(), 5)
    report = od.explain_weight_decay(tx, params, state=state)
    assert all(0 < row.decay_per_step < 2e-3 for row in report.rows)
    assert any("copies of the parameters" in note for note in report.notes)


def _after_warmup(number, peak=1e-2, steps=10, b1=0.9):
    """What update `number` (from 1) of a schedule-free optimizer passes on of its inner one's.

    Of the step of z: b1·c + 1 - b1, with c the weight of z in the average x, which is the
    square of the rate, of the sum of the weights (arXiv:2405.15682).
    """
    rates = peak * np.minimum(np.arange(1, number + 1) / steps, 1)
    return b1 * rates[-1] ** 2 / np.sum(rates**2) + 1 - b1


RATE = optax.linear_schedule(0.0, 1e-2, 10)
SCHEDULE_FREE = {
    "AdamW": lambda decay: optax.contrib.schedule_free_adamw(
        1e-2, warmup_steps=10, weight_decay=decay
    ),
    "SGD": lambda decay: optax.contrib.schedule_free_sgd(1e-2, warmup_steps=10, weight_decay=decay),
    "wrapped": lambda decay: optax.contrib.schedule_free(
        optax.adamw(RATE, b1=0.0, weight_decay=decay), RATE
    ),
}


@pytest.mark.parametrize("name", SCHEDULE_FREE)
@pytest.mark.parametrize("count", [None, 1, 4])
def test_a_schedule_free_warmup_has_the_decay_of_its_count(name, count):
    """Its first update moves nothing but by rounding, which is no step."""
    tx = SCHEDULE_FREE[name](0.1)
    state = None if count is None else trained(tx, small_params(), count)[1]
    report = od.explain_weight_decay(tx, small_params(), state=state)
    assert kinds(report) == {"decoupled"}
    count = count or 1
    c = 0.1 * 1e-2 * count / 10 * _after_warmup(count + 1)
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], c, rtol=1e-2)
    assert any("quarter" in text for text in report.warnings) is False


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_a_schedule_free_warmup_without_decay_has_none(name):
    report = od.explain_weight_decay(SCHEDULE_FREE[name](0.0), small_params())
    assert kinds(report) == {"none"}
    (row, _) = od.explain_weight_decay(SCHEDULE_FREE[name](0.1), small_params(), step=0).rows
    assert row.kind == "none"


def test_a_pull_beside_a_schedule_free_warmup_is_one():
    pull = od.add_decoupled_weight_decay(1e-3, toward=od.toward_init())
    tx = optax.chain(SCHEDULE_FREE["wrapped"](0.0), pull)
    report = od.explain_weight_decay(tx, small_params())
    assert kinds(report) == {"toward"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-2)


def test_the_state_is_left_alone():
    tx = od.adamw(LR, 1e-4, schedule=optax.cosine_decay_schedule(1.0, 20))
    params, state = trained(tx, small_params(), 10)
    before = jax.tree.map(np.array, state)
    report = od.explain_weight_decay(tx, params, state=state)
    assert report.rows[0].decay_per_step == pytest.approx(0.5e-4, rel=1e-3)
    assert od.explain_weight_decay(tx, params).rows[0].decay_per_step == pytest.approx(1e-4)
    chex.assert_trees_all_equal(state, before)
    tx.update(random_grads(params, 0), state, params)  # and was not donated


def test_a_state_is_left_alone_while_updates_move_nothing():
    def update(grads, state, params):
        count, constant = state  # what passes through may share its memory with the argument
        moves = jnp.where(count < 5, 0.0, 1.0)
        updates = jax.tree.map(lambda g, p: moves * (-g - 1e-3 * p), grads, params)
        return updates, (count + 1, constant)

    tx = optax.GradientTransformation(lambda _: (jnp.int32(0), jnp.full(3, 2.0)), update)
    params = {"kernel": jnp.ones((4, 4))}
    state = tx.init(params)
    report = od.explain_weight_decay(tx, params, state=state)
    assert report.rows[0].kind == "decoupled"
    assert report.notes[0].startswith("Measured at update 6")
    assert state[0] == 0
    np.testing.assert_array_equal(state[1], [2, 2, 2])


def test_nnx_optimizers_and_states():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)

    model = Model(nnx.Rngs(0))
    tx = od.adamw(LR, 1e-4, schedule=optax.linear_schedule(1.0, 0.0, 4), mask=od.decay_mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def loss(model):
        return jnp.sum(model.norm(model.linear(jnp.ones((2, 3)))) ** 2)

    optimizer.update(model, nnx.grad(loss)(model))
    params, before = nnx.state(model, nnx.Param), jax.tree.map(np.array, optimizer.opt_state)
    for state, c in [(None, 1e-4), (optimizer.opt_state, 0.75e-4)]:
        report = od.explain_weight_decay(tx, params, state=state, grads=nnx.grad(loss)(model))
        rows = by_path(report)
        assert rows["linear/kernel"].decay_per_step == pytest.approx(c, rel=1e-3)
        assert {k for k, row in rows.items() if row.kind == "none"} == {
            "linear/bias",
            "norm/bias",
            "norm/scale",
        }
        report.check()
    chex.assert_trees_all_equal(jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(before))


def test_sharded_parameters_and_states():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    layout = {"dense": {"kernel": P("data", "model"), "bias": P("model")}}
    params = jax.tree.map(
        lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), small_params(), layout
    )
    tx = od.adamw(LR, 1e-4, mask=od.decay_mask)
    params, state = trained(tx, params, 2)
    report = od.explain_weight_decay(tx, params, state=state)
    assert by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-4, rel=1e-3)
    report.check()
    spread = jax.tree.map(
        jax.device_put,
        small_params(),
        {"dense": {"kernel": jax.devices()[1], "bias": jax.devices()[2]}},
    )
    od.explain_weight_decay(tx, spread).check()


def _late():
    """A transform whose state starts with None."""

    def update(updates, state, params=None):
        return updates, {"norm": optax.tree.norm(updates)}

    return optax.GradientTransformation(lambda _: {"norm": None}, update)


@pytest.mark.parametrize(
    "watch",
    [lambda: optax.monitor({"norm": optax.tree.norm}), _late],
    ids=["monitor", "None at first"],
)
@pytest.mark.parametrize("copied", [False, True])
def test_a_state_may_gain_leaves_at_the_first_update(watch, copied):
    inner = od.adamw(LR, 1e-4)
    tx = optax.chain(with_master_copy(inner) if copied else inner, watch())
    for steps in (None, 0, 3):
        params, state = trained(tx, small_params(), steps or 0)
        state = None if steps is None else state
        report = od.explain_weight_decay(tx, params, state=state)
        assert kinds(report) == {"decoupled"}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-4, rtol=2e-3)


def test_an_nnx_optimizer_is_taken_at_its_step():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    optimizer = nnx.Optimizer(model, od.adamw(LR, 1e-4, schedule=schedule), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    for c in (1e-4, 0.75e-4):
        rows = od.explain_weight_decay(optimizer, params).rows
        np.testing.assert_allclose([row.decay_per_step for row in rows], c, rtol=1e-3)
        optimizer.update(model, jax.tree.map(jnp.ones_like, params))
