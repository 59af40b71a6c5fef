"""Chains put together at random: each is told for what it is, by how it was put together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import trained
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_decoupled as od

DIRECTIONS = (
    optax.scale_by_adam,
    od.scale_by_adam,
    optax.scale_by_amsgrad,
    optax.scale_by_adamax,
    optax.scale_by_adan,
    optax.scale_by_belief,
    optax.scale_by_lion,
    optax.scale_by_novograd,
    optax.scale_by_radam,
    optax.scale_by_rms,
    optax.scale_by_yogi,
    lambda: optax.scale_by_adam(nesterov=True),
    lambda: optax.trace(0.9),
    lambda: optax.trace(0.9, nesterov=True),
    lambda: optax.ema(0.9),
)
# Of the gradients, before anything else.
LIMITS = (
    optax.identity,
    lambda: optax.clip(1.0),
    lambda: optax.clip_by_global_norm(1.0),
    lambda: optax.clip_by_block_rms(1.0),
    optax.centralize,
    optax.zero_nans,
)
# The multiplier of the step at count 0, and its schedule.
SHAPES = (
    (1.0, lambda count: 1.0),
    (1.0, optax.cosine_decay_schedule(1.0, 1000)),
    (0.1, optax.warmup_cosine_decay_schedule(0.1, 1.0, 50, 1000)),
)
WRAPPERS = (
    lambda tx: tx,
    lambda tx: optax.named_chain(("all", tx)),
    lambda tx: optax.apply_if_finite(tx, 3),
    lambda tx: optax.MultiSteps(tx, 2),
    lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
    lambda tx: optax.partition({"all": tx}, lambda params: jax.tree.map(lambda _: "all", params)),
)
# How decay stands in a chain (limit, direction, rate, c), what it is then called, and whether
# c is multiplied by the rate.
PLACES = {
    "ours": (lambda a, b, rate, c: (a, b, rate, od.add_decoupled_weight_decay(c)), "decoupled", 0),
    "Optax's": (lambda a, b, rate, c: (a, b, optax.add_decayed_weights(c), rate), "decoupled", 1),
    "too late": (lambda a, b, rate, c: (a, b, rate, optax.add_decayed_weights(c)), "growing", 0),
    "too early": (lambda a, b, rate, c: (a, optax.add_decayed_weights(c), b, rate), "coupled", 1),
    "nowhere": (lambda a, b, rate, c: (a, b, rate), "none", 0),
    "cautious": (
        lambda a, b, rate, c: (a, b, rate, od.add_decoupled_weight_decay(c, cautious=True)),
        "cautious",
        0,
    ),
    "toward the start": (
        lambda a, b, rate, c: (
            *(a, b, rate),
            od.add_decoupled_weight_decay(c, toward=od.toward_init()),
        ),
        "toward",
        0,
    ),
}
SIZES = {"stacked": (2, 16, 8), "kernel": (16, 8), "bias": (8,), "lone": (1,), "number": ()}


@st.composite
def parameters(draw):
    """Some leaves of many shapes and dtypes, from 0 to large."""
    names = draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=3, unique=True))
    dtypes = st.sampled_from([jnp.float32, jnp.float32, jnp.bfloat16])
    scales = st.sampled_from([0.0, 0.02, 1.0, 30.0])
    normal = np.random.default_rng(0).standard_normal
    return {x: jnp.asarray(draw(scales) * normal(SIZES[x]), draw(dtypes)) for x in names}


def _check_a_chain(params, limit, direction, shape, wrapper, place, updates, exponents):
    make, kind, times_rate = PLACES[place]
    peak, c = (10.0**x for x in exponents)
    first, schedule = shape
    rate = optax.scale_by_learning_rate(lambda count: peak * schedule(count))
    tx = wrapper(optax.chain(*make(limit(), direction(), rate, c)))
    _, state = trained(tx, params, updates)
    report = od.explain_weight_decay(tx, params, state=state if updates else None)
    assert {row.kind for row in report.rows} == {kind}
    if kind == "coupled" or (updates and times_rate):  # which move
        return
    fraction = c * (peak * first) ** times_rate
    expected = {"none": 0.0, "growing": -fraction}.get(kind, fraction)
    np.testing.assert_allclose([row.decay_per_step for row in report.rows], expected, rtol=0.01)


CHAINS = given(
    params=parameters(),
    limit=st.sampled_from(LIMITS),
    direction=st.sampled_from(DIRECTIONS),
    shape=st.sampled_from(SHAPES),
    wrapper=st.sampled_from(WRAPPERS),
    place=st.sampled_from(sorted(PLACES)),
    updates=st.sampled_from([0, 0, 3]),
    exponents=st.tuples(st.floats(-4, -1), st.floats(-5.5, -2.3)),
)


@CHAINS
@settings(max_examples=10)
def test_a_chain_is_told_for_what_it_is(**chain):
    _check_a_chain(**chain)


@pytest.mark.slow
@CHAINS
@settings(max_examples=150)
def test_many_chains_are_told_for_what_they_are(**chain):
    _check_a_chain(**chain)
