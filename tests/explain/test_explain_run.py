"""explain_weight_decay(step=, steps=): one update of a run, and the sum of all of them.

The sums are compared with those of the schedule at every step, in float64, written anew here.
"""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import by_path, cases, kinds, small_params, trained

import optax_decoupled as od

STEPS = 100_000
PEAK, DECAY = 1e-3, 0.1


def explain(tx, **kwargs):
    return od.explain_weight_decay(tx, small_params(), **kwargs)


def warmup_cosine(t, warmup=2000, steps=STEPS):
    t = np.asarray(t, float)
    return np.where(
        t < warmup, t / warmup, (1 + np.cos(np.pi * (t - warmup) / (steps - warmup))) / 2
    )


def drops(t, at=(30_001, 60_007, 80_500), factor=0.2):
    return factor ** sum((np.asarray(t) >= b).astype(float) for b in at)


def restarts(t, first, mult):
    """η, and the length of the cycle, of each step."""
    starts = [0]
    while starts[-1] <= t[-1]:
        starts.append(starts[-1] + round(first * mult ** (len(starts) - 1)))
    starts = np.array(starts)
    cycle = np.searchsorted(starts, t, side="right") - 1
    length = np.diff(starts)[cycle]
    return (1 + np.cos(np.pi * (t - starts[cycle]) / length)) / 2, length


def optax_warmup_cosine(steps=STEPS):
    return optax.warmup_cosine_decay_schedule(0.0, PEAK, 2000, steps)


def optax_drops():
    return optax.piecewise_constant_schedule(PEAK, {30_001: 0.2, 60_007: 0.2, 80_500: 0.2})


t = np.arange(STEPS)
RUNS = {
    "constant": (lambda: optax.adamw(PEAK, weight_decay=DECAY), PEAK * DECAY * np.ones(STEPS)),
    "warmup and cosine": (
        lambda: optax.adamw(optax_warmup_cosine(), weight_decay=DECAY),
        PEAK * DECAY * warmup_cosine(t),
    ),
    "ours, the same": (
        lambda: od.adamw(PEAK, 1e-4, schedule=lambda t: optax_warmup_cosine()(t) / PEAK),
        1e-4 * warmup_cosine(t),
    ),
    "step drops": (
        lambda: optax.adamw(optax_drops(), weight_decay=DECAY),
        PEAK * DECAY * drops(t),
    ),
    "an early drop": (
        lambda: optax.adamw(
            optax.piecewise_constant_schedule(PEAK, {300: 1e-3}), weight_decay=DECAY
        ),
        PEAK * DECAY * drops(t, at=(300,), factor=1e-3),
    ),
    "warm restarts": (
        lambda: od.sgdw(PEAK, 1e-4, schedule=od.schedules.warm_restarts(700, 2)),
        1e-4 * restarts(t, 700, 2)[0],
    ),
    "cycles as long as the first counts are apart": (
        lambda: od.sgdw(PEAK, 1e-4, schedule=od.schedules.warm_restarts(98, 1)),
        1e-4 * restarts(t, 98, 1)[0],
    ),
    "AdamWR": (
        lambda: od.adamwr(PEAK, 0.05, first_cycle_steps=1000),
        0.05 * restarts(t, 1000, 2)[0] / restarts(t, 1000, 2)[1] ** 0.5,
    ),
    "through inject_hyperparams": (
        lambda: optax.inject_hyperparams(optax.adamw)(optax_warmup_cosine(), weight_decay=DECAY),
        PEAK * DECAY * warmup_cosine(t),
    ),
    "accumulated gradients": (
        lambda: optax.MultiSteps(optax.adamw(optax_warmup_cosine(), weight_decay=DECAY), 4),
        PEAK * DECAY * warmup_cosine(t),
    ),
    "only the last tenth": (
        lambda: od.adamw(PEAK, lambda t: jnp.where(t < 90_000, 0.0, 1e-4)),
        1e-4 * (t >= 90_000),
    ),
    "cautious": (
        lambda: od.adamw(PEAK, 1e-4, schedule=od.schedules.warm_restarts(700, 2), cautious=True),
        1e-4 * restarts(t, 700, 2)[0],
    ),
    "toward": (
        lambda: od.adamw(
            PEAK, 1e-4, schedule=od.schedules.warm_restarts(700, 2), toward=od.toward_init()
        ),
        1e-4 * restarts(t, 700, 2)[0],
    ),
}
SLOW = {"ours, the same", "cautious", "toward"}


