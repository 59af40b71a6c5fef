"""explain_weight_decay: every optimizer is told for what it is, every broken chain by name."""

import json
import math
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od

LR = 1e-3
KERNELS = {"dense": {"kernel": True, "bias": False}}


def _cases(table, slow=()):
    """The parametrization of a table, with its slower half left to the gate."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id=name,
            marks=[pytest.mark.slow] * (name in slow),
        )
        for name, case in table.items()
    ]


def _params():
    kernel = 0.3 * jax.random.normal(jax.random.key(0), (8, 16))
    return {"dense": {"kernel": kernel, "bias": jnp.zeros(16)}}


def _grads(params, seed, scale=1.0):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten([g.astype(x.dtype) for g, x in zip(normal, leaves, strict=True)])


def _trained(tx, params, steps):
    """The parameters and the state after some steps."""

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for seed in range(steps):
        params, state = step(params, state, _grads(params, seed))
    return params, state


def _kinds(report):
    return {row.kind for row in report.rows}


def _by_path(report):
    return {row.path: row for row in report.rows}


def _only_kernels(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _half_frozen():
    groups = {"on": optax.adamw(LR, weight_decay=0.01), "off": optax.set_to_zero()}
    return optax.partition(groups, {"dense": {"kernel": "on", "bias": "off"}})


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
    "adamw cautious": (lambda: od.adamw(LR, 1e-4, cautious=True), 0.5e-4),
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


SLOW = {
    "optax.adafactor with momentum",
    "apply_if_finite",
    "noisy",
    "sgdwr",
    "decouple(lamb)",
    "decay before lion",
    "decay before Adagrad",
    "decay before MultiSteps' Adam",
    "optax.lars",
    "optax.novograd",
    "L2 and decoupled, lion",
    "L2 and decoupled, RMSProp",
}


@pytest.mark.parametrize(("make", "c"), _cases(DECOUPLED, SLOW))
def test_decoupled_decay_is_measured(make, c):
    """Also of the bias, which is zero."""
    report = od.explain_weight_decay(make(), _params())
    assert _kinds(report) == {"decoupled"}
    tolerance = 2e-3 if any("copies" in note for note in report.notes) else 1e-3
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], c, rtol=tolerance)
    half_lives = [row.half_life for row in report.rows]
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


@pytest.mark.parametrize("make", _cases(COUPLED, SLOW))
def test_coupled_decay_is_named(make):
    report = od.explain_weight_decay(make(), _params())
    assert _kinds(report) == {"coupled"}
    # A sign-based step hides L2 where the gradient is larger than it.
    assert all(0.0 <= row.decay_per_step < 0.01 for row in report.rows)
    assert report.rows[1].decay_per_step > 0.0
    assert "is coupled" in report.warnings[0]
    assert not any("at once" in warning for warning in report.warnings)


def _l2(tx, l2=5e-4):
    return optax.chain(optax.add_decayed_weights(l2), tx)


def _with_master_copy(tx):
    """The optimizer on float32 copies of the parameters, which its state keeps."""
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        return widen(params), tx.init(widen(params))

    def update(grads, state, params):
        master, state = state
        updates, state = tx.update(widen(grads), state, master)
        master = optax.apply_updates(master, updates)
        return jax.tree.map(lambda m, p: m.astype(p.dtype) - p, master, params), (master, state)

    return optax.GradientTransformation(init, update)


def _steps_to_halve(tx, params):
    """Real updates with zero gradients until the largest weight is half of what it was."""
    start, zeros = jnp.max(jnp.abs(params["w"])), jax.tree.map(jnp.zeros_like, params)

    def step(carry):
        params, state, count = carry
        updates, state = tx.update(zeros, state, params)
        return optax.apply_updates(params, updates), state, count + 1

    halved = lambda carry: jnp.max(jnp.abs(carry[0]["w"])) > start / 2
    run = jax.jit(lambda carry: jax.lax.while_loop(halved, step, carry))
    return int(run((params, tx.init(params), 0))[2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: _l2(optax.sgd(0.1, momentum=0.9)),
        lambda: _l2(optax.sgd(0.1, momentum=0.9, nesterov=True)),
        lambda: od.sgd_l2(0.1, 5e-4, scale_before_momentum=False),
        lambda: _l2(optax.chain(optax.ema(0.9), optax.scale(-1.0)), 1e-3),
        lambda: _with_master_copy(_l2(optax.sgd(0.1, momentum=0.9))),
        lambda: _with_master_copy(od.sgdw(0.1, 1e-3)),
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
        assert _steps_to_halve(tx, params) == pytest.approx(row.half_life, rel=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("steps", [0, 5])
def test_decay_before_adam_is_found_behind_a_master_copy(dtype, steps):
    tx = _with_master_copy(_l2(optax.adam(LR), 1e-2))
    params = jax.tree.map(lambda p: p.astype(dtype), _params())
    params, state = _trained(tx, params, steps)
    report = od.explain_weight_decay(tx, params, state=state)
    assert _kinds(report) == {"coupled"}
    assert "is coupled" in report.warnings[0]
    assert all(math.isnan(row.half_life) and not row.lost_to_rounding for row in report.rows)
    assert "varies" in str(report)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _l2(optax.lamb(LR), 1e-4),
        lambda: _l2(optax.adafactor(LR), 1e-4),
        lambda: optax.contrib.schedule_free(_l2(optax.adam(LR, b1=0.0), 1e-4), LR),
        lambda: _l2(optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.float16)),
    ],
    ids=["lamb", "adafactor", "schedule-free", "float16 momentum"],
)
def test_l2_alone_is_not_called_double(make):
    """Where steps grow with the parameters, copies round, or an accumulator overflows."""
    params = {"dense": {"kernel": 0.05 * jax.random.normal(jax.random.key(0), (64, 64))}}
    report = od.explain_weight_decay(make(), params)
    assert _kinds(report) == {"coupled"}
    assert not any("at once" in warning for warning in report.warnings)


def test_a_copy_counts_only_where_updates_are_made_of_it():
    """Not an average of the weights, nor the master copy of another parameter."""
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    mean = lambda old, new: jax.tree.map(lambda m, p: 0.99 * m + 0.01 * p, old, widen(new))
    average = optax.GradientTransformation(widen, lambda u, s, p: (u, mean(s, p)))
    params = {"a": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones((8, 8), jnp.bfloat16)}
    lost = lambda tx: [r.lost_to_rounding for r in od.explain_weight_decay(tx, params).rows]
    plain = od.adamw(LR, 1e-5)
    assert lost(optax.chain(plain, average)) == [True, True]
    groups = {"m": _with_master_copy(plain), "p": plain}
    assert lost(optax.partition(groups, {"a": "m", "b": "p"})) == [False, True]


def test_rows_of_other_half_lives_have_lines_of_their_own():
    make = lambda momentum: _l2(optax.sgd(1e-2, momentum), 1e-2)
    tx = optax.partition({"a": make(0.5), "b": make(0.9)}, {"layer_0": "a", "layer_1": "b"})
    text = str(od.explain_weight_decay(tx, {"layer_0": jnp.ones(4), "layer_1": jnp.ones(4)}))
    assert [line.split()[-1] for line in text.splitlines()[-2:]] == ["3,465", "693"]


def test_momentum_that_outlasts_the_decay_has_no_half_life():
    params = {"w": jnp.ones((8, 8))}
    for momentum, known in [(0.9, True), (0.99, False), (0.999, False)]:
        tx = od.sgd_l2(1e-2, 1e-2, momentum=momentum)
        (row,) = od.explain_weight_decay(tx, params).rows
        assert math.isnan(row.half_life) != known
        if known:
            assert _steps_to_halve(tx, params) == pytest.approx(row.half_life, rel=0.02)


@pytest.mark.parametrize("steps", [100, 101, 102])
def test_the_last_update_that_is_looked_at(steps):
    report = od.explain_weight_decay(optax.MultiSteps(od.adamw(LR, 1e-5), steps), _params())
    if steps <= 101:
        assert _kinds(report) == {"decoupled"}
        assert report.notes[0].startswith(f"Measured at update {steps}")
    else:
        assert "Nothing decays within 100 updates" in report.warnings[0]


def test_what_cannot_be_measured_is_not_called_no_decay():
    report = od.explain_weight_decay(optax.MultiSteps(optax.adamw(LR), 128), _params())
    assert "If later ones do, pass the state of such a step." in report.warnings[0]
    assert not any("its coefficient is 0" in warning for warning in report.warnings)


def test_shapes_will_do():
    params = {**_params(), "step": jnp.arange(3)}
    tx = od.adamw(LR, 1e-4, mask=od.decay_mask)
    report = od.explain_weight_decay(tx, jax.eval_shape(lambda: params))
    assert report.rows == od.explain_weight_decay(tx, params).rows


def test_an_argument_with_a_name_like_mask_is_none():
    make = lambda rate, mask_probability: optax.adamw(rate, weight_decay=0.1 * mask_probability)
    tx = optax.inject_hyperparams(make)(LR, mask_probability=0.5)
    report = od.explain_weight_decay(tx, _params())
    assert not any("mask function" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.adam(LR),
        lambda: optax.lamb(LR),  # a trust ratio depends on the parameters, but is no decay
        lambda: optax.contrib.schedule_free_adamw(LR),
        lambda: optax.adaptive_grad_clip(0.01),
        lambda: od.adamw(LR, 0.0),
        lambda: od.sgdw(LR, 1e-4, mask=lambda params: jax.tree.map(lambda _: False, params)),
        lambda: optax.adamw(LR, mask=lambda params: jax.tree.map(lambda _: False, params)),
    ],
    ids=["adam", "lamb", "schedule-free", "agc", "λ = 0", "our empty mask", "an empty mask"],
)
def test_no_decay_is_a_warning(make):
    report = od.explain_weight_decay(make(), _params())
    assert _kinds(report) == {"none"}
    assert all((row.decay_per_step, row.half_life) == (0.0, math.inf) for row in report.rows)
    (warning,) = report.warnings
    assert "Nothing decays" in warning
    assert "mask" in warning


@pytest.mark.parametrize(
    "make",
    [
        lambda: od.adamw(LR, 1e-4, mask=od.decay_mask),
        lambda: od.sgdw(LR, 1e-4, mask=KERNELS),
        lambda: optax.adamw(LR, weight_decay=0.1, mask=_only_kernels),
        lambda: optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
            LR, weight_decay=0.1, mask=_only_kernels
        ),
        lambda: optax.contrib.muon(LR, weight_decay=0.1),
        _half_frozen,
        lambda: optax.chain(
            optax.adam(LR), optax.masked(od.add_decoupled_weight_decay(1e-4), KERNELS)
        ),
    ],
    ids=["decay_mask", "a tree", "optax", "inject_hyperparams", "muon", "partition", "masked"],
)
def test_a_healthy_selection_passes_the_check(make):
    report = od.explain_weight_decay(make(), _params())
    kinds = {path: row.kind for path, row in _by_path(report).items()}
    assert kinds == {"dense/bias": "none", "dense/kernel": "decoupled"}
    report.check()


def test_a_mask_may_scale_the_decay():
    rules = od.decay_rules((".*/kernel", 0.5), (".*", 1.0))
    rows = _by_path(od.explain_weight_decay(od.adamw(LR, 1e-3, mask=rules), _params()))
    assert rows["dense/kernel"].decay_per_step == pytest.approx(0.5e-3, rel=1e-3)
    assert rows["dense/bias"].decay_per_step == pytest.approx(1e-3, rel=1e-3)


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
        lambda: optax.inject_hyperparams(optax.adamw)(LR, mask=_only_kernels),
        r'takes every callable for a schedule .* Pass static_args=\("mask",\)',
    ),
    "L2 and decoupled, Adam": (
        lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.adamw(LR, weight_decay=0.01)),
        "L2 regularization and decoupled decay act at once on 'dense/bias', 'dense/kernel'",
    ),
    "L2 and decoupled, SGD": (
        lambda: od.decouple(od.sgd_l2(0.1, 1e-4), 1e-5),
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


@pytest.mark.parametrize(("make", "name"), _cases(BROKEN, SLOW))
def test_a_broken_chain_is_named(make, name):
    report = od.explain_weight_decay(make(), _params())
    with pytest.raises(ValueError, match=name):
        report.check()


def test_one_mistake_is_named_once():
    make, _ = BROKEN["L2 and decoupled, Adam"]
    warnings = od.explain_weight_decay(make(), _params()).warnings
    assert [text for text in warnings if "act at once" in text]
    assert not [text for text in warnings if "coupled: it passes" in text]


def test_a_negative_decay_is_named():
    tx = optax.inject_hyperparams(od.adamw)(LR, -1e-3)
    with pytest.raises(ValueError, match="or its weight_decay or schedule is negative"):
        od.explain_weight_decay(tx, _params()).check()


def test_swapped_arguments_are_named():
    tx, params = od.adamw(LR, 1e-4), {f"layer_{i}": jnp.ones((100, 100)) for i in range(100)}
    with pytest.raises(TypeError, match="the first argument") as caught:
        od.explain_weight_decay(params, tx)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("make", [BROKEN[k][0] for k in BROKEN if "rate" in k or "after" in k])
def test_growing_weights_have_a_negative_fraction(make):
    report = od.explain_weight_decay(make(), _params())
    assert _kinds(report) == {"growing"}
    assert all(row.decay_per_step < 0 and row.half_life == math.inf for row in report.rows)


def test_l2_and_decoupled_is_named_late_in_training():
    tx = BROKEN["L2 and decoupled, Adam"][0]()
    params, state = _trained(tx, _params(), 30)
    report = od.explain_weight_decay(tx, params, state=state)
    assert "act at once" in report.warnings[0]
    pure = od.adam_l2(LR, 1e-4)
    params, state = _trained(pure, _params(), 30)
    report = od.explain_weight_decay(pure, params, state=state)
    assert _kinds(report) == {"coupled"}
    assert not any("act at once" in warning for warning in report.warnings)


def test_a_mask_that_inject_hyperparams_breaks_at_init_is_named():
    for factory, mask in [
        (od.adamw, _only_kernels),
        (optax.adamw, lambda params: {"dense": {k: k == "kernel" for k in params["dense"]}}),
    ]:
        tx = optax.inject_hyperparams(factory)(LR, weight_decay=1e-4, mask=mask)
        with pytest.raises(ValueError, match=r'tx.init fails .*static_args=\("mask",\)'):
            od.explain_weight_decay(tx, _params())


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
    params, state = _trained(tx, _params(), 20)
    grads = _grads(params, 99)
    shift = jax.tree.map(lambda g: 10.0 * jnp.sign(g), _grads(params, 100))
    starts = params, jax.tree.map(jnp.add, params, shift)
    ends = [optax.apply_updates(p, tx.update(grads, state, p)[0]) for p in starts]
    report = od.explain_weight_decay(tx, params, state=state, grads=grads)
    assert _kinds(report) == {"decoupled"}
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


def test_cautious_decay_is_its_mean_even_for_sparse_gradients():
    params = _params()
    grads = jax.tree.map(lambda g: jnp.where(g > 0, g, 0.0), _grads(params, 0, 1e-3))
    report = od.explain_weight_decay(od.sgdw(LR, 1e-4, cautious=True), params, grads=grads)
    assert _kinds(report) == {"decoupled"}
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], 0.5e-4, rtol=1e-3)


def test_a_coupled_fraction_depends_on_the_gradients():
    """L2 through Adam is divided by the size of the gradient."""
    tx, params = od.adam_l2(LR, 1e-4), {"w": jnp.ones((40, 50))}
    _, state = _trained(tx, params, 20)
    (row,) = od.explain_weight_decay(tx, params, state=state).rows
    small, large = (
        od.explain_weight_decay(tx, params, grads=_grads(params, 0, scale)).rows[0]
        for scale in (1e-2, 1.0)
    )
    assert {row.kind, small.kind, large.kind} == {"coupled"}
    assert small.decay_per_step > 5 * large.decay_per_step


def test_a_warmup_from_zero_is_measured_at_its_first_step():
    warmup = optax.linear_schedule(0.0, 0.1, 10)
    report = od.explain_weight_decay(optax.adamw(warmup, weight_decay=0.1), _params())
    assert _by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-3, rel=1e-3)
    assert "Measured at update 2" in report.notes[0]


def test_accumulated_gradients_are_measured_when_they_are_applied():
    tx = optax.MultiSteps(od.adamw(LR, 1e-4, mask=od.decay_mask), 4)
    params, state = _trained(tx, _params(), 5)
    report = od.explain_weight_decay(tx, params, state=state)
    assert _by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-4, rel=1e-3)
    assert "Measured at update 3" in report.notes[0]
    report.check()


def test_an_optimizer_that_never_moves_is_told():
    report = od.explain_weight_decay(optax.set_to_zero(), _params())
    assert report.warnings[0].startswith("Nothing decays within 100 updates, none of which moves")
    assert report.notes == ()


def test_frozen_parameters_are_noted():
    report = od.explain_weight_decay(_half_frozen(), _params())
    assert report.notes == ("Not moved by this update: 'dense/bias'.",)


def test_copies_of_the_parameters_are_probed_with_them():
    """Schedule-free's z would read as a fraction of about 1."""
    tx = optax.contrib.schedule_free_adamw(LR, weight_decay=1.0)
    params, state = _trained(tx, _params(), 5)
    report = od.explain_weight_decay(tx, params, state=state)
    assert all(0 < row.decay_per_step < 2e-3 for row in report.rows)
    assert any("copies of the parameters" in note for note in report.notes)


