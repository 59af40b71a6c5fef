"""Landscapes: the numbers of a hand-written loop, one compilation, and statistics that hold."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od
from optax_decoupled import _sweep_engine, sweep

ROOT = Path(__file__).resolve().parent.parent
STEPS = 70  # more than one call, and not a multiple of its steps
RATES, DECAYS, SEEDS = [0.01, 0.03, 0.1], [1e-4, 1e-3], [3, 11]


def _init(key):
    keys = jax.random.split(key)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (4, 8)) / 2, "bias": jnp.zeros(8)},
        "out": {"kernel": jax.random.normal(keys[1], (8, 1)) / 3},
    }
    return params, {"mean": 0.0}  # a Python number: weakly typed


def _predict(params, x):
    hidden = jnp.einsum("...i,ij->...j", x, params["hidden"]["kernel"])
    hidden = jnp.tanh(hidden + jnp.broadcast_to(params["hidden"]["bias"], hidden.shape))
    return hidden @ params["out"]["kernel"]


def _loss(params, state, batch, key):
    x, y = batch
    noise = 0.1 * jax.random.normal(key, x.shape)
    loss = jnp.mean((_predict(params, x + noise) - y) ** 2)
    return loss, {"mean": 0.9 * state["mean"] + 0.1 * loss}


def _batches(seed, steps=STEPS):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        x = rng.normal(size=(16, 4)).astype(np.float32)
        yield x, x[:, :1] * x[:, 1:2]


X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def _evaluate(params, state):
    error = jnp.mean((_predict(params, X) - X[:, :1] * X[:, 1:2]) ** 2)
    return {"error": error, "loss": state["mean"]}


TASK = sweep.Task(_init, _loss, _batches, _evaluate, STEPS)
ETA = optax.cosine_decay_schedule(1.0, STEPS)


def _adamw(learning_rate, weight_decay):
    return od.adamw(learning_rate, weight_decay, schedule=ETA, mask=od.decay_mask)


def _run(task=TASK, make_optimizer=_adamw, **changes):
    arguments = {"learning_rates": RATES, "weight_decays": DECAYS, "seeds": SEEDS}
    return sweep.run(task, make_optimizer, **{"progress": False, **arguments, **changes})


# The smallest task, for what does not concern the numbers: it compiles fast.
QUADRATIC = sweep.Task(
    init=lambda key: (jnp.ones(3), ()),
    loss=lambda params, state, batch, key: (jnp.sum((params - batch) ** 2), state),
    batches=lambda seed: [np.full(3, 2.0, np.float32)] * 5,
    evaluate=lambda params, state: {"error": jnp.sum((params - 2) ** 2)},
    steps=5,
)


def _sgdw(learning_rate, weight_decay):
    return od.sgdw(learning_rate, weight_decay, momentum=0.0)


@pytest.fixture(scope="module")
def landscape():
    return _run()


@jax.jit
def _step_by_hand(params, state, opt_state, batch, key, learning_rate, weight_decay):
    grads, state = jax.grad(_loss, has_aux=True)(params, state, batch, key)
    tx = _adamw(learning_rate, weight_decay)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state


def _train_by_hand(learning_rate, weight_decay, seed):
    init_key, loss_key = jax.random.split(jax.random.key(seed))
    params, state = _init(init_key)
    opt_state = _adamw(learning_rate, weight_decay).init(params)
    for t, batch in enumerate(_batches(seed)):
        params, state, opt_state = _step_by_hand(
            params,
            state,
            opt_state,
            batch,
            jax.random.fold_in(loss_key, t),
            learning_rate,
            weight_decay,
        )
    return _evaluate(params, state)


def test_numbers_are_those_of_a_hand_written_loop(landscape):
    for i, j, s in [(0, 0, 0), (2, 1, 1)]:
        expected = _train_by_hand(RATES[i], DECAYS[j], SEEDS[s])
        for name, values in landscape.metrics.items():
            np.testing.assert_allclose(values[i, j, s], expected[name], rtol=2e-4)


def test_repeats_bit_for_bit(landscape):
    np.testing.assert_array_equal(_run().metrics["error"], landscape.metrics["error"])


def test_vectorized_cells_are_the_same(landscape):
    for width in (4, 6):  # of 6 cells a seed: a short last group, and one group
        metrics = _run(vectorize=width).metrics
        for name, values in landscape.metrics.items():
            np.testing.assert_allclose(metrics[name], values, rtol=2e-4)


def test_one_compilation_whatever_the_grid():
    def compilations(rates, decays, seeds):
        count = []
        listener = lambda event, *_, **__: count.append(event)
        jax.monitoring.register_event_duration_secs_listener(listener)
        traced = []

        def make_optimizer(learning_rate, weight_decay):
            traced.append(1)
            return _adamw(learning_rate, weight_decay)

        _run(make_optimizer=make_optimizer, learning_rates=rates, weight_decays=decays, seeds=seeds)
        jax.monitoring.clear_event_listeners()
        return sum("backend_compile" in event for event in count), len(traced)

    compilations([0.1], [0.1], [0])  # whatever is compiled once in a process
    small = compilations([0.1], [0.1], [0])
    assert small[0] == 2  # start and advance; init and evaluate are the task's own
    assert compilations(RATES, DECAYS, [0, 1, 2]) == small


def test_convolutions_run_outside_of_loops():
    """In a loop XLA's CPU backend runs them ten times slower; the numbers are the same."""
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

    cell = _sweep_engine.trace_cell(task(loss), od.adamw, 0)
    assert _sweep_engine.make_trainer(cell, 1, None).steps_per_call == 1
    a, b = (_run(task(f), od.adamw).metrics["error"] for f in (loss, without))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_seeds_of_64_bits():
    task = dataclasses.replace(QUADRATIC, init=lambda key: (jax.random.normal(key, (3,)), ()))
    with jax.enable_x64(True):
        error = _run(task, _sgdw, seeds=[0, 2**32]).metrics["error"]
    assert (error[..., 0] != error[..., 1]).all()


