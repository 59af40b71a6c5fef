"""Every optimizer is told for what it is, every broken chain by name."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import (
    KERNELS,
    LR,
    SLOW,
    by_path,
    cases,
    half_frozen,
    kinds,
    only_kernels,
    random_grads,
    small_params,
    trained,
    with_l2,
)

import optax_decoupled as od

# What removes a fixed fraction c, whatever the gradients.
DECOUPLED = {
    "optax.adamw": (lambda: optax.adamw(LR, weight_decay=0.1), 1e-4),
    "optax.lion": (lambda: optax.lion(LR, weight_decay=0.1), 1e-4),
    "optax.sgd": (lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR)), 1e-4),
    "optax.adafactor": (lambda: optax.adafactor(LR, weight_decay_rate=1e-4), 1e-4),
    "optax.adafactor with momentum": (
        lambda: optax.adafactor(LR, weight_decay_rate=1e-4, momentum=0.9),
        1e-4,
    ),
    "optax.contrib.muon": (
        lambda: optax.contrib.muon(LR, weight_decay=0.1, adam_weight_decay=0.1),
        1e-4,
    ),
    "schedule-free": (lambda: optax.contrib.schedule_free_adamw(LR, weight_decay=1.0), 1e-3),
    "MultiSteps": (lambda: optax.MultiSteps(optax.adamw(LR, weight_decay=0.1), 3), 1e-4),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.adamw(LR, weight_decay=0.1), 2), 1e-4),
    "clipped": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.1)),
        1e-4,
    ),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(optax.adamw)(LR, weight_decay=0.1),
        1e-4,
    ),
    "noisy": (
        lambda: optax.chain(
            optax.add_noise(0.1, 0.5, key=jax.random.key(0)), optax.adamw(LR, weight_decay=0.1)
        ),
        1e-4,
    ),
    "jitted": (
        lambda: optax.GradientTransformation(od.adamw(LR, 1e-4).init, jax.jit(_jitted_update)),
        1e-4,
    ),
    "adamw": (lambda: od.adamw(LR, 1e-4), 1e-4),
    "sgdw": (lambda: od.sgdw(LR, 1e-4), 1e-4),
    "sgd_l2 without momentum": (lambda: od.sgd_l2(0.1, 1e-3, momentum=0.0), 1e-4),
    "adamwr": (lambda: od.adamwr(LR, 1e-3, first_cycle_steps=100), 1e-4),
    "sgdwr": (lambda: od.sgdwr(LR, 1e-3, first_cycle_steps=100), 1e-4),
    "decouple(lion)": (lambda: od.decouple(optax.lion(LR, weight_decay=0.0), 1e-4), 1e-4),
    "decouple(lamb)": (lambda: od.decouple(optax.lamb(LR), 1e-4), 1e-4),
    "tiny": (lambda: od.adamw(LR, 1e-8), 1e-8),
}


def _jitted_update(grads, state, params):
    return od.adamw(LR, 1e-4).update(grads, state, params)


@pytest.mark.parametrize(("make", "c"), cases(DECOUPLED, SLOW))
def test_decoupled_decay_is_measured(make, c):
    """Also of the bias, which is zero."""
    tx = make()
    report = od.explain_weight_decay(tx, small_params())
    assert kinds(report) == {"decoupled"}
    tolerance = 2e-3 if any("copies" in note for note in report.notes) else 1e-3
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], c, rtol=tolerance)
    calls = 3 if isinstance(tx, optax.MultiSteps) else 1
    half_lives = [row.half_life / calls for row in report.rows]
    np.testing.assert_allclose(half_lives, math.log(2) / -math.log1p(-c), rtol=tolerance)


COUPLED = {
    "optax.sgd with momentum": lambda: optax.chain(
        optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9)
    ),
    "decay before Adam": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.adam(LR)),
    "decay before lion": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.lion(LR, weight_decay=0.0)
    ),
    "decay before RMSProp": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.rmsprop(LR)),
    "decay before Adagrad": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.adagrad(LR)),
    "decay before clipping": lambda: optax.chain(
        optax.add_decayed_weights(1e-2), optax.clip_by_global_norm(1.0), optax.sgd(LR)
    ),
    "decay before MultiSteps' Adam": lambda: optax.MultiSteps(od.adam_l2(LR, 1e-4), 3),
    "optax.lamb": lambda: optax.lamb(LR, weight_decay=0.01),
    "optax.lars": lambda: optax.lars(LR, weight_decay=0.01),
    "optax.novograd": lambda: optax.novograd(LR, weight_decay=0.01),
    "adam_l2": lambda: od.adam_l2(LR, 1e-4),
    "sgd_l2": lambda: od.sgd_l2(LR, 1e-4),
}


@pytest.mark.parametrize("make", cases(COUPLED, SLOW))
def test_coupled_decay_is_named(make):
    report = od.explain_weight_decay(make(), small_params())
    assert kinds(report) == {"coupled"}
    # A sign-based step hides L2 where the gradient is larger than it.
    assert all(0.0 <= row.decay_per_step < 0.01 for row in report.rows)
    assert report.rows[1].decay_per_step > 0.0
    assert "is coupled" in report.warnings[0]
    assert not any("at once" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_l2(optax.lamb(LR), 1e-4),
        lambda: with_l2(optax.adafactor(LR), 1e-4),
        lambda: optax.contrib.schedule_free(with_l2(optax.adam(LR, b1=0.0), 1e-4), LR),
        lambda: with_l2(optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.float16)),
    ],
    ids=["lamb", "adafactor", "schedule-free", "float16 momentum"],
)
def test_l2_alone_is_not_called_double(make):
    """Where steps grow with the parameters, copies round, or an accumulator overflows."""
    params = {"dense": {"kernel": 0.05 * jax.random.normal(jax.random.key(0), (64, 64))}}
    report = od.explain_weight_decay(make(), params)
    assert kinds(report) == {"coupled"}
    assert not any("at once" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(LR),
        lambda: optax.lamb(LR),  # a trust ratio depends on the parameters, but is no decay
        lambda: optax.contrib.schedule_free_adamw(LR),
        lambda: optax.contrib.schedule_free_adamw(LR, b1=0.7),
        lambda: optax.contrib.schedule_free_sgd(LR),
        lambda: optax.adaptive_grad_clip(0.01),
        lambda: od.adamw(LR, 0.0),
        lambda: od.sgdw(LR, 1e-4, mask=lambda params: jax.tree.map(lambda _: False, params)),
        lambda: optax.adamw(LR, mask=lambda params: jax.tree.map(lambda _: False, params)),
    ],
    ids=[
        "adam",
        "lamb",
        "schedule-free",
        "schedule-free, b1 = 0.7",
        "schedule-free SGD",
        "agc",
        "λ = 0",
        "our empty mask",
        "an empty mask",
    ],
)
def test_no_decay_is_a_warning(make):
    report = od.explain_weight_decay(make(), small_params())
    assert kinds(report) == {"none"}
    assert all((row.decay_per_step, row.half_life) == (0.0, math.inf) for row in report.rows)
    (warning,) = report.warnings
    assert "Nothing decays" in warning
    assert "mask" in warning


@pytest.mark.parametrize(
    "make",
    [
        lambda: od.adamw(LR, 1e-4, mask=od.decay_mask),
        lambda: od.sgdw(LR, 1e-4, mask=KERNELS),
        lambda: optax.adamw(LR, weight_decay=0.1, mask=only_kernels),
        lambda: optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
            LR, weight_decay=0.1, mask=only_kernels
        ),
        lambda: optax.contrib.muon(LR, weight_decay=0.1),
        half_frozen,
        lambda: optax.chain(
            optax.adam(LR), optax.masked(od.add_decoupled_weight_decay(1e-4), KERNELS)
        ),
    ],
    ids=["decay_mask", "a tree", "optax", "inject_hyperparams", "muon", "partition", "masked"],
)
def test_a_healthy_selection_passes_the_check(make):
    report = od.explain_weight_decay(make(), small_params())
    found = {path: row.kind for path, row in by_path(report).items()}
    assert found == {"dense/bias": "none", "dense/kernel": "decoupled"}
    report.check()


# Chains that train, and silently do something else than was meant.
BROKEN = {
    "decay before Adam": (COUPLED["decay before Adam"], "it passes through momentum, a precond"),
    "decay after the finished optimizer": (
        lambda: optax.chain(optax.adam(LR), optax.add_decayed_weights(1e-4)),
        "grow: the decay has the wrong sign. optax.add_decayed_weights belongs before",
    ),
    "our decay before the rate": (
        lambda: optax.chain(
            optax.scale_by_adam(), od.add_decoupled_weight_decay(1e-3), optax.scale(-LR)
        ),
        "grow: add_decoupled_weight_decay stands before the scaling by the learning rate",
    ),
    "our decay before everything": (
        lambda: optax.chain(od.add_decoupled_weight_decay(1e-3), optax.adam(LR)),
        "grow: add_decoupled_weight_decay stands before the scaling by the learning rate",
    ),
    "a mask that selects nothing": (
        lambda: optax.adamw(LR, mask=lambda params: jax.tree.map(lambda _: False, params)),
        "Nothing decays: .* its mask selects no parameter",
    ),
    "a mask called as a schedule": (
        lambda: optax.inject_hyperparams(optax.adamw)(LR, mask=only_kernels),
        r'takes every callable for a schedule .* Pass static_args=\("mask",\)',
    ),
    "L2 and decoupled, Adam": (
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.adamw(LR, weight_decay=0.01)),
        "L2 regularization and decoupled decay act at once on 'dense/bias', 'dense/kernel'",
    ),
    "L2 and decoupled, SGD": (
        lambda: optax.chain(od.sgd_l2(0.1, 1e-4), od.add_decoupled_weight_decay(1e-5)),
        "L2 regularization and decoupled decay act at once on 'dense/bias', 'dense/kernel'",
    ),
    "L2 and decoupled, lion": (
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.lion(LR, weight_decay=0.01)),
        "L2 regularization and decoupled decay act at once on 'dense/bias', 'dense/kernel'",
    ),
    "L2 and decoupled, RMSProp": (
        lambda: optax.chain(optax.add_decayed_weights(1e-4), od.decouple(optax.rmsprop(LR), 1e-5)),
        "L2 regularization and decoupled decay act at once on 'dense/bias', 'dense/kernel'",
    ),
    "decay on a bias": (lambda: od.adamw(LR, 1e-4), "Biases, .* decay: 'dense/bias'. Pass mask"),
    "a projection": (
        lambda: optax.chain(optax.adam(LR), optax.keep_params_nonnegative()),
        "changes 'dense/bias', 'dense/kernel' by more than a quarter of its value",
    ),
}


@pytest.mark.parametrize(("make", "name"), cases(BROKEN, SLOW))
def test_a_broken_chain_is_named(make, name):
    report = od.explain_weight_decay(make(), small_params())
    with pytest.raises(ValueError, match=name):
        report.check()


def test_one_mistake_is_named_once():
    make, _ = BROKEN["L2 and decoupled, Adam"]
    warnings = od.explain_weight_decay(make(), small_params()).warnings
    assert [text for text in warnings if "act at once" in text]
    assert not [text for text in warnings if "coupled: it passes" in text]


def test_a_negative_decay_is_named():
    tx = optax.inject_hyperparams(od.adamw)(LR, -1e-3)
    with pytest.raises(ValueError, match="or its weight_decay or schedule is negative"):
        od.explain_weight_decay(tx, small_params()).check()


@pytest.mark.parametrize("make", [BROKEN[k][0] for k in BROKEN if "rate" in k or "after" in k])
def test_growing_weights_have_a_negative_fraction(make):
    report = od.explain_weight_decay(make(), small_params())
    assert kinds(report) == {"growing"}
    assert all(row.decay_per_step < 0 and row.half_life == math.inf for row in report.rows)


def test_l2_and_decoupled_is_named_late_in_training():
    tx = BROKEN["L2 and decoupled, Adam"][0]()
    params, state = trained(tx, small_params(), 30)
    report = od.explain_weight_decay(tx, params, state=state)
    assert "act at once" in report.warnings[0]
    pure = od.adam_l2(LR, 1e-4)
    params, state = trained(pure, small_params(), 30)
    report = od.explain_weight_decay(pure, params, state=state)
    assert kinds(report) == {"coupled"}
    assert not any("act at once" in warning for warning in report.warnings)


def test_an_argument_with_a_name_like_mask_is_none():
    make = lambda rate, mask_probability: optax.adamw(rate, weight_decay=0.1 * mask_probability)
    tx = optax.inject_hyperparams(make)(LR, mask_probability=0.5)
    report = od.explain_weight_decay(tx, small_params())
    assert not any("mask function" in warning for warning in report.warnings)


def test_a_learning_rate_that_is_passed_as_schedule_is_noted():
    rate = optax.linear_schedule(3e-4, 3e-5, 100)
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.warns(UserWarning, match="split_schedule"):
        tx = od.adamw(3e-4, 1e-4, schedule=rate)
    mistaken = od.explain_weight_decay(tx, params)
    assert any("split_schedule" in note for note in mistaken.notes)
    peak, eta = od.split_schedule(rate, 3e-4)
    meant = od.explain_weight_decay(od.adamw(peak, 1e-4, schedule=eta), params)
    assert not any("split_schedule" in note for note in meant.notes)
    defaults = od.explain_weight_decay(optax.adamw(1e-3), params)  # 1e-7, up to rounding
    assert not any("split_schedule" in note for note in defaults.notes)


def _after_adam(function):
    """Adam, and what the function adds to a parameter's update."""
    add = lambda updates, params: jax.tree.map(lambda u, p: u + function(p), updates, params)
    return optax.chain(optax.adam(LR), optax.stateless(add))