def test_the_state_is_left_alone():
    tx = od.adamw(LR, 1e-4, schedule=optax.cosine_decay_schedule(1.0, 20))
    params, state = _trained(tx, _params(), 10)
    before = jax.tree.map(np.array, state)
    report = od.explain_weight_decay(tx, params, state=state)
    assert report.rows[0].decay_per_step == pytest.approx(0.5e-4, rel=1e-3)
    assert od.explain_weight_decay(tx, params).rows[0].decay_per_step == pytest.approx(1e-4)
    chex.assert_trees_all_equal(state, before)
    tx.update(_grads(params, 0), state, params)  # and was not donated


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
        rows = _by_path(report)
        assert rows["linear/kernel"].decay_per_step == pytest.approx(c, rel=1e-3)
        assert {k for k, row in rows.items() if row.kind == "none"} == {
            "linear/bias",
            "norm/bias",
            "norm/scale",
        }
        report.check()
    chex.assert_trees_all_equal(jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(before))


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
    assert _kinds(report) <= {"none"}
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
    params = jax.tree.map(lambda p: p.astype(dtype), _params())
    for tx in (
        optax.adamw(LR, weight_decay=0.01),
        optax.apply_if_finite(optax.adamw(LR, weight_decay=0.01, mu_dtype=jnp.float32), 2),
        optax.MultiSteps(od.adamw(LR, 1e-5), 2),
    ):
        report = od.explain_weight_decay(tx, params, state=tx.init(params))
        assert _kinds(report) == {"decoupled"}
        np.testing.assert_allclose([row.decay_per_step for row in report.rows], 1e-5, rtol=1e-3)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
