"""A directory accepts its own sweep, in every process, and no other sweep."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name
from sweep_cases import ONE, TARGET, TASK, assert_same, environment, files, run

import optax_decoupled as od

OTHER_TARGET = dataclasses.replace(
    TASK,
    loss=lambda params, state, batch, key: (jnp.sum(batch * (params - 2 * TARGET) ** 2), state),
)


OTHER_DATA = dataclasses.replace(TASK, batches=lambda seed: np.ones((10, 4), np.float32))


OTHER_LAST_BATCH = dataclasses.replace(
    TASK, batches=lambda seed: [*list(TASK.batches(seed))[:9], np.ones(4, np.float32)]
)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rates": [0.01, 0.1]}, "learning_rates"),
        ({"weight_decays": [1e-3, 2e-2]}, "weight_decays"),
        ({"seeds": [0, 2]}, "seeds, task"),  # other seeds have other batches
        ({"task": dataclasses.replace(TASK, steps=9)}, "steps, task"),
        ({"task": OTHER_TARGET}, "task"),
        ({"task": OTHER_DATA}, "task"),
        ({"task": OTHER_LAST_BATCH}, "task"),
        ({"make_optimizer": lambda a, b: od.sgdw(a, b, momentum=0.5)}, "task"),
        ({"make_optimizer": lambda a, b: od.sgdw(b, a)}, "task"),
    ],
)
def test_a_directory_of_another_sweep_is_refused_and_untouched(tmp_path, changes, difference):
    run(directory=tmp_path)
    kept = files(tmp_path)
    with pytest.raises(ValueError, match=f"holds another sweep: it differs in {difference}\\."):
        run(directory=tmp_path, **changes)
    assert files(tmp_path) == kept
    run(directory=tmp_path)  # its own sweep still goes on


# A program whose jaxpr prints sets and functions, in another order or with another address in
# each process.
_NAMES = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from jax.ad_checkpoint import checkpoint_name
import optax_decoupled as od

NAMES = ["attention", "mlp", "norm", "logits", "router", "embedding"]
policies = jax.checkpoint_policies
policy = policies.save_from_both_policies(
    policies.save_only_these_names(*NAMES), policies.save_any_names_but_these(*NAMES)
)
mesh = jax.make_mesh((1, 1, 1), ("x", "y", "z"))
spec = jax.sharding.PartitionSpec()

@functools.partial(jax.checkpoint, policy=policy)
def block(x):
    for name in NAMES:
        x = jax.nn.relu(checkpoint_name(jnp.tanh(x), name))
    return jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)(x)

def host(x, *, keep=frozenset(NAMES), scale):
    return np.float32(x * scale * ("mlp" in keep) * len({"attention", "mlp"}))

def evaluate(params, state):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    error = jax.pure_callback(functools.partial(host, scale=2.0), shape, jnp.sum(params))
    return {"error": jax.lax.cond(error > 0, jnp.sin, jnp.cos, error)}

task = od.sweep.Task(
    init=lambda key: (jax.random.normal(key, (3,)), ()),
    loss=lambda params, state, batch, key: (jnp.sum((block(params) - batch) ** 2), state),
    batches=lambda seed: np.ones((2, 3), np.float32),
    evaluate=evaluate,
    steps=2,
)
show = lambda done, total: print(done)
grid = {"learning_rates": [0.1], "weight_decays": [1e-3], "seeds": [0]}
od.sweep.run(task, od.adamw, **grid, directory=sys.argv[1], progress=show)
"""


def test_a_sweep_goes_on_in_a_process_with_another_hash_seed(tmp_path):
    def printed(seed):
        command = [sys.executable, "-W", "error", "-c", _NAMES, str(tmp_path)]
        variables = environment(PYTHONHASHSEED=str(seed))
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert [printed(seed) for seed in (1, 2, 3)] == ["1\n", "", ""]


def _remat(policy):
    def loss(params, state, batch, key):
        f = lambda x: checkpoint_name(jnp.sin(checkpoint_name(jnp.sin(x), "a")), "b")
        return jnp.sum(batch * jax.checkpoint(f, policy=policy)(params)), state

    return dataclasses.replace(TASK, loss=loss)


_POLICIES = jax.checkpoint_policies


def _saving(*names):
    return lambda: _POLICIES.save_only_these_names(*names)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (_saving("a"), _saving("b")),
        (lambda: _POLICIES.everything_saveable, lambda: _POLICIES.nothing_saveable),
    ],
)
def test_the_checkpoint_policy_is_part_of_the_fingerprint(tmp_path, one, other):
    run(_remat(one()), directory=tmp_path, **ONE)
    run(_remat(one()), directory=tmp_path, **ONE)  # with a new policy object
    with pytest.raises(ValueError, match="it differs in task"):
        run(_remat(other()), directory=tmp_path, **ONE)


def test_the_state_of_a_callback_is_not_part_of_the_fingerprint(tmp_path):
    log = []

    def loss(params, state, batch, key):
        value = jnp.sum(batch * jax.nn.silu(params))
        jax.debug.callback(log.append, value)
        jax.debug.callback(lambda x: log.append(x), value)
        return value, state

    task = dataclasses.replace(TASK, loss=loss)
    first = run(task, directory=tmp_path, **ONE)
    jax.effects_barrier()
    assert log
    assert_same(run(task, directory=tmp_path, **ONE), first)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_constants_of_the_task_are_part_of_the_fingerprint(tmp_path, wrap):
    def make(target):
        loss = lambda params, state, batch, key: (jnp.sum(batch * (params - target) ** 2), state)
        return dataclasses.replace(TASK, loss=wrap(loss))

    run(make(jnp.arange(4.0)), directory=tmp_path)
    run(make(jnp.arange(4.0)), directory=tmp_path)
    with pytest.raises(ValueError, match="it differs in task"):
        run(make(jnp.array([0.0, 1.0, 2.0, 3.5])), directory=tmp_path)