@pytest.mark.filterwarnings("ignore:schedule reaches")
@pytest.mark.parametrize("name", cases({name: name for name in RUNS}, SLOW))
def test_a_run_is_the_sum_of_all_its_updates(name):
    make, decay = RUNS[name]
    report = explain(make(), steps=STEPS)
    assert not any("estimates" in note for note in report.notes)
    for row in report.rows:
        assert row.budget == pytest.approx(decay.sum(), rel=2e-3)
        assert row.left == pytest.approx(np.prod(1 - decay), rel=2e-2)
    as_at_first = STEPS * report.rows[0].decay_per_step
    assert (abs(as_at_first - decay.sum()) > 0.4 * decay.sum()) == (name != "constant")


def test_a_constant_decay_is_exact():
    row = explain(od.adamw(PEAK, 1e-4), steps=7000).rows[0]
    assert row.budget == pytest.approx(0.7, rel=1e-6)
    assert row.left == pytest.approx((1 - 1e-4) ** 7000, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1500])
def test_a_short_run_is_summed_exactly(steps):
    decay = 1e-3 * warmup_cosine(np.arange(steps) + 1, 10, 1501)
    tx = od.adamw(
        PEAK,
        1e-3,
        schedule=lambda t: optax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 1501)(t + 1),
    )
    row = explain(tx, steps=steps).rows[0]
    assert row.budget == pytest.approx(decay.sum(), rel=1e-4)
    assert row.left == pytest.approx(np.prod(1 - decay), rel=1e-4)


def test_each_parameter_has_its_own_budget():
    falling = od.sgdw(PEAK, 2e-4, schedule=optax.cosine_decay_schedule(1.0, STEPS))
    groups = {"m": falling, "v": od.adamw(PEAK, 1e-5)}
    tx = optax.partition(groups, {"dense": {"kernel": "m", "bias": "v"}})
    rows = by_path(explain(tx, steps=STEPS))
    assert rows["dense/kernel"].budget == pytest.approx(10.0, rel=2e-3)
    assert rows["dense/bias"].budget == pytest.approx(1.0, rel=2e-3)


def test_what_does_not_decay_is_left_whole():
    rows = by_path(explain(od.adamw(PEAK, 1e-4, mask=od.decay_mask), steps=STEPS))
    assert (rows["dense/bias"].budget, rows["dense/bias"].left) == (0.0, 1.0)
    assert rows["dense/kernel"].budget == pytest.approx(10.0, rel=1e-5)


def test_a_coupled_decay_has_no_budget():
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.adam(PEAK))
    report = explain(tx, steps=STEPS)
    assert kinds(report) == {"coupled"}
    assert all(math.isnan(row.budget) and math.isnan(row.left) for row in report.rows)
    assert str(report).count("varies") == 3 * len(
        str(report).split("half-life")[1].splitlines()[1:]
    )


def test_without_steps_there_is_neither():
    report = explain(od.adamw(PEAK, 1e-4))
    assert all(math.isnan(row.budget) and math.isnan(row.left) for row in report.rows)
    assert "budget" not in str(report)


def test_the_number_of_calls_may_not_change():
    tx = optax.MultiSteps(od.adamw(PEAK, 1e-4), lambda t: jnp.where(t < 50, 1, 4))
    report = explain(tx, steps=100)
    assert all(math.isnan(row.budget) for row in report.rows)
    assert any("changes in the run" in note for note in report.notes)
    assert explain(tx, steps=50).rows[0].budget == pytest.approx(50e-4, rel=1e-5)


