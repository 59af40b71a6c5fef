"""A sweep gives the numbers of a hand-written loop at every width, and compiles once."""

import dataclasses
import gc
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweep_cases import (
    DECAYS,
    RATES,
    SEEDS,
    TASK,
    adamw,
    batches,
    evaluate,
    init,
    loss,
    run,
    run_network,
)

import optax_decoupled as od
from optax_decoupled import sweep


@pytest.fixture(scope="module")
def landscape():
    return run_network()


@jax.jit
def _step_by_hand(params, state, opt_state, batch, key, learning_rate, weight_decay):
    grads, state = jax.grad(loss, has_aux=True)(params, state, batch, key)
    tx = adamw(learning_rate, weight_decay)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state


def _train_by_hand(learning_rate, weight_decay, seed):
    init_key, loss_key = jax.random.split(jax.random.key(seed))
    params, state = init(init_key)
    opt_state = adamw(learning_rate, weight_decay).init(params)
    for t, batch in enumerate(batches(seed)):
        params, state, opt_state = _step_by_hand(
            params,
            state,
            opt_state,
            batch,
            jax.random.fold_in(loss_key, t),
            learning_rate,
            weight_decay,
        )
    return evaluate(params, state)


def test_numbers_are_those_of_a_hand_written_loop(landscape):
    for i, j, s in [(0, 0, 0), (2, 1, 1)]:
        expected = _train_by_hand(RATES[i], DECAYS[j], SEEDS[s])
        for name, values in landscape.metrics.items():
            np.testing.assert_allclose(values[i, j, s], expected[name], rtol=2e-4)


def test_repeats_bit_for_bit(landscape):
    np.testing.assert_array_equal(run_network().metrics["error"], landscape.metrics["error"])


def test_vectorized_cells_are_the_same(landscape):
    for width in (4, 6):  # of 6 cells a seed: a short last group, and one group
        metrics = run_network(vectorize=width).metrics
        for name, values in landscape.metrics.items():
            np.testing.assert_allclose(metrics[name], values, rtol=2e-4)


def test_grids_of_all_sizes_compile_once():
    def compilations(rates, decays, seeds):
        count = []
        listener = lambda event, *_, **__: count.append(event)
        jax.monitoring.register_event_duration_secs_listener(listener)
        traced = []

        def make_optimizer(learning_rate, weight_decay):
            traced.append(1)
            return adamw(learning_rate, weight_decay)

        grid = {"learning_rates": rates, "weight_decays": decays, "seeds": seeds}
        run_network(make_optimizer=make_optimizer, **grid)
        jax.monitoring.clear_event_listeners()
        return sum("backend_compile" in event for event in count), len(traced)

    compilations([0.1], [0.1], [0])  # compiles functions that the process compiles once
    small = compilations([0.1], [0.1], [0])
    assert small[0] == 2  # start and advance; init and evaluate are the task's own
    assert compilations(RATES, DECAYS, [0, 1, 2]) == small