def test_a_decay_of_either_sign_is_not_nothing():
    mixed = lambda p: -1e-4 * p * jnp.where(jnp.arange(p.size).reshape(p.shape) % 2, 1, -1)
    assert "none" not in kinds(od.explain_weight_decay(_after_adam(mixed), small_params()))


NONLINEAR = {
    "of either sign": lambda p: -1e-3 * p * jnp.where(jnp.arange(8)[:, None] == 0, -0.5, 1.0),
    "L1": lambda p: -1e-4 * jnp.sign(p),
    "clipped": lambda p: -1e-3 * jnp.clip(p, -0.05, 0.05),
    "clipped by its norm": lambda p: -1e-3 * p / jnp.maximum(1.0, 10 * jnp.linalg.norm(p)),
    "target norm": lambda p: -1e-3 * p * (1 - 0.1 / jnp.linalg.norm(p)),
    "of small weights": lambda p: -1e-3 * p * (abs(p) < 10),
    "less a part of the row's mean": lambda p: -1e-3 * (p - 0.3 * p.mean(1, keepdims=True)),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_decay_that_is_no_fraction_is_nonlinear(name):
    params = {"w": 0.3 * jax.random.normal(jax.random.key(0), (8, 16))}
    report = od.explain_weight_decay(_after_adam(NONLINEAR[name]), params)
    (row,) = report.rows
    assert row.kind == "nonlinear"
    assert math.isnan(row.half_life)
    removed = -np.sum(params["w"] * NONLINEAR[name](params["w"])) / np.sum(params["w"] ** 2)
    assert row.decay_per_step == pytest.approx(removed, rel=0.5)  # v is not params
    (warning,) = [text for text in report.warnings if "'w'" in text]
    assert "depends on no gradient" in warning
    assert "momentum" not in warning


def test_nonlinear_decay_in_a_momentum_is_coupled():
    """Beside a parameter of the same decay without momentum, whose kind depends on no gradient."""
    decay = optax.stateless(lambda _, params: jax.tree.map(lambda p: -0.1 * p * abs(p), params))
    groups = {"alone": decay, "remembered": optax.chain(decay, optax.trace(0.9))}
    weight = 0.3 * jax.random.normal(jax.random.key(0), (8, 16))
    tx = optax.partition(groups, {name: name for name in groups})
    found = by_path(od.explain_weight_decay(tx, dict.fromkeys(groups, weight)))
    assert {path: row.kind for path, row in found.items()} == {
        "alone": "nonlinear",
        "remembered": "coupled",
    }


RANGES = {
    "every other row": (lambda p: jnp.arange(8)[:, None] % 2, (0.0, 1.0)),
    "seven rows": (lambda p: jnp.arange(8)[:, None] < 7, (0.0, 1.0)),
    "a tenth more on one row": (lambda p: 1 + 0.1 * (jnp.arange(8)[:, None] == 0), (1.0, 1.1)),
    "elements": (lambda p: jnp.linspace(0.5, 2, p.size).reshape(p.shape), (0.5, 2.0)),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_fraction_of_each_element_has_a_range(name):
    multiplier, ends = RANGES[name]
    params = small_params()["dense"]["kernel"]
    report = od.explain_weight_decay(_after_adam(lambda p: -1e-3 * p * multiplier(p)), params)
    (row,) = report.rows
    assert row.kind == "decoupled"
    assert row.decay_range == pytest.approx([1e-3 * end for end in ends], rel=1e-3, abs=1e-9)
    mean = 1e-3 * float(jnp.mean(jnp.broadcast_to(multiplier(params), params.shape)))
    assert row.decay_per_step == pytest.approx(mean, rel=1e-3)
    assert row.half_life == pytest.approx(math.log(2) / -math.log1p(-mean), rel=1e-3)
    assert not report.warnings


def test_what_the_gradients_change_is_not_called_nonlinear():
    """L2 that is clipped or normalized with the gradient, without any momentum."""
    l2 = optax.add_decayed_weights(1e-2)
    for tx in (
        optax.chain(l2, optax.clip_by_global_norm(1.0), optax.sgd(LR)),
        optax.chain(l2, optax.sign_sgd(LR)),
        optax.lamb(LR, weight_decay=0.01),
    ):
        assert kinds(od.explain_weight_decay(tx, small_params())) == {"coupled"}


@pytest.mark.parametrize("make", [optax.sign_sgd, lambda rate: optax.lion(rate, weight_decay=0.0)])
def test_a_step_of_one_size_is_no_decay_of_a_number(make):
    """L2 may turn it, which beside a large weight looks like a tiny fraction of it."""
    report = od.explain_weight_decay(with_l2(make(2e-3), 3e-6), {"scale": jnp.zeros(())})
    assert kinds(report) == {"coupled"}


def _on_sphere(radius=None):
    """Adam, after which every parameter is scaled back to a norm: its own, or this one."""

    def project(u, p):
        moved = p + u
        return moved * ((radius or jnp.linalg.norm(p)) / jnp.linalg.norm(moved)) - p

    add = lambda updates, params: jax.tree.map(project, updates, params)
    return optax.chain(optax.adam(LR), optax.stateless(add))


@pytest.mark.parametrize("radius", [None, 2.0])
def test_an_update_that_holds_the_norm_is_constrained(radius):
    report = od.explain_weight_decay(_on_sphere(radius), small_params())
    assert kinds(report) == {"constrained"}
    assert all((row.decay_per_step, row.half_life) == (0.0, math.inf) for row in report.rows)
    assert report.warnings == ()
    assert any("holds a norm fixed" in note for note in report.notes)
    assert kinds(od.explain_weight_decay(optax.adam(LR), small_params())) == {"none"}


def test_over_a_run_too_a_norm_that_is_held_loses_nothing():
    rows = od.explain_weight_decay(_on_sphere(None), small_params(), steps=10).rows
    assert [(row.kind, row.budget, row.left) for row in rows] == [("constrained", 0.0, 1.0)] * 2


def test_decay_scaled_by_the_gradient_is_coupled():
    """And not decoupled, though at one gradient it is one fraction."""
    add = lambda g, p: jax.tree.map(lambda g, p: g + 1e-2 * jnp.linalg.norm(g) * p, g, p)
    report = od.explain_weight_decay(
        optax.chain(optax.stateless(add), optax.sgd(LR)), small_params()
    )
    assert kinds(report) == {"coupled"}


@pytest.mark.parametrize("c", [3e-7, 1e-6])
def test_a_faint_decay_is_seen_beside_copies_of_the_parameters(c):
    """Whose rounding is larger, but not along the parameters."""
    tx = optax.contrib.schedule_free_adamw(LR, weight_decay=c / LR)
    report = od.explain_weight_decay(tx, small_params())
    assert kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], c, rtol=0.1)


