"""`decouple` around other people's optimizers: their update, minus c_t θ."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

INNER = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "lion": lambda: optax.lion(0.001, weight_decay=0.0),
    "rmsprop": lambda: optax.rmsprop(0.01),
    "adafactor": lambda: optax.adafactor(0.01),
    "lamb": lambda: optax.lamb(0.01),
    "muon": lambda: optax.contrib.muon(0.02),
    "adagrad": lambda: optax.adagrad(0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
}
DECAY = 1e-3
ETA = optax.linear_schedule(1.0, 0.2, 10)


def _params():
    keys = jax.random.split(jax.random.key(0))
    return {
        "kernel": jax.random.normal(keys[0], (130, 140)),
        "bias": jax.random.normal(keys[1], (7,)),
    }


@pytest.mark.parametrize("name", INNER)
def test_update_is_the_inner_one_minus_decay(name):
    inner = INNER[name]()
    tx = od.decouple(inner, DECAY, ETA)
    params = _params()
    state, inner_state = tx.init(params), inner.init(params)
    update, inner_update = jax.jit(tx.update), jax.jit(inner.update)
    for t in range(6):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(3 * p + t), params)
        expected, inner_state = inner_update(grads, inner_state, params)
        expected = jax.tree.map(
            lambda u, p, t=t: np.float64(u) - DECAY * float(ETA(t)) * np.float64(p),
            expected,
            params,
        )
        updates, state = update(grads, state, params)
        for u, e in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(u, e, rtol=2e-6, atol=1e-9)
        params = optax.apply_updates(params, updates)
    assert jax.tree.structure(state[0]) == jax.tree.structure(inner_state)


def test_extra_arguments_reach_the_inner_optimizer():
    tx = od.decouple(optax.polyak_sgd(1.0), DECAY)
    params = jnp.ones(3)
    updates, _ = tx.update(jnp.ones(3), tx.init(params), params, value=jnp.array(1.5))
    np.testing.assert_allclose(updates, -0.5 - DECAY, rtol=1e-6)


DECAYING = {
    "lion": lambda: optax.lion(1e-3),
    "adamw": lambda: optax.adamw(1e-3, mask={"kernel": True, "bias": False}),
    "ours": lambda: od.sgdw(0.1, 1e-4, mask=od.decay_mask),
    "L2": lambda: optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3)),
    "after a warmup": lambda: optax.adamw(optax.linear_schedule(0.0, 1e-3, 10), weight_decay=0.1),
}


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize("how", ["eager", "jitted", "shapes"])
def test_an_optimizer_that_decays_by_itself_is_warned_about_once(name, how):
    tx, params = od.decouple(DECAYING[name](), DECAY), _params()
    init = {
        "eager": tx.init,
        "jitted": jax.jit(tx.init),
        "shapes": lambda params: jax.eval_shape(tx.init, params),
    }[how]
    with pytest.warns(UserWarning, match="inner decays .*'kernel' by itself") as caught:
        init(params)
    assert len(caught) == 1
    assert "'bias'" not in str(caught[0].message) or name in ("lion", "L2", "after a warmup")
    tx.init(params)  # not again: warnings are errors


QUIET = {
    "lion": lambda: optax.lion(1e-3, weight_decay=0.0),
    "a trust ratio": lambda: optax.lamb(1e-3),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-3),
    "needs more arguments": optax.lbfgs,
    "frozen": optax.set_to_zero,
    "prodigy": lambda: optax.contrib.prodigy(0.1),
    "a sphere": lambda: od.hyperball(optax.scale_by_adam(), 0.01),
    "a projection": lambda: optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
}


@pytest.mark.parametrize("name", QUIET)
def test_one_that_does_not_is_not(name):
    od.decouple(QUIET[name](), DECAY).init(_params())


def _turn(angle):
    """The update that turns the first two elements of a weight: it keeps the norm."""
    across = jnp.array([-1.0, 1.0])
    return lambda p: p * (jnp.cos(angle) - 1) + jnp.sin(angle) * across * p


# Around each threshold: updates that are, and are not, the decay of the optimizer itself.
THRESHOLDS = {
    "less than rounding": (lambda p: -6e-8 * p, False),
    "the last place": (lambda p: -1.2e-7 * p, True),
    "so little that the norm stays": (lambda p: -5e-7 * p, True),
    "a usual fraction": (lambda p: -5e-5 * p, True),
    "a large fraction": (lambda p: -0.2 * p, True),
    "a replacement": (lambda p: -0.3 * p, False),
    "a rotation": (_turn(0.006), False),
    "a rotation, in float32": (_turn(0.3), False),  # it keeps the norm within 2e-8
    "2e-3 of the update": (lambda p: -1e-4 * p - 1e-4 / 2e-3 * 64, True),
    "5e-4 of the update": (lambda p: -1e-4 * p - 1e-4 / 5e-4 * 64, False),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_where_the_decay_of_the_inner_optimizer_begins(name):
    update, decays = THRESHOLDS[name]
    tx = od.decouple(optax.stateless(lambda _, params: update(params)), DECAY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tx.init(jnp.ones(2))
    assert ["decays" in str(each.message) for each in caught] == [True] * decays


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: lambda x: jax.vmap(f)(x[None])])
def test_an_optimizer_of_traced_numbers_is_not_asked(transform):
    def first_update(rate):
        tx = od.decouple(optax.lion(rate, weight_decay=0.0), DECAY)
        return tx.update(_params(), tx.init(_params()), _params())[0]["bias"].sum()

    assert jnp.isfinite(transform(first_update)(jnp.array(0.1))).all()
