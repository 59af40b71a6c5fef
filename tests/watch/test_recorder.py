"""The recorder's averages against NumPy in float64, closed forms, its memory and its table."""

import itertools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal

import optax_decoupled as od
from optax_decoupled._watch import samples

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]


def history_of(trajectory, updates=None, dynamics=None, **options):
    """The history of a recorder that sees these parameters, one tree after another."""
    recorder = od.record_weight_dynamics(**options)
    state, update = jax.jit(recorder.init)(trajectory[0]), jax.jit(recorder.update)
    for i, params in enumerate(trajectory):
        given = jax.tree.map(np.zeros_like, params) if updates is None else updates[i]
        _, state = update(given, state, params)
    return od.recorded_weight_dynamics(state, **(dynamics or {}))


def reference(before, after):
    """rms, rotation and growth of one change, in float64."""
    wide = np.complex128 if np.iscomplexobj(before) else np.float64
    theta, change = (np.asarray(x, wide).ravel() for x in (before, after))
    theta, change = theta.view(float), (change - theta).view(float)
    rms = np.sqrt(theta @ theta / len(np.ravel(before)))
    share = theta @ change / (theta @ theta)
    across = change - share * theta
    rotation = np.arctan2(np.linalg.norm(across) / np.linalg.norm(theta), 1 + share)
    growth = (2 * theta @ change + change @ change) / (theta @ theta)
    return rms, rotation, growth


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (20, 30)])
def test_a_whole_sample_gives_the_numbers_of_the_weight(shape, dtype):
    params = [{"w": normal(shape, dtype, seed, 0.1) + np.ones((), dtype)} for seed in range(4)]
    (row,) = history_of(params, elements=2048).rows
    wanted = [reference(a["w"], b["w"]) for a, b in itertools.pairwise(params)]
    measured = np.stack([row.rms, row.rotation, row.growth], axis=1)
    np.testing.assert_allclose(measured, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_double_precision_sees_changes_that_float32_rounds_away(dtype):
    with jax.enable_x64(True):
        before = normal((20, 30), dtype)
        params = [{"w": before}, {"w": before * (1 - 1e-10)}]
        (row,) = history_of(params).rows
    np.testing.assert_allclose(row.growth, -2e-10, rtol=1e-4)


@pytest.mark.parametrize("shape", [(5000,), (300, 200), (7, 300, 200), (2, 3, 4, 900)])
def test_a_sample_is_spread_over_the_weight_and_as_large_as_it_may_be(shape):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (weight,) = samples.layout({"w": values}, None, 1024).weights
    sample = np.asarray(samples.sampled(weight, values)).ravel()
    assert 700 <= len(sample) <= 1024
    assert len(set(sample)) == len(sample)
    quarters = np.histogram(sample, 4, (0, values.size))[0] / len(sample)
    assert quarters.min() > 0.15


@pytest.mark.parametrize(
    ("shape", "elements", "places"),
    [((7,), 1, [3]), ((15,), 3, [2, 7, 12]), ((10, 10, 10), 1000, range(1000))],
)
def test_each_sampled_element_is_in_the_middle_of_its_part(shape, elements, places):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (weight,) = samples.layout({"w": values}, None, elements).weights
    np.testing.assert_array_equal(samples.sampled(weight, values).ravel(), places)


@pytest.mark.parametrize("period", [2, 3, 64, 96, 128])
@pytest.mark.parametrize("shape", [(2048,), (512, 1024), (3072, 64), (4096, 8192)])
def test_a_sample_sees_every_part_of_a_head(shape, period):
    values = np.arange(shape[-1]) % period + np.zeros(shape, np.int32)
    (weight,) = samples.layout({"w": np.zeros(shape, np.float32)}, None, 1024).weights
    seen = np.unique(np.asarray(samples.sampled(weight, values)))
    assert len(seen) >= min(period, 12)


def test_a_sample_agrees_with_the_whole_weight_within_its_error():
    params = [{"w": normal((400, 500), seed=seed) * (1 + 0.1 * seed)} for seed in range(3)]
    (row,) = history_of(params).rows
    wanted = [reference(a["w"], b["w"]) for a, b in itertools.pairwise(params)]
    np.testing.assert_allclose(row.rms, [w[0] for w in wanted], rtol=0.08)
    np.testing.assert_allclose(row.rotation, [w[1] for w in wanted], rtol=0.08)


@pytest.mark.parametrize("calls", [9, 64, 65, 130, 1000])
def test_merged_intervals_are_the_means_of_their_calls(calls):
    sizes = 1 + np.random.default_rng(0).random(calls + 1)
    recorder = od.record_weight_dynamics(capacity=12)
    state = recorder.init(jnp.ones(1))

    def step(state, size):
        return recorder.update(jnp.zeros(1), state, size[None])[1], None

    state, _ = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(
        state, jnp.asarray(sizes, jnp.float32)
    )
    history = od.recorded_weight_dynamics(state)
    n, stride = len(history.steps), history.interval
    assert 4 <= n < 8
    assert stride == 2 ** max(int(np.ceil(np.log2((calls + 1) / 8))), 0)
    squares = np.square(np.float32(sizes), dtype=float)[: n * stride].reshape(n, stride)
    np.testing.assert_allclose(history.rows[0].rms ** 2, squares.mean(1), rtol=1e-6)
    assert history.steps.tolist() == [stride * (i + 1) for i in range(n)]


def test_sums_do_not_stall_over_a_million_steps():
    recorder = od.record_weight_dynamics(capacity=8)
    size = np.float32(0.1)
    state = recorder.init(jnp.full(1, size))
    step = lambda _, state: recorder.update(jnp.zeros(1), state, jnp.full(1, size))[1]
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 1_000_001, step, s))(state)
    history = od.recorded_weight_dynamics(state)
    assert history.interval == 2**18
    assert history.steps[-1] == 3 * 2**18
    np.testing.assert_allclose(history.rows[0].rms, size, rtol=4e-6)
    # A plain float32 sum of as many terms is off by far more.
    plain = np.cumsum(np.full(2**18, size * size, np.float32), dtype=np.float32)[-1] / 2**18
    assert abs(np.sqrt(plain) / size - 1) > 4e-4


