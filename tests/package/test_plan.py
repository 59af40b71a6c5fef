"""The plan of a run, and the numbers between budgets that it is made of."""

import dataclasses
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optax_decoupled as od

STEPS = 100_000
DECAY = od.weight_decay_from_pytorch(0.1, 3e-4)
decays = st.floats(1e-9, 0.5)
counts = st.floats(1.0, 1e9)


def rows(steps=STEPS, **arguments):
    return {row.rule: row for row in od.plan_weight_decay(steps, **arguments).rows}


# The values that must come out.


def test_the_worked_question():
    """0.1 at a rate of 3e-4, for 100,000 steps."""
    yours = rows(weight_decay=DECAY, learning_rate=3e-4)["yours"]
    assert yours.weight_decay == pytest.approx(3e-5)
    assert yours.timescale == pytest.approx(33_333.3, rel=1e-5)
    assert yours.half_life == pytest.approx(23_105, abs=0.5)
    assert yours.budget == pytest.approx(3.0)
    assert yours.left == pytest.approx((1 - 3e-5) ** 100_000, rel=1e-9)
    assert yours.pytorch == pytest.approx(0.1)
    assert yours.rms == pytest.approx(od.equilibrium.adamw(3e-4, 3e-5).rms)
    assert yours.rotation == pytest.approx(od.equilibrium.adamw(3e-4, 3e-5).rotation)
    assert rows(250_000, weight_decay=DECAY)["yours"].budget == pytest.approx(7.5)
    assert od.convert.to_normalized(DECAY, steps=STEPS) == pytest.approx(0.00949, abs=5e-6)


def test_what_the_rules_choose():
    plan = rows(38_147, tokens_per_parameter=20, steps_per_epoch=5000)
    expected = {
        "normalized 0.025": 0.025 / 38_147**0.5,
        "normalized 0.05": 0.05 / 38_147**0.5,
        "one epoch": 1 / 5000,
        "the run": 1 / 38_147,
        "20 tokens/param": 1.17261e-4,
        "budget 4": 4 / 38_147,
        "log-time": 40 / 38_147,
    }
    assert list(plan) == list(expected)
    np.testing.assert_allclose([r.weight_decay for r in plan.values()], [*expected.values()], 1e-5)
    sources = {"1711.05101", "2405.13698", "2505.13738", "2602.05298"}
    assert {row.source.removeprefix("arXiv:") for row in plan.values()} == sources
    assert all(len(row.note) > 40 for row in plan.values())


# Kim et al., arXiv:2509.14786: steps in one epoch, epochs, rate and PyTorch's decay of the best
# runs at 150M, 300M, 600M and 1.4B parameters. The first four are in the paper's Figure 3.
TUNED_ON_REPEATED_DATA = (
    *((800, 16, 3e-3, 0.8), (800, 16, 3e-3, 1.6), (800, 8, 1e-3, 3.2), (800, 8, 1e-3, 3.2)),
    *((1600, 32, 3e-3, 0.8), (1600, 16, 3e-3, 0.8), (1600, 8, 1e-3, 1.6), (1600, 8, 1e-3, 3.2)),
    *((3200, 64, 3e-3, 0.4), (3200, 16, 3e-3, 0.4), (3200, 16, 3e-3, 0.4), (3200, 8, 1e-3, 1.6)),
    *((6400, 64, 3e-3, 0.1), (6400, 32, 1e-3, 0.4), (6400, 16, 1e-3, 0.8), (6400, 8, 1e-3, 0.8)),
)


@pytest.mark.parametrize(("epoch", "epochs", "rate", "best"), TUNED_ON_REPEATED_DATA)
def test_repeated_data_have_the_range_of_the_tuned_runs(epoch, epochs, rate, best):
    plan = rows(epoch * epochs, learning_rate=rate, steps_per_epoch=epoch)
    assert plan["0.5 epochs"].pytorch * 0.95 <= best <= plan["0.2 epochs"].pytorch * 1.05
    assert best > 1.8 * plan["one epoch"].pytorch


def test_the_rule_for_repeated_data_is_for_eight_to_sixty_four_epochs():
    assert rows(8000, steps_per_epoch=1000)["0.2 epochs"].budget == pytest.approx(40.0)
    assert rows(64_000, steps_per_epoch=1000)["0.2 epochs"].budget == pytest.approx(320.0)
    assert "0.2 epochs" not in rows(7999, steps_per_epoch=1000)
    assert "0.2 epochs" not in rows(64_001, steps_per_epoch=1000)
    assert "0.2 epochs" not in rows(8000)