@pytest.mark.parametrize("make", [optax.contrib.dog, lambda: optax.adafactor(1e-2)])
def test_l2_is_coupled_where_the_moments_hide_small_gradients(make):
    tx = optax.chain(od.l2_to_grad(1e-3), make())
    params, state = trained(tx, small_params(), 4)
    grads = random_grads(params, 5, 1e-3)
    assert kinds(od.explain_weight_decay(tx, params, state=state, grads=grads)) == {"coupled"}


ENDS = {
    "at once": lambda count: jnp.where(count < 10, 1.0, 0.0),
    "with rounding": optax.linear_schedule(1.0, 0.0, 10),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("calls", [1, 2])
def test_the_last_update_of_a_schedule_has_the_kind_of_the_others(name, calls):
    transforms = {
        "toward": od.adamw(LR, 1e-3, schedule=ENDS[name], toward=od.toward_init()),
        "cautious": od.adamw(LR, 1e-3, schedule=ENDS[name], cautious=True),
        "coupled": od.sgd_l2(0.1, 1e-2, schedule=ENDS[name]),
    }
    tx = optax.MultiSteps(optax.partition(transforms, {kind: kind for kind in transforms}), calls)
    params = dict.fromkeys(transforms, jnp.ones((8, 16)))
    for step in (8, 9):
        rows = od.explain_weight_decay(tx, params, step=step).rows
        assert [row.kind for row in rows] == [row.path for row in rows]


def test_what_clips_weights_is_not_cautious():
    """It lets the same elements alone, whatever the gradients."""
    make, _ = BROKEN["a projection"]
    assert "cautious" not in kinds(od.explain_weight_decay(make(), small_params()))


def test_a_large_decay_warns_whoever_made_the_optimizer():
    params = {"w": jnp.ones((8, 16))}
    for rate, warns in [(0.1, True), (0.01, True), (0.0099, False)]:
        tx = optax.adafactor(LR, weight_decay_rate=rate)
        report = od.explain_weight_decay(tx, params)
        assert report.rows[0].decay_per_step == pytest.approx(rate, rel=1e-3)
        assert any("looks like a PyTorch value" in text for text in report.warnings) == warns


def test_a_penalty_inside_the_loss_can_be_made_visible():
    params = {"w": jnp.ones((8, 16))}
    report = od.explain_weight_decay(optax.adam(LR), params)
    assert "An L2 penalty inside the loss cannot be seen" in report.warnings[0]
    assert "l2_to_grad" in report.warnings[0]
    visible = optax.chain(od.l2_to_grad(1e-3), optax.adam(LR))
    assert kinds(od.explain_weight_decay(visible, params)) == {"coupled"}
    penalty = lambda params: 0.5e-3 * sum(jnp.sum(p**2) for p in jax.tree.leaves(params))
    add = lambda grads, params: jax.tree.map(jnp.add, grads, jax.grad(penalty)(params))
    (row,) = od.explain_weight_decay(optax.chain(optax.stateless(add), optax.sgd(0.1)), params).rows
    assert row.decay_per_step == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(("size", "kind"), [(1e-13, "decoupled"), (1e-9, "coupled")])
def test_a_memory_as_small_as_rounding_is_none(size, kind):
    """Of the parameters of one update in the next, where steps are of about 1e-3."""
    tree_map = jax.tree.map
    remember = optax.GradientTransformation(
        lambda params: tree_map(jnp.zeros_like, params),
        lambda u, old, p: (tree_map(jnp.add, u, old), tree_map(lambda p: -size * p, p)),
    )
    tx = optax.chain(od.adamw(LR, 1e-4), remember)
    assert kinds(od.explain_weight_decay(tx, small_params())) == {kind}


def test_every_parameter_that_decay_mask_spares_is_named_where_it_decays():
    mixer = {"A_log": jnp.ones((2, 3)), "D": jnp.ones(2), "in_proj": {"kernel": jnp.ones((2, 2))}}
    params = {"mixer": mixer, "temperature": jnp.ones(())}
    (warning,) = od.explain_weight_decay(od.adamw(LR, 1e-4), params).warnings
    assert warning.startswith("Biases, norms or other parameters that decay_mask spares decay")
    for path in ("mixer/A_log", "mixer/D", "temperature"):
        assert repr(path) in warning
    assert "in_proj" not in warning
    assert not od.explain_weight_decay(od.adamw(LR, 1e-4, mask=od.decay_mask), params).warnings
    assert not od.explain_weight_decay(od.adamw(LR, 1e-4), jnp.ones(())).warnings  # has no name


def test_an_inverted_mask_is_named():
    vectors = lambda params: jax.tree.map(lambda p: p.ndim < 2, params)
    report = od.explain_weight_decay(od.adamw(LR, 1e-4, mask=vectors), small_params())
    assert any("Only biases" in text and "inverted" in text for text in report.warnings)
    everything = od.explain_weight_decay(od.adamw(LR, 1e-4), small_params())
    assert any(text.startswith("Biases") for text in everything.warnings)
    assert not any("inverted" in text for text in everything.warnings)
    biases = od.explain_weight_decay(od.adamw(LR, 1e-4), {"bias": jnp.ones(4)})
    assert not any("inverted" in text for text in biases.warnings)


@pytest.mark.parametrize("matrices", [optax.set_to_zero(), od.hyperball(optax.scale_by_adam(), LR)])
def test_where_matrices_have_another_optimizer_no_mask_is_inverted(matrices):
    label = lambda params: jax.tree.map(lambda p: "matrix" if p.ndim > 1 else "rest", params)
    tx = optax.partition({"matrix": matrices, "rest": od.adamw(LR, 1e-4)}, label)
    report = od.explain_weight_decay(tx, small_params())
    assert any(text.startswith("Biases") for text in report.warnings)
    assert not any("inverted" in text for text in report.warnings)


def test_where_nothing_is_spared_vectors_are_noted():
    """Whatever they are called; and not where a mask spares one, or where there are no others."""
    params = {"a": jnp.ones((4, 4)), "q": jnp.ones(4)}
    noted = lambda tx, params: any(
        "those of one axis too: 'q'" in note for note in od.explain_weight_decay(tx, params).notes
    )
    assert noted(od.adamw(LR, 1e-4), params)
    assert not noted(od.adamw(LR, 1e-4, mask={"a": True, "q": False}), params)
    assert not noted(od.adamw(LR, 1e-4), {"q": jnp.ones(4)})