@pytest.mark.parametrize("shapes", [[(400, 400)], [(3,), (64, 64)], [()] * 5, [(2000,)] * 3])
@pytest.mark.parametrize(("elements", "capacity"), [(1024, 256), (100, 8), (1, 64)])
def test_memory_is_bounded(shapes, elements, capacity):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.complex64):
        params = {f"w{i}": np.zeros(shape, dtype) for i, shape in enumerate(shapes)}
        recorder = od.record_weight_dynamics(elements=elements, capacity=capacity)
        state = jax.eval_shape(recorder.init, params)
        used = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state._replace(labels=None)))
        assert used <= len(shapes) * (4 * max(elements, 2) + 20 * capacity)


@pytest.mark.usefixtures("optimized")
def test_updates_pass_bit_for_bit_and_nothing_compiles_twice():
    params = {"a": normal((50, 60)), "b": normal((60,), jnp.bfloat16), "n": jnp.arange(3)}
    grads = {
        "a": normal((50, 60), seed=1),
        "b": normal((60,), jnp.bfloat16, 2),
        "n": jnp.zeros(3, int),
    }
    bare = od.adamw(1e-3, 1e-4)
    both = optax.chain(bare, od.record_weight_dynamics())

    def steps(tx):
        update = jax.jit(chex.assert_max_traces(tx.update, n=1))
        state, theta = tx.init(params), params
        for _ in range(20):
            updates, state = update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
            yield updates

    chex.clear_trace_counter()
    first = list(steps(bare))
    chex.clear_trace_counter()
    for one, two in zip(first, steps(both), strict=True):
        chex.assert_trees_all_equal(one, two)
        chex.assert_trees_all_equal_dtypes(one, two)


def test_without_params_or_with_bad_arguments_it_says_what_to_do():
    recorder = od.record_weight_dynamics()
    with pytest.raises(ValueError, match="params=None in record_weight_dynamics"):
        recorder.update(jnp.ones(2), recorder.init(jnp.ones(2)))
    for arguments in ({"capacity": 7}, {"capacity": 0}, {"elements": 0}, {"elements": 2.5}):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"^{name}="):
            od.record_weight_dynamics(**arguments)
    with pytest.raises(ValueError, match="stacked=2 at 'w'"):
        od.record_weight_dynamics(stacked=2).init({"w": jnp.ones(3)})