def test_normalized_decay_of_the_papers_example():
    decay = od.convert.from_normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100)
    assert decay == pytest.approx(2.52982e-4, rel=1e-5)
    assert od.convert.from_normalized(0.05, steps=50_000 * 100 / 128) == pytest.approx(decay)


def test_twice_the_batch_and_four_times_the_tokens():
    alpha = 3e-4
    old = od.weight_decay_from_pytorch(0.28, alpha)
    new = od.convert.transfer(old, steps=(1000, 2000))
    assert od.convert.to_pytorch(new, 2**0.5 * alpha) == pytest.approx(0.098995, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "factor"),
    [
        (dict(width=(256, 1024)), 1.0),
        (dict(width=(256, 1024), width_exponent=0.5), 0.5),
        (dict(steps=(1000, 4000)), 0.25),
        (dict(steps=(1000, 4000), exponent=0.5), 0.5),
        (dict(steps=(1000, 4000), width=(256, 1024), width_exponent=0.5), 0.125),
    ],
)
def test_what_carries_over(arguments, factor):
    assert od.convert.transfer(1e-4, **arguments) == pytest.approx(1e-4 * factor)


def test_the_paper_s_exponent_keeps_the_normalized_decay_and_one_the_budget():
    old, steps = 1e-4, (1000, 7000)
    paper = od.convert.transfer(old, steps=steps, exponent=0.5)
    norms = [od.convert.to_normalized(x, steps=s) for x, s in zip((old, paper), steps, strict=True)]
    assert norms[0] == pytest.approx(norms[1])
    kept = od.convert.transfer(old, steps=steps)
    assert kept * 7000 == pytest.approx(old * 1000)
    assert paper > 2 * kept


def test_log_time_decay():
    decay = od.schedules.log_time_weight_decay(10_000)
    assert float(decay(0)) == pytest.approx(0.004)
    assert float(decay(10_000)) == pytest.approx(3.63636e-4, rel=1e-5)
    total = float(jnp.sum(jax.vmap(decay)(jnp.arange(10_000))))
    assert total == pytest.approx(9.5916, rel=5e-4)
    assert decay(jnp.arange(6).reshape(2, 3)).shape == (2, 3)
    doubled = od.schedules.log_time_weight_decay(10_000, budget=8.0)
    assert float(doubled(123)) == pytest.approx(2 * float(decay(123)))


def test_log_time_decay_is_what_an_optimizer_applies():
    tx = od.adamw(1e-3, od.schedules.log_time_weight_decay(1000))
    params = jnp.ones(3)
    state = optax.tree.set(tx.init(params), count=jnp.asarray(700))
    updates, _ = tx.update(jnp.zeros(3), state, params)
    np.testing.assert_allclose(updates, -4.0 / 800, rtol=1e-5)


# There and back.


@given(decays)
def test_half_life_there_and_back(decay):
    there = od.convert.to_half_life(decay)
    assert od.convert.from_half_life(there) == pytest.approx(decay, rel=1e-6)


@given(counts)
def test_timescale_there_and_back(steps):
    there = od.convert.from_timescale(steps)
    assert od.convert.to_timescale(there) == pytest.approx(steps)


@given(decays, counts)
def test_normalized_there_and_back(decay, steps):
    norm = od.convert.to_normalized(decay, steps=steps)
    assert od.convert.from_normalized(norm, steps=steps) == pytest.approx(decay)


@given(decays, counts, counts, st.floats(-2, 2))
def test_transfer_there_and_back(decay, old, new, exponent):
    there = od.convert.transfer(decay, steps=(old, new), exponent=exponent)
    back = od.convert.transfer(there, steps=(new, old), exponent=exponent)
    assert back == pytest.approx(decay)


def test_no_decay_lasts_forever_and_a_whole_one_not_at_all():
    assert od.convert.to_half_life(0.0) == od.convert.to_timescale(0) == np.inf
    assert od.convert.to_half_life(1.0) == 0.0


@pytest.mark.parametrize(
    "convert",
    [
        od.convert.to_half_life,
        od.convert.to_timescale,
        lambda c: od.convert.to_normalized(c, steps=100),
        lambda c: od.convert.from_normalized(c, steps=100),
        lambda c: od.convert.transfer(c, steps=(1, 3), width=(1, 2), width_exponent=0.5),
    ],
)
def test_arrays_and_tracers_convert_like_numbers(convert):
    expected = convert(1e-3)
    np.testing.assert_allclose(jax.jit(jax.vmap(convert))(jnp.full(3, 1e-3)), expected, rtol=1e-5)
    assert type(expected) is float