def test_cells_obey_the_settings_of_the_calling_thread():
    task = dataclasses.replace(
        QUADRATIC, evaluate=lambda params, state: {"error": jnp.finfo(params.dtype).bits * 1.0}
    )
    with jax.enable_x64(True):
        assert (_run(task, _sgdw).metrics["error"] == 64).all()
    assert (_run(task, _sgdw).metrics["error"] == 32).all()


def test_diverged_cells_are_recorded_and_break_no_statistic():
    result = _run(QUADRATIC, _sgdw, learning_rates=[0.01, 0.1, 1e30])
    assert np.isnan(result.metrics["error"][2]).all()
    assert (result.diverged[:2] == -1).all()
    assert (result.diverged[2] == 1).all()  # the loss of step 1 is the first to overflow
    assert result.best().learning_rate == 0.1
    assert np.isfinite(result.mean()[:2]).all()
    assert np.isnan(result.mean()[2]).all()


def test_a_metric_that_is_not_finite_counts_as_diverged():
    task = dataclasses.replace(QUADRATIC, evaluate=lambda p, s: {"error": jnp.log(-p[0])})
    result = _run(task, _sgdw, learning_rates=[0.1])
    assert (result.diverged == QUADRATIC.steps).all()
    with pytest.raises(ValueError, match="In every cell a seed diverged"):
        result.best()


def test_mean_spread_and_best_leave_out_diverged_seeds():
    error = np.array([[[1.0, 3.0, 5.0], [0.0, np.nan, 0.0]], [[np.nan] * 3, [9.0, np.nan, np.nan]]])
    x = sweep.Landscape(np.array([0.1, 0.2]), np.array([0.3, 0.4]), np.arange(3), {"error": error})
    np.testing.assert_array_equal(x.mean(), [[3.0, 0.0], [np.nan, 9.0]])
    np.testing.assert_array_equal(x.spread(), [[2.0, 0.0], [np.nan, np.nan]])
    assert x.best() == (0.1, 0.3, 3.0, 2.0)  # not the cell where one seed diverged