def test_steps_count_updates_and_not_calls():
    report = explain(optax.MultiSteps(od.adamw(PEAK, 1e-4), 4), steps=1000)
    assert report.rows[0].budget == pytest.approx(0.1, rel=1e-5)
    assert any("not the calls" in note for note in report.notes)
    plain = explain(od.adamw(PEAK, 1e-4), steps=1000)
    assert not any("not the calls" in note for note in plain.notes)


@pytest.mark.parametrize("containers", [list, lambda x: {f"w{i}": y for i, y in enumerate(x)}])
def test_numbered_layers_of_other_shapes_are_not_taken_for_each_other(containers):
    """Their moments, all 0, have the same bytes on small samples."""
    params = containers([jnp.ones((8, 32)), jnp.ones((32, 1)), jnp.ones(16)])
    for tx in (od.adamw(1e-3, 1e-4), optax.adamw(1e-3, weight_decay=0.1)):
        rows = od.explain_weight_decay(tx, params, steps=100).rows
        assert [row.budget for row in rows] == pytest.approx([0.01] * 3, rel=1e-3)


def test_where_nothing_moves_any_more_the_run_is_still_summed():
    """After the last step of a schedule, which is where a training script prints it."""
    tx = optax.adamw(optax.cosine_decay_schedule(1e-3, 1_000), weight_decay=0.1)
    params = {"w": jnp.ones((4, 4))}
    state = optax.tree.set(tx.init(params), count=jnp.asarray(1_000))
    (start,) = od.explain_weight_decay(tx, params, steps=1_000).rows
    for end in (dict(state=state), dict(step=1_000)):
        (row,) = od.explain_weight_decay(tx, params, steps=1_000, **end).rows
        assert row.kind == "none"
        assert (row.budget, row.left) == (start.budget, start.left)
    assert abs(start.budget - 0.05) < 5e-4


def test_neither_the_state_nor_step_moves_the_sum():
    tx, steps = optax.adamw(optax_warmup_cosine(), weight_decay=DECAY), 10_000
    params, state = trained(tx, small_params(), 5)
    exact = PEAK * DECAY * warmup_cosine(np.arange(steps)).sum()
    for kwargs in ({}, {"state": state}, {"step": 70_000}):
        report = od.explain_weight_decay(tx, params, steps=steps, **kwargs)
        assert report.rows[0].budget == pytest.approx(exact, rel=2e-3)


def chained():
    rate = optax.scale_by_learning_rate(optax_warmup_cosine())
    return optax.chain(optax.scale_by_lion(), optax.add_decayed_weights(DECAY), rate)


def injected():
    return optax.inject_hyperparams(optax.adamw)(optax_warmup_cosine(), weight_decay=DECAY)


def parted():
    tx = optax.adamw(optax_warmup_cosine(), weight_decay=DECAY)
    groups = {"a": tx, "b": optax.chain(optax.clip(1.0), tx)}
    return optax.partition(groups, {"dense": {"kernel": "a", "bias": "b"}})


CHAINS = {
    "adamw": lambda: optax.adamw(optax_warmup_cosine(), weight_decay=DECAY),
    "a chain": chained,
    "injected": injected,
    "partition": parted,
    "MultiSteps": lambda: optax.MultiSteps(injected(), 3),
    "ours": lambda: od.adamw(PEAK, 1e-4, schedule=lambda t: optax_warmup_cosine()(t) / PEAK),
}


@pytest.mark.filterwarnings("ignore:schedule reaches")
@pytest.mark.parametrize("name", cases({name: name for name in CHAINS}, {"ours"}))
def test_a_step_is_that_of_the_schedule(name):
    tx = CHAINS[name]()
    params, state = trained(tx, small_params(), 5)
    for step, given in ((1000, None), (70_000, state)):
        report = od.explain_weight_decay(tx, params, state=given, step=step)
        expected = PEAK * DECAY * warmup_cosine(step)
        for row in report.rows:
            assert row.decay_per_step == pytest.approx(expected, rel=1e-3)
            assert row.kind == "decoupled"
    assert optax.tree.get_all_with_path(state, "count")[0][1] < 6  # it is left as it was