def test_convolutions_give_the_numbers_of_sums():
    kernel = jnp.ones((3, 1, 1))

    def loss(params, state, batch, key):
        smooth = jax.lax.conv_general_dilated(
            params[None, :, None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.mean((smooth.ravel() - batch) ** 2), state

    def without(params, state, batch, key):
        padded = jnp.pad(params, 1)
        return jnp.mean((padded[:-2] + padded[1:-1] + padded[2:] - batch) ** 2), state

    def task(loss):
        return sweep.Task(
            lambda key: (jax.random.normal(key, (9,)), ()),
            loss,
            lambda seed: [jnp.ones(9)] * 12,
            lambda params, state: {"error": jnp.sum(params**2)},
            12,
        )

    a, b = (run_network(task(f), od.adamw).metrics["error"] for f in (loss, without))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_convolutions_run_outside_of_loops():
    """XLA's CPU backend runs them ten times slower in a loop. Without one, batches come singly."""
    stepped, seen = threading.Event(), []

    def loss(params, state, batch, key):
        jax.debug.callback(stepped.set)
        smooth = jnp.convolve(params, jnp.ones(3), mode="same")
        return jnp.mean((smooth - batch) ** 2), state

    def batches(seed):
        yield np.ones(4, np.float32)
        seen.append(stepped.wait(timeout=20))
        yield np.ones(4, np.float32)

    run(dataclasses.replace(TASK, loss=loss, batches=batches, steps=2), learning_rates=[0.1])
    assert seen
    assert all(seen)


def test_seeds_of_64_bits():
    task = dataclasses.replace(TASK, evaluate=lambda params, state: {"error": params[0]})
    with jax.enable_x64(True):
        error = run(task, learning_rates=[0.1], seeds=[0, 2**32]).metrics["error"]
    assert (error[..., 0] != error[..., 1]).all()


def test_cells_obey_the_settings_of_the_calling_thread():
    task = dataclasses.replace(
        TASK, evaluate=lambda params, state: {"error": jnp.finfo(params.dtype).bits * 1.0}
    )
    with jax.enable_x64(True):
        assert (run(task, learning_rates=[0.1]).metrics["error"] == 64).all()
    assert (run(task, learning_rates=[0.1]).metrics["error"] == 32).all()


def test_diverged_cells_are_recorded_and_break_no_statistic():
    plain = lambda rate, decay: od.sgdw(rate, decay, momentum=0.0)
    result = run(make_optimizer=plain, learning_rates=[0.01, 0.1, 1e30])
    assert np.isnan(result.metrics["error"][2]).all()
    assert (result.diverged[:2] == -1).all()
    assert (result.diverged[2] == 1).all()  # the loss of step 1 is the first to overflow
    assert result.best().learning_rate == 0.1
    assert np.isfinite(result.mean()[:2]).all()
    assert np.isnan(result.mean()[2]).all()


def test_a_metric_that_is_not_finite_counts_as_diverged():
    task = dataclasses.replace(TASK, evaluate=lambda p, s: {"error": jnp.log(-jnp.sum(p**2))})
    result = run(task, learning_rates=[0.1])
    assert (result.diverged == TASK.steps).all()
    with pytest.raises(ValueError, match="In every cell a seed diverged"):
        result.best()


def test_the_same_sweep_works_with_any_optax_optimizer(tmp_path):
    def lion(learning_rate, weight_decay):
        return od.decouple(optax.lion(learning_rate, weight_decay=0.0), weight_decay)

    result = run(make_optimizer=lion, directory=tmp_path, learning_rates=[0.01, 0.1])
    assert np.isfinite(result.metrics["error"]).all()


def _plateau(learning_rate, weight_decay, *, patience=1):
    reduce = optax.contrib.reduce_on_plateau(factor=0.1, patience=patience, rtol=0.5)
    return optax.chain(od.sgdw(learning_rate, weight_decay, momentum=0.0), reduce)


def test_an_optimizer_that_takes_the_losss_value_gets_it():
    def by_hand(learning_rate, weight_decay, seed):
        tx = _plateau(learning_rate, weight_decay)
        params, _ = TASK.init(jax.random.split(jax.random.key(seed))[0])
        opt_state = tx.init(params)
        for batch in TASK.batches(seed):
            value, grads = jax.value_and_grad(lambda p, b=batch: TASK.loss(p, (), b, None)[0])(
                params
            )
            updates, opt_state = tx.update(grads, opt_state, params, value=value)
            params = optax.apply_updates(params, updates)
        return TASK.evaluate(params, ())["error"]

    grid = {"learning_rates": [0.01], "weight_decays": [1e-3], "seeds": [0]}
    reduced = run(make_optimizer=_plateau, **grid).metrics["error"].item()
    np.testing.assert_allclose(reduced, by_hand(0.01, 1e-3, 0), rtol=1e-5)
    patient = run(make_optimizer=lambda a, b: _plateau(a, b, patience=99), **grid)
    assert abs(patient.metrics["error"].item() - reduced) > 1e-2 * reduced  # it did reduce


@dataclasses.dataclass  # which has no hash
class _Evaluate:
    target: float

    def __call__(self, params, state):
        return {"error": jnp.sum((params - self.target) ** 2)}


def test_a_task_may_hold_unhashable_objects_and_releases_them():
    def make(evaluate):
        return dataclasses.replace(TASK, evaluate=evaluate)

    evaluate = _Evaluate(1.0)
    gone = weakref.ref(evaluate)
    result = run(make(evaluate), learning_rates=[0.1])
    del evaluate
    gc.collect()
    assert gone() is None
    assert np.isfinite(result.metrics["error"]).all()


def test_training_does_not_change_the_equality_of_tasks():
    trained, other = (dataclasses.replace(TASK) for _ in range(2))
    run(trained, learning_rates=[0.1])
    assert trained == other == TASK
    assert {field.name for field in dataclasses.fields(TASK)} == set(vars(trained))