def test_updates_that_are_not_finite_are_named(factor):
    tx = optax.chain(optax.adamw(LR, weight_decay=0.1), optax.scale(factor))
    report = od.explain_weight_decay(tx, _params())
    assert "is not finite" in report.warnings[0]


def test_hyperparameters_that_underflow_are_named():
    """inject_hyperparams keeps b2 in bfloat16, where it is 1: every update is NaN."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _params())
    report = od.explain_weight_decay(optax.inject_hyperparams(optax.adamw)(LR), params)
    assert "not finite" in report.warnings[0]
    assert "hyperparam_dtype" in report.warnings[0]


def test_sharded_parameters_and_states():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    layout = {"dense": {"kernel": P("data", "model"), "bias": P("model")}}
    params = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), _params(), layout)
    tx = od.adamw(LR, 1e-4, mask=od.decay_mask)
    params, state = _trained(tx, params, 2)
    report = od.explain_weight_decay(tx, params, state=state)
    assert _by_path(report)["dense/kernel"].decay_per_step == pytest.approx(1e-4, rel=1e-3)
    report.check()
    spread = jax.tree.map(
        jax.device_put, _params(), {"dense": {"kernel": jax.devices()[1], "bias": jax.devices()[2]}}
    )
    od.explain_weight_decay(tx, spread).check()


@pytest.mark.slow
def test_the_benchmark_runs():
    script = Path(__file__).parent.parent / "benchmarks" / "explain_speed.py"
    command = [sys.executable, str(script), "--quick", "--case", "adamw, decay_mask"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["leaves"] == 43


def _deep(layers):
    layer = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    return {"embed": jnp.ones((9, 4)), **{f"layer_{i}": {"dense": layer} for i in range(layers)}}


def test_equal_layers_share_a_line():
    text = str(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=od.decay_mask), _deep(12)))
    lines = text.splitlines()
    assert lines[0] == "Weight decay: 13 of 25 parameters decay (228 of 276 weights)."
    assert [line.split()[:2] for line in lines[3:]] == [
        ["embed", "1"],
        ["layer_{0..11}/dense/bias", "12"],
        ["layer_{0..11}/dense/kernel", "12"],
    ]
    assert lines[-1].split()[-2:] == ["1.00e-04", "6,931"]


def test_layers_that_differ_do_not_share_a_line():
    rules = od.decay_rules(("layer_[0-3]/.*", 0.5), (".*/kernel", 1.0), (".*", 0.0))
    text = str(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=rules), _deep(7)))
    assert "layer_{0..3}/dense/kernel" in text
    assert "layer_{4,..,6}" not in text
    assert "layer_{4..6}/dense/kernel" in text


def test_the_table_fits_100_columns():
    names = [
        f"{'block' * 20}/{'x' * (i % 7)}_{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80)
    ]
    row = od.explain_weight_decay(od.adamw(LR, 1e-4), {"w": jnp.ones((3, 2), jnp.bfloat16)}).rows[0]
    rows = tuple(
        od.DecayRow(name, (10**5,) * 4, row.dtype, "growing", -1.2e-7, math.inf, True)
        for name in names
    )
    report = od.DecayReport(rows, warnings=("word " * 60,), notes=("word " * 60,))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 55
    assert any("more lines" in line for line in lines)
    assert lines[-1].startswith("block")
    assert lines[-1].endswith("lost")


def test_check_lists_all_warnings():
    od.DecayReport(()).check()
    with pytest.raises(ValueError, match="first thing\nsecond thing"):
        od.DecayReport((), ("first thing", "second thing")).check()


def test_arguments_are_checked():
    params, tx = _params(), od.adamw(LR, 1e-4)
    with pytest.raises(TypeError, match=r"must be an optax.GradientTransformation"):
        od.explain_weight_decay(optax.adamw, params)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"traced arrays.*outside"):
        jax.jit(lambda p: od.explain_weight_decay(tx, p).rows[0].decay_per_step)(params)
    with pytest.raises(ValueError, match=r"state is not what this tx has.*'2/count' is missing"):
        od.explain_weight_decay(tx, params, state=optax.adam(LR).init(params))
    with pytest.raises(ValueError, match="grads has the structure"):
        od.explain_weight_decay(tx, params, grads={"dense": 1.0})
    other = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(16)}}
    with pytest.raises(ValueError, match=r"grads at 'dense/kernel' has shape \(3, 3\)"):
        od.explain_weight_decay(tx, params, grads=other)
    with pytest.raises(ValueError, match=r"state at '0/mu/dense/kernel' has shape \(3, 3\)"):
        od.explain_weight_decay(tx, params, state=tx.init(other))
    with pytest.raises(
        ValueError, match=r"(?s)tx.update\(grads, state, params\) fails.*functools.partial"
    ):
        od.explain_weight_decay(optax.lbfgs(), params)


def test_a_learning_rate_that_is_passed_as_schedule_is_noted():
    rate = optax.linear_schedule(3e-4, 3e-5, 100)
    params = {"kernel": jnp.ones((4, 4))}
    mistaken = od.explain_weight_decay(od.adamw(3e-4, 1e-4, schedule=rate), params)
    assert any("split_schedule" in note for note in mistaken.notes)
    peak, eta = od.split_schedule(rate, 3e-4)
    meant = od.explain_weight_decay(od.adamw(peak, 1e-4, schedule=eta), params)
    assert not any("split_schedule" in note for note in meant.notes)


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