def test_stacked_weights_have_a_row_for_each_slice():
    params = {"blocks": normal((3, 8, 8)), "head": normal((8, 4))}
    stacked = {"blocks": 1, "head": 0}
    scales = [
        {"blocks": np.float32(1 - 1e-2 * i * np.arange(3))[:, None, None], "head": 1}
        for i in range(3)
    ]
    trajectory = [jax.tree.map(np.multiply, params, scale) for scale in scales]
    rows = history_of(trajectory, stacked=stacked).rows
    assert [row.path for row in rows] == ["blocks[0]", "blocks[1]", "blocks[2]", "head"]
    assert [row.shape for row in rows] == [(8, 8)] * 3 + [(8, 4)]
    for row, k in zip(rows, [0, 1, 2, 0], strict=True):
        np.testing.assert_allclose(row.growth[0], (1 - 1e-2 * k) ** 2 - 1, atol=1e-6)


def test_integers_empty_leaves_and_masked_ones_have_no_row():
    params = {"w": jnp.ones(3), "n": jnp.arange(2), "e": jnp.ones((0, 4)), "m": optax.MaskedNode()}
    assert [row.path for row in history_of([params] * 3).rows] == ["w"]
    assert history_of([{"n": jnp.arange(2)}] * 3).rows == ()


def test_what_bfloat16_rounds_away_is_counted_and_a_frozen_weight_is_not():
    params = {name: np.ones(1000, jnp.bfloat16) for name in ("lost", "half", "frozen")}
    small = np.full(1000, -1e-4, jnp.bfloat16)
    half = np.where(np.arange(1000) < 500, small, np.zeros_like(small))
    updates = {"lost": small, "half": half, "frozen": np.zeros_like(small)}
    rows = history_of([params] * 12, [updates] * 12).rows
    shares = {row.path: row.unchanged for row in rows}
    np.testing.assert_allclose(shares["lost"], 1)
    np.testing.assert_allclose(shares["half"], 0.5, atol=0.02)
    np.testing.assert_allclose(shares["frozen"], 0)
    assert [row.kind for row in rows] == ["frozen", "lost", "lost"]


def test_other_code_that_changes_the_weights_is_seen():
    trajectory = [{"w": np.full(10, 0.9**i, np.float32)} for i in range(4)]  # no update says so
    (row,) = history_of(trajectory).rows
    np.testing.assert_allclose(row.growth, 0.81 - 1, rtol=1e-5)


def test_elements_without_an_update_that_other_code_changes_are_not_counted_as_lost():
    recorder, zeros = od.record_weight_dynamics(), {"w": jnp.zeros(10, jnp.bfloat16)}
    params = [{"w": jnp.full(10, 0.5**i, jnp.bfloat16)} for i in range(4)]
    state = recorder.init(params[0])
    for theta in params:
        _, state = recorder.update(zeros, state, theta)
    np.testing.assert_array_equal(od.recorded_weight_dynamics(state).rows[0].unchanged, 0)


@pytest.mark.parametrize(("capacity", "intervals"), [(8, 4), (9, 4), (11, 6)])
def test_a_table_has_an_even_number_of_intervals(capacity, intervals):
    recorder, params = od.record_weight_dynamics(capacity=capacity), jnp.ones(3)
    state = recorder.init(params)
    assert len(state.table) == intervals
    for _ in range(2):
        _, state = recorder.update(params, state, params)  # merging takes them in pairs
    assert state.size == 1


def test_a_weight_that_is_zero_has_finite_averages():
    recorder, zeros = od.record_weight_dynamics(), {"w": jnp.zeros(4)}
    state = recorder.init(zeros)
    for value in (0.0, 0.0, 1.0):
        _, state = recorder.update(zeros, state, {"w": jnp.full(4, value)})
    assert np.isfinite(state.table).all()
    (row,) = od.recorded_weight_dynamics(state).rows
    np.testing.assert_array_equal(row.rotation, 0.0)


def assert_same(report, expected):
    """To 1e-6: the recorder takes norms, so its chain is measured on other samples."""
    for row, wanted in zip(report.rows, expected.rows, strict=True):
        assert (row.path, row.kind) == (wanted.path, wanted.kind)
        for name in ("decay_per_step", "budget", "left"):
            value = pytest.approx(getattr(wanted, name), rel=1e-6, nan_ok=True)
            assert getattr(row, name) == value


