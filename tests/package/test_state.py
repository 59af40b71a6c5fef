"""Migration of optimizer states, exact in moments, counts and the steps that follow."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_decoupled as od

RATE, PYTORCH = 0.01, 0.1
DECAY = RATE * PYTORCH
ETA = optax.cosine_decay_schedule(1.0, 20)


def _params():
    return {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.ones(3)}


def _grads(params, t):
    return jax.tree.map(lambda p: jnp.sin(3 * p + t), params)


def _run(tx, params, state, steps, start=0):
    for t in range(start, start + steps):
        updates, state = jax.jit(tx.update)(_grads(params, t), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _injected(factory, **kwargs):
    return optax.inject_hyperparams(factory)(**kwargs)


ADAMW = lambda: optax.adamw(RATE, weight_decay=PYTORCH)
OURS = lambda: od.adamw(RATE, DECAY)
THEIR_SGD = lambda: optax.chain(optax.add_decayed_weights(PYTORCH), optax.sgd(RATE, momentum=0.9))
OUR_SGD = lambda: od.sgd_l2(RATE, PYTORCH, scale_before_momentum=False)
PAIRS = {
    "adamw": (ADAMW, OURS),
    "adam": (lambda: optax.adam(RATE), lambda: od.adamw(RATE, 0.0)),
    "adamw, scheduled": (
        lambda: optax.adamw(lambda t: RATE * ETA(t), weight_decay=PYTORCH),
        lambda: od.adamw(RATE, DECAY, schedule=ETA),
    ),
    "in a chain": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), ADAMW()),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), OURS()),
    ),
    "injected": (
        lambda: _injected(optax.adamw, learning_rate=RATE, weight_decay=PYTORCH),
        lambda: _injected(od.adamw, learning_rate=RATE, weight_decay=DECAY),
    ),
    "injected schedule": (
        lambda: _injected(optax.sgd, learning_rate=lambda t: RATE * ETA(t), momentum=0.9),
        lambda: _injected(
            od.sgdw,
            learning_rate=RATE,
            weight_decay=0.0,
            schedule=ETA,
            scale_before_momentum=False,
        ),
    ),
    "multi steps": (
        lambda: optax.MultiSteps(ADAMW(), 3),
        lambda: optax.MultiSteps(OURS(), 3),
    ),
    "into and out of apply_if_finite": (ADAMW, lambda: optax.apply_if_finite(OURS(), 3)),
    "sgd": (THEIR_SGD, OUR_SGD),
}


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_run_goes_on_as_if_nothing_had_happened(name, back):
    old, new = (make() for make in (reversed(PAIRS[name]) if back else PAIRS[name]))
    params = _params()
    middle, state = _run(old, params, old.init(params), 7)
    migrated = od.migrate_opt_state(state, new, middle)
    chex.assert_trees_all_equal_structs(migrated, new.init(params))
    chex.assert_trees_all_equal_dtypes(migrated, new.init(params))
    for field in ("mu", "nu", "trace", "acc_grads"):
        found = [optax.tree.get_all_with_path(s, field) for s in (state, migrated)]
        assert len(found[0]) == len(found[1])
        for (_, a), (_, b) in zip(*found, strict=True):
            chex.assert_trees_all_equal(a, b)
    expected, _ = _run(old, middle, state, 5, start=7)
    actual, _ = _run(new, middle, migrated, 5, start=7)
    chex.assert_trees_all_close(actual, expected, rtol=2e-6, atol=1e-7)
    forgotten, _ = _run(new, middle, new.init(middle), 5, start=7)
    difference = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), actual, forgotten)
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_counts_carry_over():
    params = _params()
    _, state = _run(ADAMW(), params, ADAMW().init(params), 7)
    migrated = od.migrate_opt_state(state, od.adamw(RATE, DECAY, schedule=ETA), params)
    counts = [int(value) for _, value in optax.tree.get_all_with_path(migrated, "count")]
    assert counts == [7, 7, 7]


def test_into_and_out_of_multi_steps_between_its_steps():
    params = _params()
    _, state = _run(ADAMW(), params, ADAMW().init(params), 7)
    accumulating = optax.MultiSteps(OURS(), 3)
    there = od.migrate_opt_state(state, accumulating, params)
    assert int(there.gradient_step) == 7
    back = od.migrate_opt_state(there, ADAMW(), params)
    chex.assert_trees_all_equal(back, state)


def test_what_apply_if_finite_counts_comes_and_goes_in_the_midst_of_accumulation():
    params, ours = _params(), OURS()
    within, without = (optax.MultiSteps(x, 3) for x in (optax.apply_if_finite(ours, 3), ours))
    for old, new in [(within, without), (without, within)]:
        _, state = _run(old, params, old.init(params), 4)
        migrated = od.migrate_opt_state(state, new, params)
        assert int(migrated.mini_step) == 1
        chex.assert_trees_all_equal(migrated.acc_grads, state.acc_grads)


def test_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ADAMW(), wrt=nnx.Param)
    grads = _grads(nnx.state(model, nnx.Param), 1)
    for _ in range(3):
        optimizer.update(model, grads)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    migrated = od.migrate_opt_state(optimizer.opt_state, OURS(), params)
    assert int(migrated[0].count) == int(migrated[2].count) == 3
    before = optimizer.opt_state[0].mu["kernel"]
    np.testing.assert_array_equal(migrated[0].mu["kernel"], before[...])
    renewed = nnx.Optimizer(model, OURS(), wrt=nnx.Param)
    nnx.update(renewed.opt_state, nnx.state(migrated))
    renewed.update(model, grads)
    np.testing.assert_array_equal(
        optax.tree.get(renewed.opt_state, "decay_rate"), np.float32(DECAY)
    )
    assert int(renewed.opt_state[0].count[...]) == 4


def test_a_state_of_before_a_mask_or_a_schedule_loads_after():
    params = _params()
    _, state = _run(OURS(), params, OURS().init(params), 3)
    for tx in (
        od.adamw(RATE, DECAY, mask=od.decay_mask),
        od.adamw(RATE, DECAY, schedule=ETA),
        od.adamw(RATE, lambda t: DECAY * ETA(t), cautious=True),
    ):
        chex.assert_trees_all_equal_structs(state, tx.init(params))
        migrated = od.migrate_opt_state(state, tx, params)
        chex.assert_trees_all_equal(migrated[0], state[0])
        _run(tx, params, state, 1)


def test_a_wider_dtype_is_exact():
    params = _params()
    narrow, wide = od.adamw(RATE, DECAY, mu_dtype=jnp.bfloat16), OURS()
    _, state = _run(narrow, params, narrow.init(params), 3)
    migrated = od.migrate_opt_state(state, wide, params)
    chex.assert_trees_all_equal(
        migrated[0].mu, jax.tree.map(lambda m: m.astype(jnp.float32), state[0].mu)
    )


def _state(tx, params=None):
    params = _params() if params is None else params
    return _run(tx, params, tx.init(params), 2)[1]


def test_a_partition_of_two_optimizers():
    labels = {"kernel": "x", "bias": "y"}
    theirs = optax.partition({"x": ADAMW(), "y": ADAMW()}, labels)
    ours = optax.partition({"x": OURS(), "y": OURS()}, labels)
    state = _state(theirs)
    migrated = od.migrate_opt_state(od.migrate_opt_state(state, ours, _params()), ours, _params())
    old, new = (s.inner_states["x"].inner_state[0] for s in (state, migrated))
    chex.assert_trees_all_equal(new, old)


def _partition(adam, sgd):
    return optax.partition({"x": adam, "y": sgd}, {"kernel": "x", "bias": "y"})


def test_units_of_momentum_are_those_of_its_own_chain():
    """A schedule in another group of a partition scales no momentum."""
    old = _partition(ADAMW(), optax.sgd(RATE, momentum=0.9))
    new = _partition(OURS(), od.sgdw(RATE, 0.0, scale_before_momentum=False))
    middle, state = _run(old, _params(), old.init(_params()), 7)
    migrated = od.migrate_opt_state(state, new, middle)
    expected, _ = _run(old, middle, state, 3)
    actual, _ = _run(new, middle, migrated, 3)
    chex.assert_trees_all_close(actual, expected, rtol=2e-6, atol=1e-7)


def test_units_of_momentum_in_a_named_chain():
    schedule = optax.constant_schedule(RATE)
    old = optax.sgd(schedule, momentum=0.9)
    scale, trace = ("b", optax.scale_by_schedule(schedule)), ("a", optax.trace(0.9))
    middle, state = _run(old, _params(), old.init(_params()), 3)
    plain, scaled = (
        optax.named_chain(*order, ("c", optax.scale(-1.0)))
        for order in ((trace, scale), (scale, trace))
    )
    migrated = od.migrate_opt_state(state, plain, middle)
    expected, actual = _run(old, middle, state, 2)[0], _run(plain, middle, migrated, 2)[0]
    chex.assert_trees_all_close(actual, expected, rtol=2e-6)
    with pytest.raises(ValueError, match="buffer holds gradients, the new one scaled"):
        od.migrate_opt_state(state, scaled, middle)


def test_states_of_numpy_arrays_become_those_of_jax():
    state = jax.tree.map(np.asarray, _state(ADAMW()))
    migrated = od.migrate_opt_state(state, OURS(), _params())
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(migrated))


def test_dtypes_that_jax_does_not_promote():
    params = {"w": jnp.ones(3)}
    narrow = optax.adam(RATE, mu_dtype=jnp.float8_e4m3fn)
    migrated = od.migrate_opt_state(narrow.init(params), OURS(), params)
    assert migrated[0].mu["w"].dtype == jnp.float32
    with pytest.raises(ValueError, match="mu/w would lose precision from float32 to float8"):
        od.migrate_opt_state(migrated, narrow, params)
    with jax.numpy_dtype_promotion("strict"):
        od.migrate_opt_state(narrow.init(params), OURS(), params)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(tx, optax.contrib.reduce_on_plateau(factor=0.5, patience=2)),
        lambda tx: optax.chain(tx, optax.apply_every(4)),
        lambda tx: optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1)), tx),
    ],
    ids=["reduce_on_plateau", "apply_every", "add_noise"],
)
def test_states_beside_the_moments_go_on(wrap):
    """Counters that start anew are none of steps; random keys have no precision."""
    old, new = wrap(ADAMW()), wrap(OURS())

    def run(tx, params, state, steps):
        update = jax.jit(lambda *args: tx.update(*args, value=1.0))
        for t in range(steps):
            updates, state = update(_grads(params, t), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    old, new = map(optax.with_extra_args_support, (old, new))
    middle, state = run(old, _params(), old.init(_params()), 7)
    migrated = od.migrate_opt_state(state, new, middle)
    expected, last = run(old, middle, state, 6)
    actual, ours = run(new, middle, migrated, 6)
    chex.assert_trees_all_close(actual, expected, rtol=2e-6, atol=1e-6)
    others = [optax.tree.get(s, "scale", default=None) for s in (last, ours)]
    assert others[0] == others[1]


def test_in_a_compiled_function_the_count_must_be_given():
    state = _state(ADAMW())
    migrate = lambda s, count: od.migrate_opt_state(s, OURS(), _params(), count=count)
    migrated = jax.jit(lambda s: migrate(s, 2))(state)
    chex.assert_trees_all_equal(migrated, migrate(state, None))
    with pytest.raises(ValueError, match=r"counters are traced.*pass count"):
        jax.jit(lambda s: migrate(s, None))(state)


def _noisy(tx, kind):
    return optax.chain(optax.add_noise(0.1, 0.5, key=jax.random.key(1, impl=kind)), tx)


def _disagreeing():
    first, *others = OURS().init(_params())
    return (first._replace(count=jnp.array(7)), *others)


class _Level(optax.schedules.StatefulSchedule):
    """A schedule that remembers more than the step."""

    def init(self):
        return {"count": jnp.zeros([], jnp.int32), "level": jnp.array(RATE)}

    def update(self, state, **extra):
        return {"count": state["count"] + 1, "level": state["level"] / 2}

    def __call__(self, state, **extra):
        return state["level"]


def test_an_injected_schedule_begins_at_the_count_with_the_targets_state():
    tx = optax.inject_hyperparams(od.adamw)(_Level(), DECAY)
    migrated = od.migrate_opt_state(_state(ADAMW()), tx, _params(), count=5)
    state = migrated.hyperparams_states["learning_rate"]
    assert (int(state["count"]), float(state["level"])) == (5, pytest.approx(RATE))


REFUSED = {
    "momentum of another unit in a group": (
        lambda: od.migrate_opt_state(
            _state(
                _partition(
                    optax.adamw(lambda t: RATE * ETA(t)),
                    optax.sgd(optax.constant_schedule(RATE), momentum=0.9),
                )
            ),
            _partition(od.adamw(RATE, DECAY, schedule=ETA), od.sgdw(RATE, DECAY)),
            _params(),
        ),
        ["buffer holds gradients, the new one scaled ones (trace/bias)"],
    ),
    "moments of another kind": (
        lambda: od.migrate_opt_state(_state(optax.adabelief(RATE)), OURS(), _params()),
        ["ScaleByBeliefState", "not", "ScaleByAdamState"],
    ),
    "no moments": (
        lambda: od.migrate_opt_state(_state(optax.sgd(RATE)), OURS(), _params()),
        ["it lacks mu/bias", "it lacks nu/kernel", "tx.init(params)"],
    ),
    "other moments": (
        lambda: od.migrate_opt_state(_state(ADAMW()), OUR_SGD(), _params()),
        ["it lacks trace/bias", "the new optimizer has no mu/bias"],
    ),
    "another shape": (
        lambda: od.migrate_opt_state(_state(ADAMW()), OURS(), {**_params(), "bias": jnp.ones(4)}),
        ["mu/bias has shape (3,), not (4,)"],
    ),
    "another parameter": (
        lambda: od.migrate_opt_state(_state(ADAMW()), OURS(), {"head": jnp.ones(4)}),
        ["it lacks mu/head", "the new optimizer has no mu/bias"],
    ),
    "lost precision": (
        lambda: od.migrate_opt_state(
            _state(ADAMW()), od.adamw(RATE, DECAY, mu_dtype=jnp.bfloat16), _params()
        ),
        ["mu/bias would lose precision from float32 to bfloat16"],
    ),
    "another kind of random key": (
        lambda: od.migrate_opt_state(
            _state(_noisy(ADAMW(), "threefry2x32")), _noisy(OURS(), "rbg"), _params()
        ),
        ["rng_key would lose precision from key<fry> to key<rbg>"],
    ),
    "a smaller range": (
        lambda: od.migrate_opt_state(
            _state(optax.adamw(RATE, mu_dtype=jnp.bfloat16)),
            od.adamw(RATE, DECAY, mu_dtype=jnp.float16),
            _params(),
        ),
        ["mu/bias would lose precision from bfloat16 to float16"],
    ),
    "another unit of momentum": (
        lambda: od.migrate_opt_state(_state(THEIR_SGD()), od.sgdw(RATE, DECAY), _params()),
        ["buffer holds gradients, the new one scaled", "scale_before_momentum"],
    ),
    "and back": (
        lambda: od.migrate_opt_state(_state(od.sgdw(RATE, DECAY)), THEIR_SGD(), _params()),
        ["buffer holds scaled gradients, the new one plain", "scale_before_momentum"],
    ),
    "unknown count": (
        lambda: od.migrate_opt_state(
            _state(THEIR_SGD()),
            od.sgd_l2(RATE, PYTORCH, schedule=ETA, scale_before_momentum=False),
            _params(),
        ),
        ["does not count steps", "pass count"],
    ),
    "unknown count, and an update that needs a loss": (
        lambda: od.migrate_opt_state(
            _state(THEIR_SGD()),
            optax.chain(
                optax.GradientTransformationExtraArgs(
                    optax.init_empty_state, lambda u, s, p=None, *, value, **_: (u * value, s)
                ),
                od.sgd_l2(RATE, PYTORCH, scale_before_momentum=False),
            ),
            _params(),
        ),
        ["does not count steps", "pass count"],
    ),
    "counters that disagree": (
        lambda: od.migrate_opt_state(_disagreeing(), OURS(), _params()),
        ["its counters disagree, [0, 7]: pass count"],
    ),
    "half an accumulation": (
        lambda: od.migrate_opt_state(_state(optax.MultiSteps(ADAMW(), 3)), OURS(), _params()),
        ["the new optimizer has no acc_grads/bias"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, parts = REFUSED[name]
    with pytest.raises(ValueError, match="opt_state cannot be migrated") as caught:
        call()
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value)), caught.value
    assert "[]" not in str(caught.value)  # no moments are of no kind


@pytest.mark.parametrize("count", [-3, 2.7, np.inf])
def test_a_count_must_be_whole(count):
    with pytest.raises(ValueError, match=rf"count={count}.*whole number >= 0"):
        od.migrate_opt_state(_state(ADAMW()), OURS(), _params(), count=count)


@pytest.mark.parametrize("count", [2, 2.0])
def test_a_given_count_is_used(count):
    tx = od.sgd_l2(RATE, PYTORCH, schedule=ETA, scale_before_momentum=False)
    migrated = od.migrate_opt_state(_state(THEIR_SGD()), tx, _params(), count=count)
    assert int(migrated[2].count) == 2
    chex.assert_trees_all_equal_dtypes(migrated, tx.init(_params()))


def test_leaves_that_a_state_gains_are_carried():
    """optax.monitor measures from the first update on; injected values stay the target's."""
    params = {"w": jnp.ones((3, 2))}
    watched = lambda inner: optax.chain(optax.monitor({"norm": optax.tree.norm}), inner)
    old = watched(optax.adamw(1e-3))
    state = old.init(params)
    for _ in range(3):
        _, state = old.update(params, state, params)
    new = watched(optax.inject_hyperparams(od.adamw)(2e-3, 1e-5))
    for start, measured in ((state, {"norm"}), (old.init(params), set())):
        migrated = od.migrate_opt_state(start, new, params)
        assert migrated[0].measurements.keys() == measured
        assert float(migrated[1].hyperparams["learning_rate"]) == pytest.approx(2e-3)
        _, after = new.update(params, migrated, params)
        assert float(optax.tree.get(after, "norm")) == pytest.approx(6**0.5)
    migrated = od.migrate_opt_state(state, new, params)
    assert float(migrated[0].measurements["norm"]) == pytest.approx(6**0.5)
    np.testing.assert_array_equal(migrated[1].inner_state[0].mu["w"], state[1][0].mu["w"])


