"""What weights are pulled to is named; what only looks like a pull is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, kinds, small_params, trained

import optax_decoupled as od


def _toward_start(c):
    """Pulls the parameters to what they were at init, which the state keeps."""
    pull = lambda u, p, p0: u - c * (p - p0)
    return optax.GradientTransformation(
        lambda params: {"start": params},
        lambda u, state, params: (jax.tree.map(pull, u, params, state["start"]), state),
    )


@pytest.mark.parametrize("steps", [0, 5])
def test_decay_toward_something_is_named(steps):
    tx = optax.chain(optax.adam(LR), _toward_start(1e-3))
    params, state = trained(tx, small_params(), steps)
    report = od.explain_weight_decay(tx, params, state=state)
    assert kinds(report) == {"toward"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)
    assert any("Pulled to given values, and not to 0" in note for note in report.notes)


@pytest.mark.parametrize("make", [optax.contrib.dog, optax.contrib.dowg])
def test_a_step_by_the_distance_from_the_start_is_no_decay(make):
    """Its size is another at other parameters, its direction the gradient's."""
    assert kinds(od.explain_weight_decay(make(), small_params())) == {"none"}
    both = optax.chain(make(), od.add_decoupled_weight_decay(1e-3))
    report = od.explain_weight_decay(both, small_params())
    assert kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


def test_a_copy_in_the_state_that_nothing_is_pulled_to_changes_no_kind():
    keeps = optax.GradientTransformation(lambda params: params, lambda u, state, _=None: (u, state))
    for c, kind in [(1e-4, "decoupled"), (0.0, "none")]:
        report = od.explain_weight_decay(optax.chain(od.adamw(LR, c), keeps), small_params())
        assert kinds(report) == {kind}
    both = optax.chain(od.adamw(LR, 1e-3), _toward_start(1e-4))
    report = od.explain_weight_decay(both, small_params())
    assert kinds(report) == {"toward"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1.1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("make", [optax.contrib.dog, optax.contrib.dowg])
def test_a_step_as_long_as_the_way_so_far_changes_no_kind(make, steps, scale):
    """Whatever the gradients, those along the parameters too, and for a lone number."""
    params = {**small_params(), "scale": jnp.array(0.5)}
    grads = scale and jax.tree.map(lambda p: scale * p, params)
    for toward, kind in [(None, "decoupled"), (od.toward_init(), "toward")]:
        tx = optax.chain(make(), od.add_decoupled_weight_decay(1e-3, toward=toward))
        later, state = trained(tx, params, steps)
        report = od.explain_weight_decay(tx, later, state=state, grads=grads)
        assert kinds(report) == {kind}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-3, rtol=1e-3)


def _bound(tx):
    """With the argument of its update as explain can be given it."""
    teacher = jax.tree.map(lambda p: p + 1.0, small_params())
    return optax.GradientTransformation(tx.init, functools.partial(tx.update, reference=teacher))


def _anchored(anchor):
    pull = lambda u, p: u - 1e-4 * (p - jnp.resize(anchor, p.shape))
    add = lambda updates, params: jax.tree.map(pull, updates, params)
    return optax.chain(optax.adam(LR), optax.stateless(add))


PULLED = {
    "the start": (lambda: od.adamw(LR, 1e-4, toward=od.toward_init()), "toward"),
    "the start, SGD": (lambda: od.sgdw(LR, 1e-4, toward=od.toward_init()), "toward"),
    "a length": (lambda: od.adamw(LR, 1e-4, toward=od.toward_rms(1.0)), "nonlinear"),
    "its first length": (lambda: od.adamw(LR, 1e-4, toward=od.toward_rms()), "nonlinear"),
    "a bound tree": (lambda: _bound(od.adamw(LR, 1e-4, toward=od.toward_argument())), "toward"),
    "the same, SGD": (lambda: _bound(od.sgdw(LR, 1e-4, toward=od.toward_argument())), "toward"),
    "an array in the state": (
        lambda: optax.inject_hyperparams(_anchored)(anchor=jnp.ones(16)),
        "toward",
    ),
    "0, and noise": (
        lambda: optax.chain(od.adamw(LR, 1e-4), optax.add_noise(0.01, 0.5, 0)),
        "decoupled",
    ),
    "a sphere": (lambda: od.hyperball(optax.scale_by_adam(), LR), "constrained"),
}


@pytest.mark.parametrize("name", PULLED)
def test_what_weights_are_pulled_to_is_named(name):
    make, kind = PULLED[name]
    report = od.explain_weight_decay(make(), small_params())
    assert {row.kind for row in report.rows} == {kind}
    if kind == "toward":
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-4, rtol=1e-3)
    if kind == "nonlinear":  # which is what was asked for
        assert any("one to a target norm" in note for note in report.notes)
        assert not any("target norm" in warning for warning in report.warnings)


def test_a_gradient_that_the_state_keeps_is_no_pull():
    """Adan's, of the update before, whose difference from none is a step."""
    tx = optax.adan(optax.linear_schedule(0.0, LR, 10), weight_decay=1e-2)
    assert kinds(od.explain_weight_decay(tx, {"scale": jnp.array(3.0)})) == {"decoupled"}


def test_a_copy_that_small_gradients_do_not_move_still_follows():
    tx = optax.chain(optax.contrib.schedule_free_adamw(LR), od.add_decoupled_weight_decay(1e-3))
    params, state = trained(tx, {"scale": jnp.array(1.5)}, 4)
    grads = {"scale": jnp.array(1e-5)}
    (row,) = od.explain_weight_decay(tx, params, state=state, grads=grads).rows
    assert (row.kind, row.decay_per_step) == ("decoupled", pytest.approx(1e-3, rel=1e-3))


@pytest.mark.parametrize("make", [od.adamw, od.sgdw])
def test_momentum_of_a_number_is_no_pull(make):
    """Such as that of CLIP's temperature, in a run: its moment is a number too."""
    params = {"scale": jnp.array(2.0), "w": jnp.ones((8, 8))}
    for toward, kind in [(None, "decoupled"), (od.toward_init(), "toward")]:
        tx = make(LR, 1e-5, toward=toward)
        _, state = trained(tx, params, 3)
        assert kinds(od.explain_weight_decay(tx, params, state=state)) == {kind}
        assert kinds(od.explain_weight_decay(tx, params["scale"])) == {kind}


def test_only_a_length_that_is_asked_for_is_no_warning():
    shrink = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - 1e-4 * jnp.sign(p), u, p))
    transforms = {
        "start": od.adamw(LR, 1e-4, toward=od.toward_init()),
        "l1": optax.chain(optax.adam(LR), shrink),
    }
    tx = optax.partition(transforms, {"a": "start", "b": "l1"})
    report = od.explain_weight_decay(tx, {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))})
    assert [row.kind for row in report.rows] == ["toward", "nonlinear"]
    assert any("of 'b' depends on no gradient" in text for text in report.warnings)
