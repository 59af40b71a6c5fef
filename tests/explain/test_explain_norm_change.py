"""norm_change after an optimizer: what holds a norm, what only brakes it, and the decay beside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, kinds, random_grads, small_params

import optax_decoupled as od

INNER = {
    "adamw": (lambda c: od.adamw(LR, c), 1e-4),
    "sgdw": (lambda c: od.sgdw(10 * LR, c), 1e-4),
    "lion": (lambda c: od.decouple(optax.lion(LR, weight_decay=0.0), c), 1e-4),
}
every_inner = pytest.mark.parametrize(("make", "c"), INNER.values(), ids=INNER)


def _explained(inner, outward, inward, params=None, **kwargs):
    tx = optax.chain(inner, od.norm_change(outward=outward, inward=inward))
    return od.explain_weight_decay(tx, params or small_params(), **kwargs)


@every_inner
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_norm_that_is_held_is_constrained(make, c, decay):
    report = _explained(make(decay * c), 0.0, 0.0)
    assert kinds(report) == {"constrained"}


@every_inner
@pytest.mark.parametrize("factors", [(0.5, 1.0), (0.25, 1.0), (0.5, 0.5), (2.0, 1.0)])
def test_a_brake_is_no_decay_and_the_decay_beside_it_is_decoupled(make, c, factors):
    outward, inward = factors
    for row in _explained(make(0.0), *factors).rows:
        assert (row.kind, row.decay_per_step) == ("none", 0.0)
    report = _explained(make(c), *factors)
    assert kinds(report) == {"decoupled"}
    for row in report.rows:  # of weights that shrink
        assert row.decay_per_step == pytest.approx(inward * c, rel=1e-3)
    assert not any("coupled" in text or "gradient" in text for text in report.warnings)
    (note,) = [text for text in report.notes if "radial brake" in text]
    assert f"multiplies the growth of 'dense/bias', 'dense/kernel' by {outward:.2g}." in note


@every_inner
def test_one_and_one_is_the_optimizer_alone(make, c):
    for decay in (0.0, c):
        alone = od.explain_weight_decay(make(decay), small_params())
        assert _explained(make(decay), 1.0, 1.0).rows == alone.rows
        assert not any("brake" in text for text in alone.notes)


@pytest.mark.parametrize("shape", [(3,), (5,), (3, 3), (64,)])
def test_a_brake_on_gradients_that_are_not_orthogonal(shape):
    """Those of the caller, and of synthetic ones where the number of elements is odd."""
    params = {"w": jnp.ones(shape)}
    for grads in (None, random_grads(params, 1)):
        for decay, kind in ((0.0, "none"), (1e-4, "decoupled")):
            (row,) = _explained(od.adamw(LR, decay), 0.5, 1.0, params, grads=grads).rows
            assert row.kind == kind
            assert row.decay_per_step == pytest.approx(decay, rel=1e-3)


@pytest.mark.parametrize("make", [od.adam_l2, od.sgd_l2])
def test_l2_under_a_brake_is_coupled_and_alone(make):
    report = _explained(make(LR, 1e-2), 0.5, 1.0)
    assert kinds(report) == {"coupled"}
    assert not any("act at once" in text for text in report.warnings)
    assert any("Whether a decoupled decay acts besides" in text for text in report.notes)


@pytest.mark.parametrize("make", [od.adamw, od.sgdw])
def test_cautious_decay_under_a_brake_is_cautious(make):
    report = _explained(make(LR, 1e-4, cautious=True), 0.5, 1.0)
    assert kinds(report) == {"cautious"}
    for row in report.rows:
        assert row.decay_per_step == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("optimizer", [optax.adam, optax.sgd])
def test_l1_decay_under_a_brake_is_nonlinear(optimizer):
    shrink = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p: u - 1e-4 * jnp.sign(p), updates, params)
    )
    assert kinds(_explained(optax.chain(optimizer(LR), shrink), 0.5, 1.0)) == {"nonlinear"}


def test_a_brake_on_gradients_nearly_along_the_weight():
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.array([1.0, 0.9])}
    (row,) = _explained(od.sgdw(10 * LR, 1e-4), 0.5, 1.0, params, grads=grads).rows
    assert row.kind == "decoupled"
    assert row.decay_per_step == pytest.approx(1e-4, rel=1e-3)


def test_a_decay_that_shortens_a_few_numbers_is_no_brake():
    """The growth of three numbers is 0.55 of that without decay, but not at each size alike."""
    tx = od.adamw(LR, lambda _: 0.01)
    report = od.explain_weight_decay(tx, {"w": jnp.ones(3), "kernel": jnp.ones((16, 24))})
    assert kinds(report) == {"decoupled"}
    assert not any("brake" in text for text in report.notes)


@pytest.mark.parametrize(("outward", "is_named"), [(0.97, False), (0.9, True)])
def test_a_brake_of_less_than_five_percent_is_not_named(outward, is_named):
    report = _explained(od.adamw(LR, 1e-4), outward, 1.0, {"kernel": jnp.ones((16, 24))})
    assert kinds(report) == {"decoupled"}
    assert any("radial brake" in text for text in report.notes) == is_named


def test_single_numbers_under_a_brake():
    params = {"scale": jnp.ones(()), "shift": jnp.ones((1,)), "kernel": jnp.ones((4, 4))}
    for decay, kind in ((0.0, "none"), (1e-4, "decoupled")):
        report = _explained(od.adamw(LR, decay), 0.5, 1.0, params)
        assert kinds(report) == {kind}
        assert {round(row.decay_per_step, 7) for row in report.rows} == {decay}
        (note,) = [text for text in report.notes if "radial brake" in text]
        assert "growth of 'kernel' by 0.5" in note


def test_frozen_parameters_have_no_part_in_the_brake_of_single_numbers():
    params = {"on": {"scale": jnp.ones(()), "kernel": jnp.ones((4, 4))}}
    params |= {"off": jax.tree.map(jnp.copy, params["on"])}
    braked = optax.chain(od.adamw(LR, 1e-4), od.norm_change(outward=0.5, inward=1.0))
    groups = {"on": braked, "off": optax.set_to_zero()}
    report = od.explain_weight_decay(optax.partition(groups, {"on": "on", "off": "off"}), params)
    assert [row.kind for row in report.rows] == ["none", "none", "decoupled", "decoupled"]
    assert [round(row.decay_per_step, 7) for row in report.rows] == [0, 0, 1e-4, 1e-4]
    (note,) = [text for text in report.notes if "radial brake" in text]
    assert "growth of 'on/kernel' by" in note


def test_the_budget_under_a_brake_is_that_of_weights_that_shrink():
    eta = optax.cosine_decay_schedule(1.0, 1000)
    report = _explained(od.adamw(LR, 1e-4, schedule=eta), 0.5, 1.0, steps=1000)
    budgets = [row.budget for row in report.rows]
    np.testing.assert_allclose(
        budgets, 1e-4 * (np.cos(np.pi * np.arange(1000) / 1000) + 1).sum() / 2, rtol=3e-3
    )


def test_an_array_of_multipliers_under_a_brake():
    mask = {"dense": {"kernel": np.linspace(1, 0.5, 8)[:, None], "bias": False}}
    for inner in (od.adamw(LR, 1e-4, mask=mask), od.sgdw(10 * LR, 1e-4, mask=mask)):
        bias, kernel = _explained(inner, 0.5, 1.0).rows
        assert (bias.kind, kernel.kind) == ("none", "decoupled")
        assert kernel.decay_range == pytest.approx((5e-5, 1e-4), rel=1e-3)


PROPORTIONAL = {
    "lamb": lambda: od.decouple(optax.lamb(0.1), 1e-3),
    "lars": lambda: od.decouple(optax.lars(0.1, trust_coefficient=1.0, momentum=0.0), 1e-3),
    "adafactor": lambda: optax.adafactor(0.1, weight_decay_rate=1e-3),
    "adaptive clip": lambda: optax.chain(
        optax.adaptive_grad_clip(0.1), optax.sgd(1.0), od.add_decoupled_weight_decay(1e-3)
    ),
}


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_steps_in_proportion_to_the_weights_are_no_brake(name):
    params = {"k": jnp.full((16, 24), 0.1), "b": jnp.zeros(24)}
    report = od.explain_weight_decay(PROPORTIONAL[name](), params)
    assert {row.kind for row in report.rows} == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-2)
    assert not any("brake" in note for note in report.notes)
