"""The recorder in what people train with: Flax, wrappers of Optax, meshes, checkpoints."""

import contextlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from arrays import normal
from flax import nnx
from flax.training.train_state import TrainState
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from steps import jitted_step

import optax_decoupled as od

C = 1e-3
FIELDS = ("rms", "rotation", "growth", "unchanged")


def recorded(**options):
    return optax.chain(od.adamw(1e-2, C), od.record_weight_dynamics(**options))


def params_like():
    return {
        "dense": {"kernel": jnp.array(normal((12, 20))), "bias": jnp.zeros(20)},
        "head": jnp.array(normal((20, 3), seed=1)),
    }


def grads_at(step, params):
    leaves, structure = jax.tree.flatten(params)
    draws = [normal(x.shape, x.dtype, 10 * step + i) for i, x in enumerate(leaves, start=2)]
    return structure.unflatten(draws)


def run(tx, steps=12):
    params = params_like()
    state, step = tx.init(params), jitted_step(tx)
    for i in range(steps):
        params, state = step(grads_at(i, params), state, params)
    return params, state


def assert_same_history(state, other, rtol=2e-5):
    one, two = map(od.recorded_weight_dynamics, (state, other))
    assert one.steps.tolist() == two.steps.tolist()
    assert [row.path for row in one.rows] == [row.path for row in two.rows]
    for a, b in zip(one.rows, two.rows, strict=True):
        for field in FIELDS:
            np.testing.assert_allclose(getattr(a, field), getattr(b, field), rtol=rtol, atol=2e-6)


@pytest.fixture(scope="module")
def plain():
    return run(recorded())[1]


def test_an_nnx_optimizer_changes_the_model_in_place_and_needs_no_copy(plain):
    class Model(nnx.Module):
        def __init__(self):
            params = params_like()
            self.dense = nnx.Linear(12, 20, rngs=nnx.Rngs(0))
            self.dense.kernel[...] = params["dense"]["kernel"]
            self.head = nnx.Param(params["head"])

    model = Model()
    optimizer = nnx.Optimizer(model, recorded(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, grads):
        optimizer.update(model, grads)

    for i in range(12):
        state = nnx.state(model, nnx.Param)
        grads = nnx.to_pure_dict(state)
        grads = grads_at(i, grads)
        nnx.replace_by_pure_dict(state, grads)
        step(model, optimizer, state)
    assert_same_history(optimizer, plain)
    assert_same_history(optimizer.opt_state, plain)


def test_a_train_state_of_linen():
    model = nn.Dense(5)
    params = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=recorded())

    @jax.jit
    def step(state, x):
        loss = lambda params: jnp.mean(state.apply_fn({"params": params}, x) ** 2)
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    for i in range(6):
        state = step(state, normal((8, 4), seed=i))
    history = od.recorded_weight_dynamics(state)
    assert [row.path for row in history.rows] == ["bias", "kernel"]
    assert history.steps.tolist() == [1, 2, 3, 4, 5]
    assert history.rows[1].rotation.min() > 1e-4


WRAPPED = {
    "scan": lambda: recorded(),
    "injected": lambda: optax.inject_hyperparams(lambda learning_rate: recorded())(1e-2),
    "if finite": lambda: optax.apply_if_finite(recorded(), 3),
    "named": lambda: optax.named_chain(
        ("adam", od.adamw(1e-2, C)), ("history", od.record_weight_dynamics())
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_leave_the_history_as_it_is(name, plain):
    tx = WRAPPED[name]()
    if name != "scan":
        return assert_same_history(run(tx)[1], plain)

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = params_like()
    grads = jax.tree.map(lambda *x: np.stack(x), *(grads_at(i, params) for i in range(12)))
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, grads)[0])
    return assert_same_history(scan((params, tx.init(params)))[1], plain)


def test_gradient_accumulation_records_the_updates_and_not_the_calls(plain):
    tx = optax.MultiSteps(recorded(), 3)
    params = params_like()
    state, step = tx.init(params), jitted_step(tx)
    for i in range(36):
        params, state = step(grads_at(i // 3, params), state, params)
    assert_same_history(state, plain, rtol=1e-4)


def test_a_partition_has_one_history_and_frozen_groups_none_or_a_frozen_one():
    labels = {"dense": "trained", "head": "frozen"}
    frozen = optax.chain(optax.set_to_zero(), od.record_weight_dynamics())
    tx = optax.partition({"trained": recorded(), "frozen": frozen}, labels)
    history = od.recorded_weight_dynamics(run(tx)[1])
    kinds = {row.path: row.kind for row in history.rows}
    assert set(kinds) == {"dense/bias", "dense/kernel", "head"}
    assert kinds["head"] == "frozen"
    assert kinds["dense/kernel"] != "frozen"
    bare = optax.partition({"trained": recorded(), "frozen": optax.set_to_zero()}, labels)
    rows = od.recorded_weight_dynamics(run(bare)[1]).rows
    assert {row.path for row in rows} == {"dense/bias", "dense/kernel"}


def test_donated_buffers(plain):
    tx = recorded()
    step, params = jitted_step(tx, donate_argnums=(1, 2)), params_like()
    state = tx.init(params)
    for i in range(12):
        before = params
        params, state = step(grads_at(i, params), state, params)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
    assert_same_history(state, plain)


LAYOUTS = {
    "replicated": {"dense": {"kernel": P(), "bias": P()}, "head": P()},
    "sharded": {"dense": {"kernel": P("d"), "bias": P("d")}, "head": P("d")},
    "columns": {"dense": {"kernel": P(None, "d"), "bias": P("d")}, "head": P("d")},
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_a_mesh_the_history_is_that_of_one_device(axis_type, layout, plain):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(axis_type,), devices=jax.devices()[:4])
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        params = jax.tree.map(place, params_like(), LAYOUTS[layout])
        tx = recorded()
        init = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))
        traced_once = optax.GradientTransformation(tx.init, chex.assert_max_traces(tx.update, n=1))
        state, step = init(params), jitted_step(traced_once)
        chex.clear_trace_counter()
        for i in range(12):
            grads = jax.tree.map(place, grads_at(i, params), LAYOUTS[layout])
            params, state = step(grads, state, params)
    placed = jax.tree.map(place, params, LAYOUTS[layout])
    for found, wanted in zip(*map(jax.tree.leaves, (params, placed)), strict=True):
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)
    assert state[1].table.sharding.is_fully_replicated
    assert_same_history(state, plain)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(), P("d"), P(None, "d")])