def test_progress_counts_every_cell():
    calls = []
    _run(QUADRATIC, _sgdw, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 12) for n in range(1, 13)]


def test_progress_bar_is_drawn(capsys):
    _run(QUADRATIC, _sgdw, learning_rates=[0.1], progress=True)
    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["rich.progress", "matplotlib.pyplot"])
def test_a_missing_extra_names_the_installation(monkeypatch, landscape, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(ImportError, match=r'pip install "optax-decoupled\[sweep\]"'):
        _run(QUADRATIC, progress=True) if "rich" in extra else landscape.plot()


def test_the_package_does_not_import_the_sweep():
    code = (
        "import sys, optax_decoupled; bad = {'matplotlib', 'rich', 'optax_decoupled.sweep'}; "
        "sys.exit(bool(bad & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": []}, r"learning_rates=\[\] must be a non-empty sequence"),
        ({"learning_rates": [0.1, 0.1]}, "finite, positive and increasing"),
        ({"learning_rates": [0.1, float("nan")]}, "finite, positive and increasing"),
        ({"weight_decays": [0.0, 0.1]}, "instead of 0 take a value too small to matter"),
        ({"weight_decays": ["a"]}, "non-empty sequence of numbers"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be distinct integers"),
        ({"seeds": [1, 2**32 + 1]}, r"seeds=.* must be distinct integers, also as JAX's keys"),
        ({"seeds": [0.5]}, "distinct integers"),
        ({"seeds": 3}, "distinct integers"),
        ({"vectorize": 0}, "vectorize=0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _run(**changes)


_COUNTER = itertools.count()
_USED = iter(_batches(0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batches", lambda seed: [], "is empty"),
        ("batches", lambda seed: _batches(next(_COUNTER)), "another first batch"),
        ("batches", lambda seed: _USED, "another first batch"),
        ("batches", lambda seed: [jax.random.key(seed)] * STEPS, "holds random keys"),
        ("batches", lambda seed: _batches(seed, STEPS - 1), "ended after 69 batches"),
        ("batches", lambda seed: [*_batches(seed, 20), 1.0, *_batches(seed)], "differs from"),
        ("evaluate", lambda params, state: {"error": params["out"]["kernel"]}, "must be a scalar"),
    ],
)
def test_bad_tasks_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        _run(dataclasses.replace(TASK, **{field: value}))


def test_a_task_refuses_what_is_no_function_and_no_step():
    with pytest.raises(TypeError, match="init=None must be a function"):
        sweep.Task(None, _loss, _batches, _evaluate, STEPS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="steps=0"):
        sweep.Task(_init, _loss, _batches, _evaluate, 0)


def test_an_unknown_metric_is_refused(landscape):
    with pytest.raises(ValueError, match="it has 'error', 'loss'"):
        landscape.best("accuracy")


def test_save_and_load_round_trip(landscape, tmp_path):
    path = tmp_path / "landscape.npz"
    landscape.save(path)
    loaded = sweep.Landscape.load(path)
    for field in ("learning_rates", "weight_decays", "seeds", "diverged"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(landscape, field))
    assert loaded.metrics.keys() == landscape.metrics.keys()
    np.testing.assert_array_equal(loaded.metrics["error"], landscape.metrics["error"])


def _synthetic(slope, *, noise=0.0, seeds=5, shift=0.0, one_sided=False, decays=14):
    """A parabola in log2 of the decay, whose minimum moves by `slope` per doubling."""
    rates, log_decays = 2.0 ** np.arange(-3, 4), np.arange(-decays, 0.0)
    centre = -decays / 2 + shift + slope * np.log2(rates)
    distance = log_decays - centre[:, None]
    error = 6 + 0.1 * distance**2
    if one_sided:  # too little decay does no harm, too much soon does
        error = 6 + np.where(distance < 0, np.minimum(-0.1 * distance, 0.3), 3.0**distance - 1)
    rng = np.random.default_rng(1)
    per_seed = rng.normal(size=seeds)  # the luck of a seed, common to all cells
    values = error[..., None] + per_seed + noise * rng.normal(size=(*error.shape, seeds))
    return sweep.Landscape(rates, 2.0**log_decays, np.arange(seeds), {"error": values})


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_valley_slope_is_exact_without_noise(slope, one_sided):
    found = _synthetic(slope, one_sided=one_sided).valley_slope()
    assert abs(found.slope - slope) < 0.01
    assert found.high - found.low < 0.01
    assert len(found.learning_rates) == 7


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_valley_slope_is_within_its_interval_under_noise(slope):
    found = _synthetic(slope, noise=0.3).valley_slope()
    assert abs(found.slope - slope) < 0.1
    assert 0.05 < found.high - found.low < 0.5


def test_valley_slope_leaves_out_rates_whose_best_decay_is_on_the_edge():
    found = _synthetic(1.0, shift=5.0).valley_slope()
    assert found.learning_rates == (0.125, 0.25, 0.5, 1.0)
    assert abs(found.slope - 1) < 0.1


def test_valley_slope_refuses_too_many_optima_on_the_edge():
    with pytest.raises(ValueError, match="best decay of 2 of 7 learning rates inside the grid"):
        _synthetic(1.0, shift=7.0).valley_slope()


def test_valley_slope_survives_cliffs_diverged_cells_and_rates_that_do_not_train():
    x = _synthetic(-1.0, noise=0.05)
    error = x.metrics["error"].copy()
    error[:, -3:] = np.nan  # too much decay diverges
    error[:, -4] = 90.0
    error[-1] = np.nan  # so does the highest rate
    error[0] = 90 + 0.01 * np.arange(5)  # and the lowest does not train
    found = sweep.Landscape(x.learning_rates, x.weight_decays, x.seeds, {"error": error})
    slope = found.valley_slope()
    assert abs(slope.slope + 1) < 0.2
    assert set(slope.learning_rates) <= set(x.learning_rates[1:-1])


def test_equal_counts_tie_in_float32_too():
    """Means of counts that are equal differ by rounding, once they are float32 shares."""
    counts = np.round(3 * _synthetic(-1.0, noise=0.3).metrics["error"])
    assert len(np.unique(counts.sum(-1))) < counts.shape[0] * counts.shape[1] / 2
    make = lambda error: sweep.Landscape(
        2.0 ** np.arange(-3, 4), 2.0 ** np.arange(-14, 0.0), np.arange(5), {"error": error}
    )
    exact, rounded = make(counts), make((counts / 1647 * 100).astype(np.float32))
    assert exact.ranked() == rounded.ranked()
    assert exact.valley_slope() == rounded.valley_slope()


def test_valley_slope_of_one_seed_has_an_empty_interval():
    found = _synthetic(-1.0, seeds=1).valley_slope()
    assert found.low == found.slope == found.high


@pytest.mark.parametrize("size", [1, 5, 20])
def test_plot_draws_every_grid(size):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    error = np.arange(size * size * 2.0).reshape(size, size, 2)
    error[0, -1] = np.nan if size > 1 else 1.0  # diverged, as did one seed of the next
    error[-1, -1, 0] = np.nan if size > 1 else 1.0
    grid = np.arange(1, size + 1) / 10
    ax = sweep.Landscape(grid, grid, np.arange(2), {"error": error}).plot()
    ax.figure.canvas.draw()
    assert len(ax.get_xticks()) <= 10
    matplotlib.pyplot.close(ax.figure)


@pytest.mark.slow
def test_the_main_job_runs(tmp_path):
    script = ROOT / "benchmarks" / "figure2_digits.py"
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "The paper's Figure 2 with batch norm" in done.stdout
    assert (tmp_path / "figure2_digits_quick.png").stat().st_size > 10_000
    assert (tmp_path / "figure2_digits_quick.json").exists()
