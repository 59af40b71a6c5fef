"""L2 and decoupled decay at once are told from either alone, whatever stands around them."""

import jax
import optax
import pytest
from explaining import LR, cases, kinds, random_grads, small_params, trained

import optax_decoupled as od

L2 = optax.add_decayed_weights(1e-2)
DECAY = od.add_decoupled_weight_decay(1e-4)
# Transforms before the decay: with L2 that an earlier clip does not limit, or a sign hides.
BEHIND_A_CLIP = {
    "norm, momentum": (optax.clip_by_global_norm(1.0), L2, optax.sgd(0.1, momentum=0.9)),
    "elements, momentum": (optax.clip(0.1), L2, optax.sgd(0.1, momentum=0.9)),
    "block, Nesterov": (
        *(optax.clip_by_block_rms(0.1), L2),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "norm, ema": (optax.clip_by_global_norm(1.0), L2, optax.ema(0.9), optax.scale(-0.1)),
    "norm, Adam": (optax.clip_by_global_norm(1.0), L2, optax.adam(LR)),
}
BEFORE_A_SIGN = {
    "sign": (L2, optax.sign_sgd(LR)),
    "clip, sign": (optax.clip(1.0), L2, optax.sign_sgd(LR)),
    "small L2, sign": (optax.add_decayed_weights(1e-4), optax.sign_sgd(LR)),
}
BEFORE = BEHIND_A_CLIP | BEFORE_A_SIGN


def _is_double(tx, params=None, **kwargs):
    report = od.explain_weight_decay(tx, params or small_params(), **kwargs)
    return any("act at once" in text for text in report.warnings), kinds(report)


@pytest.mark.parametrize("before", cases({name: (x,) for name, x in BEFORE.items()}))
def test_l2_and_decay_are_double_and_each_alone_is_not(before):
    assert _is_double(optax.chain(*before, DECAY)) == (True, {"coupled"})
    double, found = _is_double(optax.chain(*before))
    assert not double
    assert "decoupled" not in found
    alone = tuple(x for x in before if x is not L2 and x is not BEFORE_A_SIGN["small L2, sign"][0])
    assert _is_double(optax.chain(*alone, DECAY)) == (False, {"decoupled"})


@pytest.mark.parametrize("name", ["norm, momentum", "sign"])
def test_they_are_double_late_in_training(name):
    """With small gradients L2 turns a sign, which is seen, and not told from L2 that is clipped."""
    tx = optax.chain(*BEFORE[name], DECAY)
    params, state = trained(tx, small_params(), 10)
    assert _is_double(tx, params, state=state) == (True, {"coupled"})
    small = random_grads(params, 3, 1e-3)
    double, found = _is_double(tx, params, state=state, grads=small)
    assert "decoupled" not in found
    assert double == (name != "sign")


@pytest.mark.parametrize(
    "direction",
    [
        *(optax.sign_sgd(LR), optax.lars(LR), optax.lamb(LR), optax.adafactor(LR)),
        *(optax.contrib.dog(), optax.rprop(LR), optax.noisy_sgd(LR, key=0)),
        optax.chain(optax.contrib.normalize(), optax.sgd(LR)),
    ],
    ids=["sign", "lars", "lamb", "adafactor", "dog", "rprop", "noise", "unit gradients"],
)
def test_steps_that_depend_on_faint_gradients_hide_nothing(direction):
    tx = optax.chain(direction, DECAY)
    assert _is_double(tx) == (False, {"decoupled"})


@pytest.mark.parametrize("toward", [None, od.toward_init()])
@pytest.mark.parametrize("make", [optax.contrib.cocob, optax.sgd])
def test_a_pull_by_the_optimizer_itself_is_not_double(make, toward):
    """COCOB sets the parameters anew at each step, by what its state remembers of the start."""
    pull = od.add_decoupled_weight_decay(1e-4, toward=toward)
    assert not _is_double(optax.chain(make(LR), pull))[0]


def test_a_sign_hides_l2_of_some_parameters_alone():
    only = {"dense": {"kernel": True, "bias": False}}
    tx = optax.chain(optax.masked(L2, only), optax.sign_sgd(LR), DECAY)
    rows = od.explain_weight_decay(tx, small_params()).rows
    assert {row.path: row.kind for row in rows} == {
        "dense/kernel": "coupled",
        "dense/bias": "decoupled",
    }


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_l2_that_is_clipped_itself_is_coupled(momentum):
    """Without momentum no difference remains from a decay that is clipped alone: a known limit."""
    clip = optax.clip_by_global_norm(1.0)
    tx = optax.chain(L2, clip, optax.sgd(0.1, momentum=momentum), DECAY)
    double, found = _is_double(tx, {"w": 0.3 * jax.random.normal(jax.random.key(0), (8, 16))})
    assert found == {"coupled"}
    assert double == (momentum is not None)
    assert not _is_double(optax.chain(L2, clip, optax.sgd(0.1, momentum=momentum)))[0]