def test_samples_of_a_weight_on_eight_devices_are_those_of_one(axis_type, spec):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    weights = [np.random.default_rng(i).normal(size=(1024, 2048)) for i in range(3)]
    recorder, states = od.record_weight_dynamics(capacity=8), []
    for place in (jnp.float32, lambda w: jax.device_put(np.float32(w), NamedSharding(mesh, spec))):
        trees = [{"w": place(w)} for w in weights]
        with jax.set_mesh(mesh) if states else contextlib.nullcontext():
            state, update = jax.jit(recorder.init)(trees[0]), jax.jit(recorder.update)
            for tree in trees:
                _, state = update(tree, state, tree)
        states.append(state)
    assert_same_history(states[1], states[0], rtol=1e-6)


def test_a_large_sharded_weight_is_not_gathered():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    params = {"w": jax.device_put(jnp.ones((1024, 2048)), NamedSharding(mesh, P("d")))}
    tx = recorded()
    state = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, params))(params)
    program = jax.jit(tx.update).lower(params, state, params).compile()
    # A gathered weight would need 8 MiB on each device, beside the 2 MiB of its part.
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2**20


@pytest.mark.parametrize("with_target", [True, False])
def test_a_restored_run_goes_on_in_the_same_table(tmp_path, with_target, plain):
    tx = recorded()
    params, state = run(tx, steps=7)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", {"params": params, "opt_state": state})
        checkpointer.wait_until_finished()
        target = {"params": params, "opt_state": tx.init(params)} if with_target else None
        restored = checkpointer.restore(tmp_path / "run", target)
    assert_same_history(restored, state, rtol=0)
    assert_same_history(restored["opt_state"], state, rtol=0)
    if with_target:
        params, state = restored["params"], restored["opt_state"]
        step = jitted_step(tx)
        for i in range(7, 12):
            params, state = step(grads_at(i, params), state, params)
        assert_same_history(state, plain)


def test_an_nnx_checkpoint_is_read_without_the_model(tmp_path):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, recorded(), wrt=nnx.Param)
    for _ in range(5):
        optimizer.update(model, nnx.state(model, nnx.Param))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", nnx.state(optimizer))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "run")
    assert_same_history(restored, optimizer, rtol=0)


def test_another_rate_after_a_restart_is_visible():
    tx = optax.inject_hyperparams(
        lambda rate: optax.chain(
            optax.scale_by_adam(), optax.scale_by_learning_rate(rate), od.record_weight_dynamics()
        )
    )(1e-3)
    params, state = run(tx, steps=10)
    state.hyperparams["rate"] = jnp.asarray(1e-2)
    step = jitted_step(tx)
    for i in range(10, 20):
        params, state = step(grads_at(i, params), state, params)
    row = od.recorded_weight_dynamics(state).rows[1]
    assert row.rotation[12:].min() > 3 * row.rotation[5:9].max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_it_runs_in_jaxs_strict_modes(dtype):
    params = {"w": np.ones((3, 4), dtype), "zero": np.zeros((), dtype)}
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.enable_checks(True),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.check_tracer_leaks(True),
    ):
        recorder = od.record_weight_dynamics(capacity=12)
        state, update = jax.jit(recorder.init)(params), jax.jit(recorder.update)
        for i in range(12):
            moved = jax.tree.map(lambda p, i=i: (p * (1 - i / 100)).astype(p.dtype), params)
            _, state = update(jax.tree.map(np.ones_like, params), state, moved)
    history = od.recorded_weight_dynamics(state)
    assert len(history.steps) == 5
    assert all(np.isfinite(row.rms).all() for row in history.rows)


def test_under_x64_every_dtype_of_the_state_stays():
    with jax.enable_x64(True):
        params = {"w": jnp.ones((3, 4), jnp.float32), "v": jnp.ones(3, jnp.float64)}
        recorder = od.record_weight_dynamics(capacity=12)
        state, update = recorder.init(params), jax.jit(recorder.update)
        for _ in range(12):
            _, after = update(params, state, params)
            chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
            state = after
    assert state.table.dtype == jnp.float32


def test_it_lowers_for_tpu_and_cuda():
    params = {"w": jnp.ones((300, 400)), "b": jnp.ones(4, jnp.bfloat16)}
    tx = recorded()
    state = tx.init(params)
    exported = export.export(jax.jit(tx.update), platforms=("tpu", "cuda", "cpu"))
    shapes = jax.eval_shape(lambda *x: x, params, state, params)
    assert set(exported(*shapes).platforms) == {"tpu", "cuda", "cpu"}
