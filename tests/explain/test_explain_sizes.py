"""Samples stand for large parameters, where the program is the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, by_path, cases, small_params, trained

import optax_decoupled as od
from optax_decoupled._explain import probe, sample
from optax_decoupled._explain.arguments import WithLoss
from optax_decoupled._explain.probe import Probe

WIDE = {"w": jax.random.normal(jax.random.key(0), (512, 384)), "b": jnp.zeros(384)}
SIZES = {
    "adamw": (lambda: optax.adamw(LR), 2**12),
    "schedule-free": (lambda: optax.contrib.schedule_free_adamw(LR, weight_decay=0.1), 2**12),
    "clip": (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR)), 2**12),
    "a mean": (lambda: optax.chain(optax.clip_by_block_rms(1.0), optax.adamw(LR)), 2**12),
    "lamb": (lambda: optax.lamb(LR, weight_decay=0.1), 2**12),
    "muon": (lambda: optax.contrib.muon(LR, weight_decay=0.1), 2**12),
    "adafactor": (lambda: optax.adafactor(LR, weight_decay_rate=1e-4), 2**15),
    "a mask by size": (
        lambda: optax.adamw(LR, mask=lambda params: jax.tree.map(lambda p: p.size > 9999, params)),
        2**12,
    ),
}


@pytest.mark.parametrize(("make", "most"), cases(SIZES))
def test_common_optimizers_are_measured_on_samples(make, most):
    found = Probe(WithLoss(make()), WIDE, None, None)
    assert found.is_sampled
    assert max(v.size for v in found.v) <= most


@pytest.mark.parametrize("shape", [(512, 384), (3, 3, 64, 96), (24, 512, 384), (50257, 768)])
def test_samples_are_smaller_and_keep_the_order_of_the_sides(shape):
    *small, last = [shapes[0] for shapes in sample.samples([shape])]
    assert last == shape
    for sides in small:
        assert math.prod(sides) < math.prod(shape)
        assert np.argsort(sides[-2:]).tolist() == np.argsort(shape[-2:]).tolist()


def test_a_state_that_has_gained_leaves_is_sampled_too():
    tx = optax.chain(optax.adamw(LR), optax.monitor({"norm": optax.tree.norm}))
    _, state = trained(tx, WIDE, 1)
    assert Probe(WithLoss(tx), WIDE, state, None).is_sampled


def _scaled(coefficient):
    add = lambda u, p: jax.tree.map(lambda u, p: u - coefficient(p.size) * p, u, p)
    return optax.chain(optax.adam(LR), optax.stateless(add))


# More weights than are measured at full size.
HUGE = {"w": jax.ShapeDtypeStruct((2**13, 2**13), jnp.float32), "b": jnp.zeros(384)}


@pytest.mark.parametrize("weights", [WIDE, HUGE], ids=["wide", "huge"])
@pytest.mark.parametrize("coefficient", [lambda n: 1 / n, lambda n: 1e-3 / np.sqrt(n)])
def test_a_scalar_that_depends_on_the_size_is_that_of_the_full_size(coefficient, weights):
    rows = by_path(od.explain_weight_decay(_scaled(coefficient), weights))
    for path in ("w", "b"):
        expected = coefficient(math.prod(weights[path].shape))
        assert rows[path].kind == "decoupled"
        assert rows[path].decay_per_step == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("weights", [WIDE, HUGE], ids=["wide", "huge"])
def test_a_mask_by_size_selects_what_it_selects_at_full_size(weights):
    make, _ = SIZES["a mask by size"]
    rows = by_path(od.explain_weight_decay(make(), weights, steps=100))
    assert (rows["w"].kind, rows["b"].kind) == ("decoupled", "none")
    assert rows["w"].budget == pytest.approx(100 * rows["w"].decay_per_step, rel=1e-3)
    assert rows["b"].budget == 0


# The momentum has no array where the mask is False. The norm is a leaf that the state gains.
BY_SIZE = optax.chain(
    optax.masked(optax.trace(0.9), lambda ps: jax.tree.map(lambda p: p.size > 9999, ps)),
    optax.sgd(LR),
    od.add_decoupled_weight_decay(1e-3),
)
STATES_BY_SIZE = {
    "bfloat16": (BY_SIZE, jnp.bfloat16),
    "gains leaves": (optax.chain(optax.monitor({"norm": optax.tree.norm}), BY_SIZE), jnp.float32),
    "every fourth": (optax.MultiSteps(BY_SIZE, 4).gradient_transformation(), jnp.float32),
}


@pytest.mark.parametrize(("tx", "dtype"), cases(STATES_BY_SIZE))
def test_a_state_whose_arrays_depend_on_the_size_is_that_of_the_full_size(tx, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), WIDE)
    rows = by_path(od.explain_weight_decay(tx, params, steps=40))
    for path in ("w", "b"):
        assert rows[path].kind == "decoupled"
        assert rows[path].decay_per_step == pytest.approx(1e-3, rel=1e-2)
        assert rows[path].budget == pytest.approx(0.04, rel=1e-2)


def test_an_update_that_acts_on_elements_alone_is_traced_once():
    times = 0

    def count(updates, params):
        nonlocal times
        times += 1
        return updates

    tx = optax.chain(optax.adamw(LR), optax.stateless(count))
    od.explain_weight_decay(tx, WIDE)
    assert times == 1
    od.explain_weight_decay(optax.chain(optax.clip_by_global_norm(1.0), tx), WIDE)
    assert times == 3  # and for the samples


def test_arrays_of_full_size_are_measured_or_the_error_says_why_not(monkeypatch):
    half = jnp.asarray(np.arange(512)[:, None] < 256)
    add = lambda u, p: {**u, "w": u["w"] - 1e-3 * half * p["w"]}
    tx = optax.chain(optax.adam(LR), optax.stateless(add))
    rows = by_path(od.explain_weight_decay(tx, WIDE))
    assert (rows["w"].kind, rows["b"].kind) == ("decoupled", "none")
    assert rows["w"].decay_range == pytest.approx((0.0, 1e-3), rel=1e-3)
    monkeypatch.setattr(probe, "FULL_SIZE", 10_000)
    with pytest.raises(ValueError, match=r"samples of these 196,992 weights.* fewer or narrower"):
        od.explain_weight_decay(tx, WIDE)
    od.explain_weight_decay(optax.adamw(LR), WIDE)


def test_a_fraction_that_depends_on_a_norm_is_said_to_be_that_of_a_sample():
    clip = optax.clip_by_global_norm(1.0)
    tx = optax.chain(optax.add_decayed_weights(1e-2), clip, optax.sgd(LR))
    said = lambda tx, params: "sample" in " ".join(od.explain_weight_decay(tx, params).notes)
    assert said(tx, WIDE)
    assert not said(tx, small_params())
    assert not said(od.adamw(LR, 1e-4), WIDE)


def test_repeated_layers_are_told_apart_where_they_differ():
    layers = {f"layer_{i}": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for i in range(6)}
    rules = od.decay_rules(("layer_3/kernel", 2.0), (".*/kernel", 1.0), (".*", 0.0))
    l2 = optax.chain(od.l2_to_grad(1e-3, mask=rules), optax.sgd(0.1, momentum=0.5))
    for tx in (od.adamw(LR, 1e-4, mask=rules), l2):
        rows = by_path(od.explain_weight_decay(tx, layers))
        for i in range(6):
            expected = 2e-4 if i == 3 else 1e-4
            assert rows[f"layer_{i}/kernel"].decay_per_step == pytest.approx(expected, rel=1e-3)
            assert rows[f"layer_{i}/bias"].kind == "none"
