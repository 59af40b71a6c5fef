"""Warm restarts and normalized decay: exact boundaries, pure functions of the step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from problems import STEPS, relative_error, train

import optax_decoupled as od

MULTS = [1, 2, 1.5]
LAST = 2**31 - 1


def _lengths(first, mult):
    """Cycle lengths in exact integer arithmetic."""
    return (round(first * mult**i) for i in itertools.count())


@pytest.mark.parametrize("mult", MULTS)
def test_boundaries_of_four_cycles(mult):
    first, norm = 7, 0.05
    eta = od.schedules.warm_restarts(first, mult, eta_min=0.1)
    decay = od.schedules.normalized_weight_decay(norm, first, mult)
    start = 0
    for cycle, length in enumerate(itertools.islice(_lengths(first, mult), 4)):
        last = start + length - 1
        assert float(eta(start)) == 1.0
        expected = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (length - 1) / length))
        np.testing.assert_allclose(eta(last), expected, rtol=1e-6)
        for step, within in ((start, 0), (last, length - 1)):
            assert tuple(map(int, od.schedules.warm_restart_position(step, first, mult))) == (
                cycle,
                within,
                length,
            )
            np.testing.assert_allclose(decay(step), norm / np.sqrt(length), rtol=1e-6)
        start += length


@pytest.mark.parametrize("mult", [*MULTS, 3, 1.01])
@pytest.mark.parametrize("first", [1, 7, 1000, 39_100, 2**31 - 1])
def test_positions_are_exact_up_to_the_last_int32_step(first, mult):
    steps, expected = [], []
    start = 0
    for cycle, length in enumerate(_lengths(first, mult)):
        if start > LAST or cycle > 3000:
            break
        for step in (start, min(start + length - 1, LAST)):
            steps.append(step)
            expected.append((cycle, step - start, min(length, LAST)))
        start += length
    actual = od.schedules.warm_restart_position(jnp.asarray(steps, jnp.int32), first, mult)
    np.testing.assert_array_equal(np.stack(actual, axis=1), expected)


@pytest.mark.parametrize("first", [1, 3, 1000])
def test_equal_cycles_need_no_table(first):
    cycle, within, length = od.schedules.warm_restart_position(LAST, first, 1)
    assert (int(cycle), int(within), int(length)) == (LAST // first, LAST % first, first)


def test_the_papers_boundaries():
    """T_0 = 100 and T_mult = 2 end cycles at 100, 300, 700 and 1500."""
    eta = od.schedules.warm_restarts(100, 2)
    ends = jnp.array([100, 300, 700, 1500])
    np.testing.assert_array_equal(eta(ends), 1.0)
    assert np.all(np.asarray(eta(ends - 1)) < 3e-4)


@pytest.mark.parametrize("mult", MULTS)
def test_schedule_is_sgdr_at_every_step(mult):
    with jax.enable_x64(True):
        eta = od.schedules.warm_restarts(20, mult, eta_min=0.05)(jnp.arange(400))
        decay = od.schedules.normalized_weight_decay(0.05, 20, mult)(jnp.arange(400))
    assert eta.dtype == decay.dtype == np.float64
    np.testing.assert_allclose(eta, reference.warm_restarts(20, mult, 0.05, 400), rtol=1e-12)
    np.testing.assert_allclose(decay, reference.normalized_decay(0.05, 20, mult, 400), rtol=1e-12)


@given(
    first=st.integers(1, 10_000),
    mult=st.floats(1.05, 4.0),
    eta_min=st.floats(0.0, 0.99),
    cycle=st.integers(0, 5),
)
def test_every_restart_is_exactly_one(first, mult, eta_min, cycle):
    start = sum(itertools.islice(_lengths(first, mult), cycle))
    assert float(od.schedules.warm_restarts(first, mult, eta_min=eta_min)(start)) == 1.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_narrow_floor_leaves_the_restart_at_one(dtype):
    floor = dtype(1e-3)
    eta = od.schedules.warm_restarts(10, eta_min=floor)(jnp.arange(11))
    assert eta.dtype == jnp.float32
    assert eta[0] == eta[10] == 1.0
    expected = od.schedules.warm_restarts(10, eta_min=float(floor))(jnp.arange(11))
    np.testing.assert_allclose(eta, expected, rtol=1e-6)


@pytest.mark.parametrize("factory", [od.adamwr, od.sgdwr])
def test_resuming_at_any_step_needs_only_the_state(factory):
    """The same steps, whether the optimizer object is kept or built again at each."""
    make = lambda: factory(0.01, 0.05, first_cycle_steps=20, cycle_mult=1.5)
    rebuilt = optax.GradientTransformation(make().init, lambda *args: make().update(*args))
    np.testing.assert_array_equal(train(make(), "float32"), train(rebuilt, "float32"))


def test_restarts_change_the_trajectory():
    eta = od.schedules.warm_restarts(50, 1)
    once = lambda count: eta(jnp.minimum(count, 49))
    paths = [train(od.adamw(0.02, 1e-3, schedule=s), "float32") for s in (eta, once)]
    np.testing.assert_array_equal(paths[0][:50], paths[1][:50])
    assert relative_error(*paths) > 0.01


def test_normalized_weight_decay_is_the_papers():
    decay = od.convert.from_normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100)
    assert decay == pytest.approx(0.05 * (128 / (50_000 * 100)) ** 0.5, rel=1e-12)
    steps = 39_100  # the paper's budget
    cycle = od.schedules.normalized_weight_decay(0.05, steps, 1)(0)
    assert float(cycle) == pytest.approx(2.53e-4, rel=1e-3)


def test_normalized_weight_decay_of_arrays_and_tracers():
    f = jax.jit(
        lambda norm: od.convert.from_normalized(norm, batch_size=1, dataset_size=4, epochs=4)
    )
    np.testing.assert_allclose(jax.vmap(f)(jnp.array([1.0, 2.0])), [0.25, 0.5])
    per_epochs = lambda epochs: od.convert.from_normalized(
        1.0, batch_size=1024, dataset_size=1_281_167, epochs=epochs
    )
    epochs = jnp.array([90, 1800])  # 1800 times 1,281,167 is no int32
    expected = (1024 / (1_281_167 * np.array([90.0, 1800.0]))) ** 0.5
    np.testing.assert_allclose(jax.vmap(per_epochs)(epochs), expected, rtol=1e-6)


def test_split_schedule_gives_back_the_rate():
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.003, 10, STEPS)
    alpha, eta = od.split_schedule(rate, peak=0.003)
    counts = jnp.arange(STEPS)
    np.testing.assert_allclose(alpha * eta(counts), rate(counts), rtol=1e-6)
    assert alpha == 0.003
    assert float(jnp.max(eta(counts))) == 1.0


@pytest.mark.parametrize("step", [5, np.int64(5), jnp.int32(5), jnp.uint32(5)])
def test_steps_of_any_integer_type(step):
    assert float(od.schedules.warm_restarts(10)(step)) == pytest.approx(0.5)


@pytest.mark.parametrize("mult", [1, 2])
@pytest.mark.parametrize("dtype", ["int16", "uint32", "int64"])
def test_positions_are_int32_whatever_the_type_of_the_step(dtype, mult):
    with jax.enable_x64(True):
        position = od.schedules.warm_restart_position(jnp.asarray(12, dtype), 10, mult)
    assert [x.dtype for x in position] == [jnp.int32] * 3
    assert tuple(map(int, position)) == (1, 2, 10 * mult)


def test_a_peak_is_named_from_one_percent_below_the_schedules_own():
    with pytest.warns(UserWarning, match="peak=0.003 is not the peak"):
        od.split_schedule(optax.constant_schedule(0.00306), peak=0.003)
    od.split_schedule(optax.constant_schedule(0.003015), peak=0.003)  # a warning would be an error


def test_a_log_time_decay_may_remove_the_whole_weight_at_first():
    assert od.schedules.log_time_weight_decay(40, budget=4.0)(0) == 1.0