def test_swapped_arguments_and_untyped_states_are_told():
    params, tx = {"w": jnp.ones((3, 2))}, od.adamw(1e-3, 1e-5)
    state = tx.init(params)
    order = r"order is\s+migrate_opt_state\(opt_state, tx, params\)"
    for swapped in (
        (tx, state, params),
        (state, params, tx),
        (params, state, tx),
        (tx, tx, params),
    ):
        with pytest.raises(TypeError, match=order):
            od.migrate_opt_state(*swapped)
    untyped = [{"count": 0, "mu": params, "nu": params}, None, None]
    with pytest.raises(ValueError, match=r"Restore it into old_tx\.init\(params\)"):
        od.migrate_opt_state(untyped, tx, params)


def test_what_holds_a_state_is_not_one():
    from flax.training.train_state import TrainState

    params, tx = {"w": jnp.ones(3)}, optax.adamw(1e-3)
    train_state = TrainState.create(apply_fn=lambda *_: None, params=params, tx=tx)
    with pytest.raises(TypeError, match=r"a TrainState, which holds more.*its \.opt_state"):
        od.migrate_opt_state(train_state, od.adamw(1e-3, 1e-4), params)
    od.migrate_opt_state(train_state.opt_state, od.adamw(1e-3, 1e-4), params)
    sam = optax.contrib.sam(od.adamw(1e-3, 1e-4), optax.sgd(0.1))  # whose state has such a field
    od.migrate_opt_state(sam.init(params), sam, params)