# The plan itself.

SHAPES = {
    "cosine": optax.cosine_decay_schedule(1.0, 10_000),
    "warmup": optax.warmup_cosine_decay_schedule(0.0, 1.0, 500, 10_000),
    "drops": optax.piecewise_constant_schedule(1.0, {3000: 0.1, 8000: 0.1}),
    "restarts": od.schedules.warm_restarts(700, 2),
    "number": 0.5,
}


@pytest.mark.parametrize("schedule", SHAPES.values(), ids=SHAPES)
def test_budget_and_rest_are_those_of_the_run(schedule):
    """The sum and the product, step by step in Python."""
    at = schedule if callable(schedule) else lambda t: schedule
    removed = np.array(
        [1e-3 * float(x) for x in jax.vmap(lambda t: at(t) + 0.0 * t)(jnp.arange(10_000))]
    )
    yours = rows(10_000, weight_decay=1e-3, schedule=schedule)["yours"]
    assert yours.budget == pytest.approx(removed.sum(), rel=1e-5)
    assert yours.left == pytest.approx(np.prod(1 - removed), rel=1e-4)
    assert yours.timescale == pytest.approx(1000)  # in full steps


def test_left_is_what_the_optimizer_leaves():
    schedule = SHAPES["warmup"]
    tx = od.adamw(1e-3, 1e-3, schedule=schedule)

    def step(carry, _):
        theta, state = carry
        updates, state = tx.update(jnp.zeros(()), state, theta)
        return (optax.apply_updates(theta, updates), state), None

    theta = jnp.ones(())
    left = jax.lax.scan(step, (theta, tx.init(theta)), length=10_000)[0][0]
    yours = rows(10_000, weight_decay=1e-3, schedule=schedule)["yours"]
    assert yours.left == pytest.approx(float(left), rel=1e-3)
    assert yours.left > 50 * rows(10_000, weight_decay=1e-3)["yours"].left  # without the schedule


def test_a_decay_that_moves_has_no_timescale():
    falling = rows(10_000)["log-time"]
    assert falling.weight_decay == pytest.approx(0.004)
    assert falling.budget == pytest.approx(9.5916, rel=5e-4)
    assert np.isnan([falling.timescale, falling.half_life, falling.rms, falling.rotation]).all()
    yours = rows(10_000, weight_decay=od.schedules.log_time_weight_decay(10_000))["yours"]
    assert yours.budget == falling.budget


def test_sgd_with_momentum_has_the_l2_coefficient_of_the_same_equilibrium():
    plan = rows(weight_decay=1e-4, learning_rate=0.1, momentum=0.9)
    yours = plan["yours"]
    assert yours.pytorch == pytest.approx(1e-4)  # λ(1 − m)/α
    turn = od.equilibrium.sgd_l2(0.1, yours.pytorch, 0.9).rotation
    assert yours.rotation == pytest.approx(turn)
    assert np.isnan(yours.rms)
    assert yours.rotation != rows(weight_decay=1e-4, learning_rate=0.1)["yours"].rotation


def test_without_a_rate_there_is_no_pytorch_value():
    yours = rows(weight_decay=1e-4)["yours"]
    assert np.isnan([yours.pytorch, yours.rms]).all()
    assert yours.rotation == od.equilibrium.adamw(1.0, 1e-4).rotation


def test_notes_say_what_is_remarkable():
    weak = od.plan_weight_decay(1000, weight_decay=5e-5)
    assert "Hardly acts." in weak.rows[0].note
    assert "The run ends before equilibrium." in weak.rows[0].note
    assert "Lost in bfloat16." in weak.rows[0].note
    strong = od.plan_weight_decay(10_000, weight_decay=5e-3)
    assert strong.rows[0].note == ""
    assert any("below" in note for note in weak.notes)
    assert any("above" in note for note in strong.notes)
    assert any("within" in note for note in od.plan_weight_decay(STEPS, weight_decay=4e-5).notes)


