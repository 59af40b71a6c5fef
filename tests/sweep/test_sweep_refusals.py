"""Bad grids, tasks and optimizers raise errors of this package before anything is trained."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sweep_cases import (
    NETWORK,
    ONE,
    STEPS,
    TASK,
    batches,
    evaluate,
    init,
    loss,
    run,
    run_network,
    task_that_records_steps,
)

import optax_decoupled as od
from optax_decoupled import sweep


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
        run_network(**changes)


_COUNTER = itertools.count()
_USED = iter(batches(0))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batches", lambda seed: [], "is empty"),
        ("batches", lambda seed: batches(next(_COUNTER)), "another first batch"),
        ("batches", lambda seed: _USED, "another first batch"),
        ("batches", lambda seed: [jax.random.key(seed)] * STEPS, "holds random keys"),
        ("batches", lambda seed: batches(seed, STEPS - 1), "ended after 69 batches"),
        ("batches", lambda seed: [*batches(seed, 20), 1.0, *batches(seed)], "differs from"),
        ("evaluate", lambda params, state: {"error": params["out"]["kernel"]}, "must be a scalar"),
        ("loss", lambda p, state, b, key: (jnp.ones(3), state), r"float32\[3\].*mean over the"),
        ("loss", lambda p, state, b, key: (1.0, {"mean": jnp.ones(3)}), r"'mean'.*t32\[3\]"),
        ("loss", lambda p, state, b, key: (1.0, ()), r"'mean'.*float32\[\] into nothing"),
    ],
)
def test_bad_tasks_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        run_network(dataclasses.replace(NETWORK, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("init", lambda key: jnp.ones(4), r"an array float32\[4\]; it must return a pair"),
        ("init", lambda key: {"w": jnp.ones(4), "b": 0.0}, "a dict of 2; it must"),
        ("init", lambda key: [jnp.ones(4), jnp.ones(2)], "a list of 2"),
        ("loss", lambda p, s, b, key: jnp.sum(p), "loss returned an array .*return loss, m"),
        ("loss", lambda p, s, b, key: (jnp.int32(1), s), r"int32\[\]; it must be of a float"),
        ("loss", lambda p, s, b, key: ({"loss": 1.0}, s), "for its loss a dict of 1"),
        ("evaluate", lambda p, s: jnp.sum(p), r"an array float32\[\]; it must return a dict"),
        ("evaluate", lambda p, s: {}, "a dict of 0; it must return a dict of scalars"),
        ("evaluate", lambda p, s: {"error": "low"}, "for 'error' 'low'; it must be a real number"),
        ("evaluate", lambda p, s: {"error": None}, "for 'error' None; it must be a real number"),
        ("evaluate", lambda p, s: {"error": [1.0]}, "for 'error' a list of 1; it must be a real"),
        ("evaluate", lambda p, s: {"error": p[0] * 1j}, r"complex64\[\]; it must be a real"),
        ("evaluate", lambda p, s: {0: p[0]}, 'called 0; a metric\'s name must be a string'),
    ],
)  # fmt: skip
def test_returned_values_of_the_wrong_kind_are_refused(untrained, field, value, message):
    with pytest.raises(TypeError, match=message):
        run(dataclasses.replace(untrained, **{field: value}))


def test_metrics_may_be_real_scalars_of_every_kind():
    metrics = {"a": 1, "b": 2.0, "c": True, "d": np.float32(3), "e": np.ones(()), "f": jnp.int8(4)}
    found = run(dataclasses.replace(TASK, evaluate=lambda params, state: metrics), **ONE).metrics
    assert {name: values.item() for name, values in found.items()} == metrics


@pytest.mark.parametrize(
    ("make_optimizer", "message"),
    [
        (
            od.adamw(1e-3, 1e-4),
            r"is an optimizer; it must be a function \(learning_rate, weight_de",
        ),
        (None, "is None; it must be a function"),
        (lambda rate: od.adamw(rate, 1e-4), r"takes \(rate\): too many positional arguments"),
        (lambda rate, decay, b1: None, "missing a required argument: 'b1'"),
        (lambda rate, decay: od.adamw, "returned a function; it must be"),
        (optax.adamw, "takes weight_decay, but its second argument is b1"),
        (functools.partial(optax.lion, weight_decay=0.1), "takes weight_decay, .* is b1"),
    ],
)
def test_other_values_of_make_optimizer_are_refused(untrained, make_optimizer, message):
    with pytest.raises(TypeError, match=message):
        run(untrained, make_optimizer)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        functools.partial(od.adamw, b1=0.8),
        lambda *both: od.adamw(*both),
        lambda learning_rate, weight_decay, **_: optax.sgd(learning_rate),
    ],
)
def test_every_function_that_makes_optimizers_is_accepted(make_optimizer):
    assert np.isfinite(run(TASK, make_optimizer, **ONE).metrics["error"]).all()


def test_a_state_that_changes_at_the_first_update_is_refused(untrained):
    def grow(learning_rate, weight_decay):
        start = lambda params: jnp.zeros((), jnp.int32)
        update = lambda updates, state, params=None: (updates, state + 0.5)
        return optax.chain(
            od.sgdw(learning_rate, weight_decay), optax.GradientTransformation(start, update)
        )

    message = r"The optimizer's state must keep .*int32\[\] into float32\[\]"
    with pytest.raises(ValueError, match=message):
        run(untrained, grow)


def test_steps_are_recorded():
    steps = []
    run(task_that_records_steps(steps), **ONE)
    jax.effects_barrier()
    assert len(steps) == TASK.steps


def test_a_task_without_a_function_or_steps_is_refused():
    with pytest.raises(TypeError, match="init=None must be a function"):
        sweep.Task(None, loss, batches, evaluate, STEPS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="steps=0"):
        sweep.Task(init, loss, batches, evaluate, 0)


def test_devices_in_place_of_a_mesh_are_refused():
    with pytest.raises(TypeError, match=r"mesh=\[.*must be a jax.sharding.Mesh"):
        run(mesh=jax.devices())