def test_apply_every_and_a_plateau_keep_counters_of_their_own():
    rate = optax.adamw(optax_warmup_cosine(), weight_decay=DECAY)
    row = explain(optax.chain(rate, optax.apply_every(3)), step=70_000).rows[0]
    assert row.decay_per_step == pytest.approx(3e-4 * warmup_cosine(70_000), rel=1e-3)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 3)])
@pytest.mark.parametrize(("step", "moves"), [(0, False), (1, True), (9, True), (10, False)])
def test_an_update_that_moves_nothing_is_told(wrap, step, moves):
    """It is not the next one that is reported."""
    schedule = lambda t: jnp.where((t % 20 > 0) & (t % 20 < 10), 0.1, 0.0)
    report = explain(wrap(optax.adamw(schedule, weight_decay=0.1)), step=step, steps=40)
    told = f"the update with count {step} moves nothing"
    assert any(told in warning for warning in report.warnings) == (not moves)
    assert kinds(report) == ({"decoupled"} if moves else {"none"})
    assert report.rows[0].budget == pytest.approx(0.18, rel=1e-4)  # the run is what it is


def test_the_note_on_a_warmup_says_what_to_pass():
    tx = optax.adamw(optax_warmup_cosine(), weight_decay=DECAY)
    assert "Pass step= for another" in explain(tx).notes[0]
    assert not any("step=" in note for note in explain(tx, step=1).notes)


@pytest.mark.parametrize("name", ["step", "steps"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((value, ValueError) for value in (-1, 1.5, 2**31, math.nan)),
        *((value, TypeError) for value in (True, "10", optax.constant_schedule(1))),
    ],
)
def test_counts_are_whole_numbers(name, value, error):
    with pytest.raises(error, match=f"{name}=.* must be a whole number from [01] to 2.*number of"):
        explain(od.adamw(PEAK, 1e-4), **{name: value})


def test_the_least_and_other_whole_numbers():
    tx = od.adamw(PEAK, 1e-4)
    with pytest.raises(ValueError, match="steps=0 is not allowed"):
        explain(tx, steps=0)
    for whole in (3, np.int64(3), 3.0, jnp.asarray(3)):
        assert explain(tx, step=whole, steps=whole).rows[0].budget == pytest.approx(3e-4, rel=1e-5)
    assert explain(tx, step=2**31 - 1).rows[0].kind == "decoupled"


def test_the_table_fits_the_page():
    params = {
        f"layer_{i}": {"a_rather_long_name_of_a_kernel": jnp.ones((1024, 64, 3))} for i in (1, 2)
    }
    params["b"] = jnp.ones((1024, 128), jnp.bfloat16)
    for decay, steps in ((1e-4, 123_456), (1.234e-7, 1000), (1e-9, 10)):
        table = str(od.explain_weight_decay(od.adamw(PEAK, decay), params, steps=steps))
        assert max(map(len, table.splitlines())) <= 80
        assert {"half-life", "budget", "left"} <= set(table.split())
    rows = tuple(
        od.types.DecayRow("n" * 90, (10**6, 10**5), jnp.bfloat16, kind, -1.23e-5, 1e6, False, b, b)
        for kind, b in (("constrained", -1.234e-5), ("decoupled", 0.0001234), ("growing", math.nan))
    )
    table = str(od.types.DecayReport(rows, steps=10))
    assert max(map(len, table.splitlines())) <= 80
    assert {"-1.2e-05", "0.00012", "varies"} <= set(table.split())


def test_it_is_one_compiled_program_for_all_counts():
    """What a run costs beside a report: two traces, however long it is."""
    calls = []

    def schedule(t):
        calls.append(t)
        return optax_warmup_cosine()(t)

    tx = optax.adamw(schedule, weight_decay=DECAY)
    explain(tx)
    without = len(calls)
    calls.clear()
    explain(tx, steps=STEPS)
    assert without <= len(calls) <= without + 2