@pytest.mark.parametrize("schedule", ["cosine", "warmup", "drops", "number"])
def test_a_note_says_how_many_full_steps_a_schedule_makes(schedule):
    plan = od.plan_weight_decay(10_000, weight_decay=1e-4, schedule=SHAPES[schedule])
    pattern = r"the 10,000 steps add up to ([\d,]+) full steps.*as a full one.* smaller"
    found = re.search(pattern, plan.notes[0])
    assert found, plan.notes[0]
    rule = {row.rule: row for row in plan.rows}["budget 4"]
    assert rule.weight_decay == 4 / 10_000  # whatever the schedule
    full = {"drops": 3_000 + 500 + 20}.get(schedule, 5_000)
    assert rule.budget == pytest.approx(4 / 10_000 * full, rel=1e-3)
    assert int(found[1].replace(",", "")) == pytest.approx(full, rel=1e-3)


def test_the_full_steps_of_a_short_run_are_not_rounded_to_none():
    assert "add up to 0.5 full steps" in od.plan_weight_decay(1, schedule=0.5).notes[0]


def test_a_schedule_of_nearly_full_steps_needs_no_note():
    for schedule in (None, 1.0, optax.linear_schedule(0.0, 1.0, 500)):
        notes = od.plan_weight_decay(10_000, weight_decay=1e-4, schedule=schedule).notes
        assert not any("full steps." in note and "schedule" in note for note in notes)
    assert "larger" in od.plan_weight_decay(10_000, weight_decay=1e-4, schedule=2.0).notes[0]


@pytest.mark.parametrize(("c", "lost"), [(2.0**-9 * 0.99, True), (2.0**-9 * 1.01, False)])
def test_lost_in_bfloat16_is_what_bfloat16_loses(c, lost):
    """The smallest fraction that changes any weight at all."""
    theta = jnp.linspace(1, 2, 129, dtype=jnp.bfloat16)
    shrunk = (theta.astype(jnp.float32) * (1 - c)).astype(jnp.bfloat16)
    assert bool(jnp.all(shrunk == theta)) == lost
    assert ("Lost in bfloat16." in rows(weight_decay=c)["yours"].note) == lost


def test_rules_that_disagree_are_named():
    disagreeing = od.plan_weight_decay(1_000_000, steps_per_epoch=100)
    assert "disagree" in disagreeing.notes[0]
    assert "one epoch" in disagreeing.notes[0]
    budgets = [row.budget for row in disagreeing.rows]
    range_ = [float(x) for x in re.findall(r"\d\.\d\de-\d\d", disagreeing.notes[0])]
    np.testing.assert_allclose(range_, np.array([min(budgets), max(budgets)]) / 1e6, rtol=1e-2)
    short = od.plan_weight_decay(500)  # log-time begins with more than any constant decay
    assert f"{max(row.budget for row in short.rows) / 500:.2e}" in short.notes[0]
    assert not any("disagree" in note for note in od.plan_weight_decay(1).notes)


def test_it_prints_within_eighty_columns():
    plan = od.plan_weight_decay(
        2_000_000,
        weight_decay=lambda t: 1.234e-5,
        learning_rate=3.333e-4,
        steps_per_epoch=12_345,
        tokens_per_parameter=1234.5,
    )
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 80
    for row in plan.rows:
        assert sum(line.startswith(row.rule) for line in lines) >= 2
        assert str(row).startswith(row.rule)
    assert plan._repr_html_().startswith("<p><b>Weight decay over 2,000,000 steps")
    assert plan.rows[0]._repr_html_().startswith("<p>yours")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.steps = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rows[0].budget = 1.0


def test_a_million_steps_take_about_a_second():
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, 1000, 1_000_000)
    od.plan_weight_decay(1000, schedule=SHAPES["cosine"])
    start = time.perf_counter()
    od.plan_weight_decay(1_000_000, weight_decay=1e-5, schedule=shape)
    assert time.perf_counter() - start < 10  # 0.6 on an idle machine; step by step it is minutes


