"""Histories of runs whose end is known: closed forms, random walks, a quadratic, dead weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

C = 2e-3
SHAPE = (64, 64)


def trained(tx, gradient, steps, start, **known):
    """The history of a run; ``gradient(params, key)``."""
    tx = optax.chain(tx, od.record_weight_dynamics(elements=4096))

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(gradient(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    _, state = run((start, tx.init(start)), jax.random.split(jax.random.key(0), steps))
    return od.recorded_weight_dynamics(state, **known)


def noise(params, key):
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    leaves, structure = jax.tree.flatten(params)
    draw = lambda p, k: jax.random.normal(k, p.shape, p.dtype)
    return structure.unflatten(map(draw, leaves, keys))


def normalized_noise(params, key):
    """Of a scale-invariant loss: orthogonal to the weight, and smaller for a longer one."""

    def tangent(p, g):
        size = jnp.linalg.norm(p)
        return (g - jnp.vdot(g, p) / size**2 * p) / size

    return jax.tree.map(tangent, params, noise(params, key))


WALKS = {
    "adamw": (od.adamw(1e-3, C), noise, od.equilibrium.adamw(1e-3, C).rms, 0.9),
    "adamw, b1=0.5": (
        od.adamw(1e-3, C, b1=0.5),
        noise,
        od.equilibrium.adamw(1e-3, C, 0.5).rms,
        0.5,
    ),
    "adamw, b1=0": (od.adamw(1e-3, C, b1=0.0), noise, od.equilibrium.adamw(1e-3, C, 0.0).rms, 0.0),
    "lion": (
        od.decouple(optax.lion(1e-3, weight_decay=0.0), C),
        noise,
        od.equilibrium.lion(1e-3, C).rms,
        (0.9, 0.99),
    ),
    "sgdw": (
        od.sgdw(1e-3, C, momentum=0.9),
        normalized_noise,
        od.equilibrium.sgdw(1e-3, C, gradient_norm=64.0, size=64 * 64).rms,
        0.9,
    ),
}


@pytest.mark.usefixtures("optimized")  # it trains for long
@pytest.mark.parametrize("name", WALKS)
def test_a_random_walk_is_held_by_noise_at_the_predicted_size(name):
    tx, gradient, rms, b1 = WALKS[name]
    start = {"w": rms * jax.random.normal(jax.random.key(1), SHAPE)}
    history = trained(tx, gradient, 4000, start, weight_decay=C, b1=b1)
    (row,) = history.rows
    half = slice(len(row.rms) // 2, None)
    np.testing.assert_allclose(row.rms[half].mean(), rms, rtol=0.02)
    if b1 == 0:
        assert abs(row.aligned[half].mean() / row.injected[half].mean()) < 0.05
    else:
        assert abs(row.ratio[half].mean() - 1) < 0.05
    assert row.held_by == "noise"
    balance = row.aligned + row.injected - row.removed
    assert abs(balance[half].mean()) < 0.1 * row.removed[0]
    assert row.kind == "settled"


@pytest.mark.usefixtures("optimized")  # it trains for long
def test_a_quadratic_whose_minimum_is_not_0_holds_the_length():
    target = jax.random.normal(jax.random.key(2), SHAPE)
    gradient = lambda p, key: {"w": p["w"] - target + 0.1 * noise(p, key)["w"]}
    start = {"w": jnp.zeros(SHAPE) + 0.5 * target}
    (row,) = trained(od.adamw(1e-2, C), gradient, 4000, start, weight_decay=C).rows
    assert row.kind == "settled"
    assert row.held_by == "the loss"
    half = slice(len(row.rms) // 2, None)
    assert row.aligned[half].mean() / row.injected[half].mean() / 18 > 3


def test_pure_decay_frozen_and_growing_weights():
    start = {name: jnp.ones((32, 32)) for name in ("decays", "frozen", "grows")}
    start["grows"] = jnp.full((32, 32), 1e-3)
    live = lambda p, key: {**jax.tree.map(jnp.zeros_like, p), "grows": noise(p, key)["grows"]}
    mask = {"decays": True, "frozen": False, "grows": True}
    decays = {"decays": 1e-3, "frozen": 0.0, "grows": 1e-3}
    rows = trained(od.adamw(1e-3, 1e-3, mask=mask), live, 300, start, weight_decay=decays).rows
    assert [row.kind for row in rows] == ["only decays", "frozen", "growing"]
    np.testing.assert_allclose(rows[0].growth, (1 - 1e-3) ** 2 - 1, rtol=1e-3)
    assert np.abs(rows[0].aligned).max() < 1e-5
    assert rows[0].injected.max() < 1e-8
    assert not rows[1].growth.any()
    assert not rows[1].rotation.any()
    assert rows[2].growth[-1] > 1e-3


def test_a_decay_that_bfloat16_rounds_away_is_lost():
    start = {"w": jnp.ones(SHAPE, jnp.bfloat16)}
    zeros = lambda p, key: jax.tree.map(jnp.zeros_like, p)
    history = trained(od.adamw(1e-3, 1e-4), zeros, 100, start, weight_decay=1e-4)
    (row,) = history.rows
    assert row.kind == "lost"
    assert row.unchanged.min() == 1
    assert "apply_updates_with_stochastic_rounding" in str(history)
    (row,) = trained(od.adamw(1e-3, 1e-4), zeros, 100, {"w": jnp.ones(SHAPE)}).rows
    assert row.kind == "only decays"  # in float32


def test_the_sampled_run_agrees_with_weight_dynamics_of_the_same_run():
    tx = optax.chain(od.adamw(1e-2, C), od.record_weight_dynamics(elements=4096))
    params = {"w": 0.1 * jax.random.normal(jax.random.key(1), SHAPE)}
    state, measured = tx.init(params), []

    @jax.jit
    def step(params, state, key):
        updates, state = tx.update(noise(params, key), state, params)
        return optax.apply_updates(params, updates), state, od.weight_dynamics(params, updates)

    for key in jax.random.split(jax.random.key(0), 50):
        params, state, dynamics = step(params, state, key)
        measured.append([float(x["w"]) for x in dynamics])
    (row,) = od.recorded_weight_dynamics(state).rows
    found = np.stack([row.rms, row.rotation, row.growth], axis=1)
    np.testing.assert_allclose(found, measured[:-1], rtol=1e-3, atol=1e-6)


def test_schedules_masks_and_rates_give_the_decay_and_the_size_of_each_interval():
    eta = optax.cosine_decay_schedule(1.0, 400)
    start = {"w": 0.02 * jax.random.normal(jax.random.key(1), SHAPE), "b": jnp.ones(4)}
    tx = od.adamw(1e-3, C, schedule=eta, mask={"w": True, "b": False})
    known = {"weight_decay": {"w": C, "b": 0.0}, "schedule": eta, "learning_rate": 1e-3}
    rows = trained(tx, noise, 401, start, **known).rows
    history = trained(tx, noise, 401, start, **known)
    b, w = history.rows
    assert rows[0].path == b.path == "b"
    assert not b.removed.any()
    ends = history.steps
    exact = [2 * C * np.mean(eta(np.arange(end - history.interval, end))) for end in ends]
    np.testing.assert_allclose(w.removed, exact, rtol=1e-3)
    run = od.equilibrium.rms_over_run(1e-3, C, eta, 400, float(w.rms[0]))
    np.testing.assert_allclose(w.predicted_rms[-1], run[-1], rtol=0.02)
    np.testing.assert_allclose(w.rms[-1], w.predicted_rms[-1], rtol=0.05)


def written(
    rms,
    removed=0.02,
    ratio=1.0,
    angle=0.1,
    unchanged=0.0,
    still=False,
    shape=(8, 8),
    injected=None,
    stride=64,
):
    """A state whose intervals of 64 updates have these numbers; `ratio` without momentum."""
    square, c = np.square(np.asarray(rms, float)), removed / 2
    injected = removed if injected is None else injected
    along = ratio * injected / 2 - c
    change = 0.0 if still else injected - 2 * c * along - c**2
    ones = np.ones(len(square))
    columns = [square, along * square, change * square, angle**2 * square, unchanged * ones]
    state = od.record_weight_dynamics().init({"w": jnp.ones(shape)})
    n = len(square)
    table = state.table.at[:n, 0].set(np.stack(columns, axis=1))
    whole = lambda x: jnp.asarray(x, jnp.int32)
    table = table if still is not True else table.at[:, :, 1].set(0)
    return state._replace(
        table=table,
        size=whole(n),
        stride=whole(stride),
        count=whole(n * stride + 1),
        pending=whole(0),
    )


# Around each threshold: the numbers of the intervals, and the verdict on them.
VERDICTS = {
    "a trend of 4 %": (dict(rms=[1.0] * 12 + [1.04] * 4), "settled"),
    "of 6 %": (dict(rms=[1.0] * 12 + [1.06] * 4), "growing"),
    "of -4 %": (dict(rms=[1.0] * 12 + [0.96] * 4), "settled"),
    "of -6 %": (dict(rms=[1.0] * 12 + [0.94] * 4), "shrinking"),
    "earlier quarters": (dict(rms=[3.0] * 8 + [1.0] * 8), "settled"),
    "it was zero": (dict(rms=[0.0] * 12 + [1.0] * 4), "growing"),
    "eight intervals": (dict(rms=[1.0] * 8), "settled"),
    "seven": (dict(rms=[1.0] * 7), "too short"),
    "none": (dict(rms=[]), "too short"),
    "98.5 % unchanged": (dict(rms=[1.0] * 8, unchanged=0.985), "settled"),
    "99.5 % unchanged": (dict(rms=[1.0] * 8, unchanged=0.995), "lost"),
    "no change": (dict(rms=[1.0] * 8, still=True), "frozen"),
    "half unchanged, the rest idle": (dict(rms=[1.0] * 8, still=True, unchanged=0.5), "lost"),
    "updates of 0.8 % of the decay": (
        dict(rms=[1.0] * 8, ratio=0, injected=16e-5, angle=9e-4),
        "only decays",
    ),
    "of 1.2 %": (dict(rms=[1.0] * 8, ratio=0, injected=24e-5, angle=9e-4), "settled"),
    "a turn of 11 % of it": (dict(rms=[1.0] * 8, ratio=0, injected=16e-5, angle=11e-4), "settled"),
    "one element": (dict(rms=[1.0] * 8, ratio=0, injected=0, angle=0, shape=(1,)), "only decays"),
    "decay that had time": (dict(rms=[1.0] * 8, removed=0.02, stride=16), "settled"),
    "that had none": (dict(rms=[1.0] * 8, removed=0.02, stride=8), "steady"),
    "not a number": (dict(rms=[1.0] * 7 + [np.nan]), "not finite"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_on_each_side_of_a_threshold(name):
    numbers, kind = VERDICTS[name]
    (row,) = od.recorded_weight_dynamics(written(**numbers), weight_decay=0.01, b1=0.0).rows
    assert row.kind == kind


def test_without_a_known_decay_a_weight_only_decays_if_no_update_turns_it():
    read = lambda **numbers: od.recorded_weight_dynamics(written([1.0] * 8, ratio=0, **numbers))
    assert read(angle=0.09 * 0.01).rows[0].kind == "only decays"
    assert "or by a loss that pulls" in " ".join(str(read(angle=0.09 * 0.01)).split())
    assert read(angle=0.11 * 0.01).rows[0].kind == "settled"
    assert read(angle=0.0, shape=(1,)).rows[0].kind == "settled"


def test_a_weight_is_settled_from_the_last_interval_that_is_far_from_its_final_rms():
    rms = [1.0, 1.5, 1.2, 1.12, 1.08, *[1.0] * 11]  # farther than 10 % up to the fourth
    history = od.recorded_weight_dynamics(written(rms))
    assert history.rows[0].since == history.steps[4]
    assert od.recorded_weight_dynamics(written([1.0] * 16)).rows[0].since == 64


@pytest.mark.parametrize(
    ("ratio", "b1", "held_by"),
    [
        (1.3, 0.9, "noise"),
        (1.5, 0.9, "the loss"),
        (0.75, 0.9, "noise"),
        (0.68, 0.9, "the loss"),
        (-1.0, 0.9, "the loss"),
        (0.35, 0.0, "noise"),
        (-0.35, 0.0, "noise"),
        (0.45, 0.0, "the loss"),
        (1.0, 0.0, "the loss"),
    ],
)
def test_noise_holds_a_weight_with_the_ratio_of_noise(ratio, b1, held_by):
    read = od.recorded_weight_dynamics
    state = written([1.0] * 16, ratio=ratio * (18 if b1 else 1))
    (row,) = read(state, weight_decay=0.01, b1=b1).rows
    np.testing.assert_allclose(row.ratio, ratio, rtol=1e-4)
    np.testing.assert_allclose(row.last_ratio, ratio, rtol=1e-4)
    assert row.held_by == held_by
    assert read(state).rows[0].held_by is None  # the decay is unknown
    assert read(state, weight_decay=0.0).rows[0].held_by is None
    short = written([1.0] * 16, ratio=ratio, stride=4)
    assert read(short, weight_decay=0.01).rows[0].held_by is None  # decay had no time


def test_one_call_that_replaces_the_weights_does_not_change_the_ratio():
    state = written([1.0] * 32, ratio=18.0)
    outlier = state.table[25, 0] * jnp.array([1.0, -50.0, 1000.0, 1000.0, 1.0])
    replaced = state._replace(table=state.table.at[25, 0].set(outlier))
    (row,) = od.recorded_weight_dynamics(replaced, weight_decay=0.01).rows
    np.testing.assert_allclose(row.last_ratio, 1, rtol=1e-3)
    assert row.held_by == "noise"


def test_a_mask_is_that_of_the_optimizer_and_a_decay_is_a_fraction():
    params = {"layer": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    recorder = od.record_weight_dynamics()
    state = recorder.init(params)
    for _ in range(3):
        _, state = recorder.update(params, state, params)
    read = functools.partial(od.recorded_weight_dynamics, state)
    bias, kernel = read(weight_decay=1e-3, mask=od.decay_mask).rows
    np.testing.assert_allclose(kernel.removed, 2e-3)
    assert not bias.removed.any()
    halved = read(weight_decay=1e-3, mask={"layer": {"kernel": 0.5, "bias": 0.0}}).rows[1]
    np.testing.assert_allclose(halved.removed, 1e-3)
    for wrong in (True, -5.0, 2.0, lambda t: t):
        with pytest.raises((TypeError, ValueError), match="weight_decay at 'layer/bias'"):
            read(weight_decay={"layer": {"kernel": 0.0, "bias": wrong}})


def test_a_stack_of_histories_says_how_to_take_one():
    recorder = od.record_weight_dynamics(capacity=8)
    state = jax.vmap(recorder.init)({"w": jnp.ones((3, 4))})
    with pytest.raises(ValueError, match=r"stack of 3 weight histories.*x\[0\]"):
        od.recorded_weight_dynamics(state)
    one = jax.tree.map(lambda x: x[0], state)
    assert len(od.recorded_weight_dynamics(one).rows) == 1


def test_the_last_half_of_a_run_decides_what_holds_a_weight():
    """The ratio falls from 5 to 1, or rises."""
    for ratios, held_by in (([5.0, 1.0], "noise"), ([1.0, 5.0], "the loss")):
        state = written([1.0] * 16, ratio=18 * np.repeat(ratios, 8))
        (row,) = od.recorded_weight_dynamics(state, weight_decay=0.01).rows
        assert row.held_by == held_by


def test_a_long_interval_has_the_mean_of_its_schedule():
    """6,400 updates, of which 64 counts are evaluated, at the middle of each hundred."""
    state = written([1.0])._replace(stride=jnp.asarray(6400), count=jnp.asarray(6401))
    known = dict(weight_decay=0.01, schedule=lambda count: count / 6400)
    (row,) = od.recorded_weight_dynamics(state, **known).rows
    np.testing.assert_allclose(row.removed, 2 * 0.01 * np.arange(6400).mean() / 6400, rtol=1e-3)


@pytest.mark.parametrize("decay", [0.005, 0.0])
def test_the_predicted_size_after_long_intervals(decay):
    """At the equilibrium of AdamW it stays; without decay the squares add up."""
    start = 1e-3 / np.sqrt(1 - 0.995**2)
    state = written([start] * 4)._replace(stride=jnp.asarray(1000), count=jnp.asarray(4001))
    (row,) = od.recorded_weight_dynamics(state, weight_decay=decay, learning_rate=1e-3).rows
    added = 0.0 if decay else 1e-6 * 1000 * np.arange(4)
    np.testing.assert_allclose(row.predicted_rms, np.sqrt(start**2 + added), rtol=1e-5)


def test_a_name_with_a_bracket_is_no_slice():
    state = od.record_weight_dynamics().init({"w[0]": jnp.ones(3)})
    state = state._replace(size=jnp.asarray(1), count=jnp.asarray(2), pending=jnp.asarray(0))
    (row,) = od.recorded_weight_dynamics(state, weight_decay={"w[0]": 0.01}).rows
    np.testing.assert_allclose(row.removed, 0.02)


def test_arguments_and_states_that_do_not_fit():
    recorder = od.record_weight_dynamics()
    state = recorder.init({"w": jnp.ones(3)})
    read = od.recorded_weight_dynamics
    with pytest.raises(ValueError, match=r"holds no weight history.*record_weight_dynamics"):
        read(od.adamw(1e-3, 1e-4).init(jnp.ones(3)))
    _, longer = recorder.update(jnp.zeros(3), state, {"w": jnp.ones(3)})
    _, longer = recorder.update({"w": jnp.zeros(3)}, longer, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="2 weight histories of 0, 1 updates"):
        read((state, longer))
    short, late = (written([1.0] * 8)._replace(count=jnp.asarray(n)) for n in (9, 14))
    with pytest.raises(ValueError, match="2 weight histories of 8, 13 updates"):
        read((short, late))
    with pytest.raises(ValueError, match="weight_decay has no entry for 'w'"):
        read(longer, weight_decay={"v": 1e-4})
    with pytest.raises(ValueError, match=r"b1=1\.0 is not allowed"):
        read(longer, b1=1.0)
    with pytest.raises(ValueError, match=r"weight_decay=2\.0 is not allowed"):
        read(longer, weight_decay=2.0)
    assert "no interval yet" in str(read(state))
    assert read(state).metrics() == {}


def test_the_metrics_have_no_ratio_of_weights_without_decay():
    params = {"w": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    tx = optax.chain(od.adamw(1e-2, 1e-3, mask=od.decay_mask), od.record_weight_dynamics())
    state = tx.init(params)
    for i in range(4):
        grads = jax.tree.map(lambda p, i=i: jax.random.normal(jax.random.key(i), p.shape), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    history = od.recorded_weight_dynamics(state, weight_decay=1e-3, mask=od.decay_mask)
    found = [key for key in history.metrics() if key.endswith("ratio")]
    assert found == ["decay/w/ratio"]
    assert "decay/bias/rms" in history.metrics()


def test_a_multiplier_of_each_layer_is_that_of_its_slice():
    params = {"blocks": jnp.ones((3, 4, 4))}
    recorder = od.record_weight_dynamics(stacked=1)
    state = recorder.init(params)
    for _ in range(3):
        _, state = recorder.update(params, state, params)
    read = functools.partial(od.recorded_weight_dynamics, state, weight_decay=1e-3)
    for shape in ((3, 1, 1), (3, 4, 4)):
        w = np.broadcast_to(np.array([1.0, 0.5, 0.0])[:, None, None], shape)
        removed = [row.removed[-1] for row in read(mask={"blocks": w}).rows]
        np.testing.assert_allclose(removed, [2e-3, 1e-3, 0.0])
    columns = np.array([1.0, 0.0, 0.0, 1.0])  # the same for every layer
    removed = [row.removed[-1] for row in read(mask={"blocks": columns}).rows]
    np.testing.assert_allclose(removed, 1e-3)


@pytest.mark.parametrize(
    ("rate", "conversion"),
    [
        (None, r"\(0.1, learning_rate\)"),
        (0.003, r"\(0.1, 0.003\) = 0.0003"),
        (optax.cosine_decay_schedule(0.003, 100), r"\(0.1, 0.003\) = 0.0003"),
    ],
    ids=["unknown", "number", "schedule"],
)
def test_a_decay_that_looks_like_pytorchs_warns_with_the_converted_value(rate, conversion):
    state = written([1.0] * 8)
    with pytest.warns(UserWarning, match=rf"looks like a PyTorch.*{conversion}"):
        od.recorded_weight_dynamics(state, weight_decay=0.1, learning_rate=rate)


@pytest.mark.parametrize(
    ("rms", "cell"),
    [
        ([1.0] * 12 + [1.043] * 4, "+4.3"),
        ([1.0] * 6 + [0.75] * 2, "-25"),
        ([1.0] * 6 + [1.997] * 2, "+100"),
        ([1.0] * 6 + [3.1] * 2, "+210"),  # without an exponent
        ([1e-3] * 6 + [50.0] * 2, "+4,999,900"),
        ([1.0] * 5 + [2.0] * 2, None),  # too few for a verdict
    ],
)
def test_the_printed_change_is_that_of_the_last_quarter_however_short_the_run(rms, cell):
    lines = str(od.recorded_weight_dynamics(written(rms))).splitlines()
    header, row = lines[-2].split(), lines[-1].split()
    assert header[4] == "%/quarter"
    assert row[4] == cell if cell else row[4:] == ["too", "short"]