def test_explain_measures_the_optimizer_alone():
    params = {"w": normal((300, 400)), "b": jnp.zeros(400)}
    bare = od.adamw(1e-3, 1e-4, mask=od.decay_mask)
    both = optax.chain(bare, od.record_weight_dynamics())
    expected = od.explain_weight_decay(bare, params)
    assert_same(od.explain_weight_decay(both, params), expected)
    state = both.init(params)
    for _ in range(3):
        _, state = jax.jit(both.update)(params, state, params)
    running = od.explain_weight_decay(both, params, state=state, steps=100)
    assert_same(running, od.explain_weight_decay(bare, params, state=state[0], steps=100))


def recorded(tx, steps=5, **options):
    """A chain with a recorder, and its state and parameters after some updates."""
    chain, params = optax.chain(tx, od.record_weight_dynamics(**options)), {"w": normal((8, 8))}
    state = chain.init(params)
    for _ in range(steps):
        updates, state = chain.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return chain, state, params


def test_a_migration_carries_the_history_and_the_resumed_run_goes_on_in_it():
    _, state, params = recorded(optax.adamw(1e-3))
    chain = optax.chain(od.adamw(1e-3, 1e-4), od.record_weight_dynamics())
    migrated = od.migrate_opt_state(state, chain, params)
    before = od.recorded_weight_dynamics(state).rows[0].rms
    assert len(before) == 4
    _, migrated = chain.update(params, migrated, params)
    after = od.recorded_weight_dynamics(migrated).rows[0].rms
    np.testing.assert_array_equal(after[:4], before)
    assert len(after) == 5
    back = od.migrate_opt_state(migrated, optax.chain(optax.adamw(1e-3), chain_end()), params)
    assert od.recorded_weight_dynamics(back).steps.tolist() == [1, 2, 3, 4, 5]


def chain_end():
    return od.record_weight_dynamics()


def test_a_migration_says_that_a_history_begins_anew_or_ends():
    _, state, params = recorded(optax.adamw(1e-3))
    bare, recorder = od.adamw(1e-3, 1e-4), od.record_weight_dynamics(capacity=32)
    with pytest.warns(UserWarning, match="history of opt_state is not carried over"):
        lean = od.migrate_opt_state(state, bare, params)
    with pytest.warns(UserWarning, match="history begins anew"):
        smaller = od.migrate_opt_state(state, optax.chain(bare, recorder), params)
    with warnings.catch_warnings():  # nothing is lost
        warnings.simplefilter("error")
        fresh = od.migrate_opt_state(lean, optax.chain(bare, recorder), params)
    for begun, chain in ((smaller, 32), (fresh, 32)):
        assert begun[0][0].count == 5
        assert len(od.recorded_weight_dynamics(begun).steps) == 0
        tx = optax.chain(bare, od.record_weight_dynamics(capacity=chain))
        for _ in range(3):
            _, begun = tx.update(params, begun, params)
        assert od.recorded_weight_dynamics(begun).steps.tolist() == [6, 7]  # of the whole run


def test_parameters_of_another_shape_or_number_are_refused():
    recorder = od.record_weight_dynamics()
    state = recorder.init({"w": jnp.ones((3, 4))})
    for other in ({"w": jnp.ones((3, 5))}, {"w": jnp.ones((3, 4)), "v": jnp.ones(2)}, {"w": 1.0}):
        with pytest.raises(ValueError, match="not those of this weight history"):
            recorder.update(other, state, other)


def test_weights_that_are_no_numbers_are_said_to_be():
    bad = {"w": jnp.full(4, jnp.nan)}
    history = history_of([{"w": jnp.ones(4)}] * 3 + [bad] * 9)
    assert history.rows[0].kind == "not finite"
    assert "hold NaN or infinity" in str(history)


def test_an_update_compiled_for_explain_records_in_training():
    tx = recorded(od.adamw(1e-3, 1e-4), steps=0)[0]
    tx = optax.GradientTransformation(tx.init, jax.jit(tx.update))
    params = {"w": normal((8, 8))}
    od.explain_weight_decay(tx, params)
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    assert len(od.recorded_weight_dynamics(state).steps) == 2