def test_a_run_of_a_handful_of_steps_has_few_rules():
    assert list(rows(1)) == ["normalized 0.025", "normalized 0.05"]
    assert "log-time" not in rows(40)
    assert "log-time" in rows(41)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: od.plan_weight_decay(0), "steps=0"),
        (lambda: od.plan_weight_decay(-5), "steps=-5"),
        (lambda: od.plan_weight_decay(10.5), "steps=10.5"),
        (lambda: od.plan_weight_decay(1000, weight_decay=-1e-4), "weight_decay=-0.0001"),
        (lambda: od.plan_weight_decay(1000, learning_rate=0.0), "learning_rate=0.0"),
        (lambda: od.plan_weight_decay(1000, learning_rate=SHAPES["cosine"]), "split_schedule"),
        (
            lambda: od.plan_weight_decay(1000, schedule=optax.cosine_decay_schedule(3e-4, 1000)),
            "split_schedule",
        ),
        (lambda: od.plan_weight_decay(1000, schedule=lambda t: -1.0), "must be finite"),
        (lambda: od.plan_weight_decay(1000, schedule=lambda t: jnp.nan), "must be finite"),
        (lambda: od.plan_weight_decay(1000, schedule=lambda t: jnp.ones(2)), "scalar"),
        (lambda: od.plan_weight_decay(1000, weight_decay=lambda t: 2.0), "weight_decay times"),
        (lambda: od.plan_weight_decay(1000, schedule=20_000.0), "weight_decay times"),
        (lambda: od.plan_weight_decay(1000, b1=1.0), "b1=1.0"),
        (lambda: od.plan_weight_decay(1000, momentum=1.0), "momentum=1.0"),
        (lambda: od.plan_weight_decay(1000, steps_per_epoch=0), "steps_per_epoch=0"),
        (lambda: od.plan_weight_decay(1000, tokens_per_parameter=-1), "tokens_per_parameter=-1"),
        (lambda: od.convert.from_normalized(0.05), "in one way"),
        (lambda: od.convert.from_normalized(0.05, batch_size=1, epochs=2), "in one way"),
        (lambda: od.convert.from_normalized(0.05, steps=9, epochs=2), "in one way"),
        (lambda: od.convert.from_normalized(0.05, steps=0), "steps=0"),
        (lambda: od.convert.to_normalized(-0.1, steps=9), "weight_decay=-0.1"),
        (lambda: od.convert.to_normalized(0.1, steps=0), "steps=0"),
        (lambda: od.convert.to_half_life(1.5), "weight_decay=1.5"),
        (lambda: od.convert.to_timescale(-1e-3), "weight_decay=-0.001"),
        (lambda: od.convert.transfer(1e-4), "neither steps nor width"),
        (lambda: od.convert.transfer(1e-4, steps=1000), "steps=1000"),
        (lambda: od.convert.transfer(1e-4, steps=(0, 10)), "steps=0"),
        (lambda: od.convert.transfer(1e-4, width=(1, 2), width_exponent=np.inf), "exponent"),
        (lambda: od.schedules.log_time_weight_decay(0), "steps=0"),
        (lambda: od.schedules.log_time_weight_decay(10, budget=4.0), "budget=4.0"),
        (lambda: od.schedules.log_time_weight_decay(100, budget=-1.0), "budget=-1.0"),
    ],
)
def test_refuses(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()


def test_a_value_of_pytorch_draws_the_usual_warning():
    with pytest.warns(UserWarning, match=r"weight_decay_from_pytorch\(0.1, 0.0003\) = 3e-05"):
        od.plan_weight_decay(1000, weight_decay=0.1, learning_rate=3e-4)


def test_the_page_shows_what_the_plan_prints():
    page = (pathlib.Path(od.__file__).parents[1] / "docs" / "plan_it.md").read_text()
    shown = re.search(r"```text\n(.*?)\n```", page, re.DOTALL)
    plan = od.plan_weight_decay(
        STEPS,
        weight_decay=DECAY,
        learning_rate=3e-4,
        steps_per_epoch=50_000,
        tokens_per_parameter=20,
    )
    assert shown is not None
    assert shown.group(1) == str(plan)


def test_the_bound_is_where_a_gradient_of_one_sign_drives_a_weight():
    tx = od.adamw(0.01, 1e-2 / 1.1)
    params, state = jnp.zeros(3), tx.init(jnp.zeros(3))
    grads = jnp.array([1.0, -2.0, 1e-3])
    step = lambda _, carry: (lambda u, s: (carry[0] + u, s))(*tx.update(grads, carry[1], carry[0]))
    params, _ = jax.lax.fori_loop(0, 3000, step, (params, state))
    yours = rows(weight_decay=1e-2 / 1.1, learning_rate=0.01)["yours"]
    assert yours.at_most == pytest.approx(1.1)
    np.testing.assert_allclose(np.abs(params), yours.at_most, rtol=1e-4)
    assert np.isnan(rows(weight_decay=1e-3)["yours"].at_most)
    assert np.isnan(rows(weight_decay=1e-3, learning_rate=0.1, momentum=0.9)["yours"].at_most)
