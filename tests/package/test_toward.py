"""What weights are pulled to: θ + u − c·w ⊙ (θ − r), against loops in NumPy and closed forms."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od

ETA = optax.cosine_decay_schedule(1.0, 400)
DECAY = 4e-3


def _params(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    return {
        "kernel": jax.random.normal(keys[0], (8, 16), dtype),
        "bias": jax.random.normal(keys[1], (16,), dtype),
    }


def _moved(params, seed=1):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten(moved)


def _zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


def _rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def _steps(tx, params, count, state=None, **extra):
    """Parameters after some steps of zero gradient."""

    @jax.jit
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(_zeros(params), state, params, **extra)
        return (optax.apply_updates(params, updates), state), None

    state = tx.init(params) if state is None else state
    return jax.lax.scan(step, (params, state), length=count)[0]


POINTS = {
    "init": (lambda theta_0, r: od.toward_init(), lambda theta, theta_0, r: theta_0),
    "argument": (lambda theta_0, r: od.toward_argument(), lambda theta, theta_0, r: r),
    "rms": (
        lambda theta_0, r: od.toward_rms(0.3),
        lambda theta, theta_0, r: theta * 0.3 / np.sqrt(np.mean(theta**2)),
    ),
    "initial rms": (
        lambda theta_0, r: od.toward_rms(),
        lambda theta, theta_0, r: theta * np.sqrt(np.mean(theta_0**2) / np.mean(theta**2)),
    ),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgdw"])
@pytest.mark.parametrize("alpha", [1e-3, 3e-2])
def test_trajectories_of_numpy(point, optimizer, alpha):
    """250 steps in float64, a moving schedule, two peak rates; effects of at least 1e-4."""
    make, of = POINTS[point]
    steps, eta = 250, [float(np.float64(ETA(t))) for t in range(250)]
    rng = np.random.default_rng(0)
    theta_0, r, target = rng.normal(size=(3, 12))
    gradient = lambda theta, t: theta - target + np.sin(t)

    def loop(decay):
        theta, path = theta_0, []
        buffer, v = np.zeros_like(theta), np.zeros_like(theta)
        for t in range(steps):
            g = gradient(theta, t)
            if optimizer == "sgdw":
                buffer = 0.9 * buffer + eta[t] * alpha * g
                u = -buffer
            else:
                buffer, v = 0.9 * buffer + 0.1 * g, 0.999 * v + 0.001 * g * g
                m_hat, v_hat = buffer / (1 - 0.9 ** (t + 1)), v / (1 - 0.999 ** (t + 1))
                u = -eta[t] * alpha * m_hat / (np.sqrt(v_hat) + 1e-8)
            theta = theta + u - decay * eta[t] * (theta - of(theta, theta_0, r))
            path.append(theta)
        return np.stack(path)

    with jax.enable_x64(True):
        schedule = lambda count: jnp.asarray(eta)[count]
        factory = getattr(od, optimizer)
        tx = factory(alpha, DECAY, schedule=schedule, toward=make(theta_0, r))

        def step(carry, t):
            params, state = carry
            g = params - target + jnp.sin(t.astype(float))
            updates, state = tx.update(g, state, params, reference=jnp.asarray(r))
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.asarray(theta_0)
        _, path = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))
    expected = loop(DECAY)
    np.testing.assert_allclose(path, expected, rtol=1e-6, atol=1e-9)
    assert np.max(abs(expected - loop(0.0))) > 1e-3
    zero = getattr(reference, optimizer.removesuffix("w"))(
        theta_0, gradient, eta, alpha, decay=[DECAY * x for x in eta]
    )
    assert np.max(abs(expected - zero)) > 1e-3  # and it is no decay to 0


@pytest.mark.parametrize("kind", ["init", "argument"])
def test_the_distance_falls_by_the_product_of_the_survivals(kind):
    start, steps = _params(), 300
    moved = _moved(start)
    tx = od.adamw(0.1, DECAY, schedule=ETA, toward=POINTS[kind][0](None, None))
    params, state = _steps(tx, moved, steps, tx.init(start), reference=start)
    survival = np.prod([1 - DECAY * float(ETA(t)) for t in range(steps)])
    assert survival < 0.7
    for name, x in params.items():
        expected = (moved[name] - start[name]) * survival
        np.testing.assert_allclose(x - start[name], expected, rtol=1e-4, atol=1e-5)
    assert float(optax.tree.get(state, "decay_rate")) == pytest.approx(
        DECAY * float(ETA(299)), rel=1e-4
    )


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_the_rms_goes_to_its_target_geometrically(target):
    params, steps = _params(), 300
    tx = od.sgdw(0.1, DECAY, toward=od.toward_rms(target))
    after, _ = _steps(tx, params, steps)
    for name, x in params.items():
        expected = target + (_rms(x) - target) * (1 - DECAY) ** steps
        assert _rms(after[name]) == pytest.approx(expected, rel=1e-5)
        direction = np.asarray(x / _rms(x)), np.asarray(after[name] / _rms(after[name]))
        np.testing.assert_allclose(*direction, rtol=1e-4)


def test_the_initial_rms_is_held_against_updates():
    """Steps of noise lengthen a weight; the pull sets it back."""
    params = {"w": jnp.ones(1000)}

    def after(toward):
        tx = od.sgdw(0.05, 0.009, momentum=0.0, toward=toward)

        def step(carry, key):
            params, state = carry
            g = {"w": jax.random.normal(key, (1000,))}
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), 600)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]["w"]

    held, to_zero = _rms(after(od.toward_rms())), _rms(after(None))
    assert held == pytest.approx(1.0, abs=0.15)
    assert to_zero < 0.5


def test_a_zero_weight_stays_zero():
    params = {"w": jnp.zeros(3), "v": jnp.ones(2)}
    for toward in (od.toward_rms(), od.toward_rms(2.0)):
        after, _ = _steps(od.adamw(0.1, DECAY, toward=toward), params, 5)
        np.testing.assert_array_equal(after["w"], 0.0)
        assert np.isfinite(np.asarray(after["v"])).all()


@pytest.mark.parametrize("stacked", [1, {"kernel": 1, "bias": 0}])
def test_stacked_weights_have_a_length_for_each_slice(stacked):
    params = {"kernel": jnp.arange(1.0, 4.0)[:, None, None] * jnp.ones((3, 4, 2))}
    params |= {"bias": jnp.ones(5)} if isinstance(stacked, dict) else {}
    tx = od.sgdw(0.1, 0.009, toward=od.toward_rms(stacked=stacked))
    state = tx.init(params)
    kept = optax.tree.get(state, "reference")["rms"]["kernel"]
    np.testing.assert_allclose(kept, [1.0, 2.0, 3.0], rtol=1e-6)
    doubled, _ = _steps(tx, jax.tree.map(lambda x: 2 * x, params), 1, state)
    expected = 2 - 0.009 * 1
    np.testing.assert_allclose(doubled["kernel"], expected * params["kernel"], rtol=1e-6)
    whole = od.sgdw(0.1, 0.009, toward=od.toward_rms())
    assert optax.tree.get(whole.init(params), "reference")["rms"]["kernel"].shape == ()


def test_zeros_as_an_argument_are_no_toward_bit_for_bit():
    params, grads = _params(), _moved(_params(), 7)
    kwargs = dict(schedule=ETA, mask=od.decay_mask)
    for cautious in (False, True):
        plain = od.adamw(1e-3, DECAY, cautious=cautious, **kwargs)
        pulled = od.adamw(1e-3, DECAY, cautious=cautious, toward=od.toward_argument(), **kwargs)
        states = [tx.init(params) for tx in (plain, pulled)]
        theirs, ours = params, params
        for _ in range(5):
            u, states[0] = jax.jit(plain.update)(grads, states[0], theirs)
            v, states[1] = jax.jit(pulled.update)(grads, states[1], ours, reference=_zeros(params))
            theirs, ours = optax.apply_updates(theirs, u), optax.apply_updates(ours, v)
        chex.assert_trees_all_equal(theirs, ours)


def test_masks_and_multipliers_scale_the_pull():
    start = _params()
    rules = od.decay_rules(("kernel", 0.5), ("bias", 0.0))
    tx = od.sgdw(0.1, DECAY, mask=rules, toward=od.toward_init())
    moved = jax.tree.map(lambda x: x + 1, start)
    updates, _ = tx.update(_zeros(start), tx.init(start), moved)
    np.testing.assert_allclose(updates["kernel"], -DECAY / 2, rtol=1e-4)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_cautious_pulls_only_where_the_step_does_not():
    start = jnp.array([5.0, 5.0, 5.0])
    moved = start + jnp.array([1.0, 1.0, -1.0])
    tx = od.add_decoupled_weight_decay(DECAY, cautious=True, toward=od.toward_init())
    u = jnp.array([0.1, -0.1, 0.1])  # away from r, towards it, towards it
    updates, _ = tx.update(u, tx.init(start), moved)
    np.testing.assert_allclose(updates - u, [0.0, -DECAY, DECAY], rtol=1e-4, atol=1e-9)


def test_narrow_parameters_are_pulled_in_float32():
    start = _params(jnp.bfloat16)
    moved = jax.tree.map(lambda x: x + 1, start)
    tx = od.add_decoupled_weight_decay(1e-3, toward=od.toward_init())
    state = tx.init(start)
    assert {x.dtype for x in jax.tree.leaves(state.reference)} == {jnp.dtype(jnp.bfloat16)}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), start)
    with jax.numpy_dtype_promotion("strict"):
        updates, _ = tx.update(zeros, state, moved)
        od.sgdw(0.1, DECAY, toward=od.toward_rms()).init(start)
    exact = jax.tree.map(lambda a, b: -1e-3 * (np.float32(a) - np.float32(b)), moved, start)
    chex.assert_trees_all_close(updates, exact, rtol=1e-6)


LAYOUTS = {
    "fully sharded": {"kernel": P(("data", "model")), "bias": P("data")},
    "tensor parallel": {"kernel": P("data", "model"), "bias": P("model")},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("kind", ["init", "argument", "rms", "initial rms"])
def test_shards_are_pulled_as_one(layout, kind):
    """The reference lies like its parameter, and the length of a weight is that of the whole."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda tree: {
        k: jax.device_put(v, NamedSharding(mesh, layout[k])) for k, v in tree.items()
    }
    tx = od.adamw(1e-2, DECAY, toward=POINTS[kind][0](None, None))
    start, params, grads = _params(), _moved(_params()), _moved(_params(), 9)
    state = tx.init(start)

    @jax.jit
    def step(params, state, grads, reference):
        return tx.update(grads, state, params, reference=reference)

    updates, _ = step(params, state, grads, start)
    placed = jax.jit(tx.init, out_shardings=od.opt_state_shardings(tx, place(start)))(place(start))
    if kind == "init":
        for name, x in placed[2].reference.items():
            assert x.sharding == NamedSharding(mesh, layout[name])
    sharded, _ = step(place(params), placed, place(grads), place(start))
    chex.assert_trees_all_close(sharded, updates, rtol=2e-5, atol=1e-7)


def test_the_copy_survives_the_donation_of_the_parameters():
    tx = od.adamw(1e-2, DECAY, toward=od.toward_init())
    params = _params()
    expected = jax.tree.map(np.array, params)
    state = jax.jit(tx.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(params, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    chex.assert_trees_all_equal(jax.tree.map(np.array, state[2].reference), expected)
    params = _params()
    state = jax.jit(tx.init, donate_argnums=0)(params)
    chex.assert_trees_all_equal(jax.tree.map(np.array, state[2].reference), expected)
    eager = tx.init(fresh := _params())
    jax.tree.map(lambda x: x.delete(), fresh)
    chex.assert_trees_all_equal(jax.tree.map(np.array, eager[2].reference), expected)


def test_a_batch_of_decays():
    start, moved = _params(), _moved(_params())

    def pulled(decay):
        tx = od.sgdw(0.1, decay, toward=od.toward_init())
        return tx.update(_zeros(start), tx.init(start), moved)[0]

    many = jax.vmap(pulled)(jnp.array([1e-3, 5e-3]))
    for i, decay in enumerate([1e-3, 5e-3]):
        one = pulled(decay)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], many), one, rtol=1e-5)


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e9), tx),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.sgd(0.1)}, {"kernel": "a", "bias": "b"}
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("kind", ["init", "argument"])
def test_through_wrappers(name, kind):
    start, moved = _params(), _moved(_params())
    tx = WRAPPED[name](od.sgdw(0.1, DECAY, toward=POINTS[kind][0](None, None)))
    update = jax.jit(lambda r: tx.update(_zeros(start), tx.init(start), moved, reference=r)[0])
    expected = -DECAY * (moved["kernel"] - start["kernel"])
    np.testing.assert_allclose(update(start)["kernel"], expected, rtol=1e-4, atol=1e-8)


def test_an_argument_counts_when_accumulated_gradients_are_applied():
    start, moved = _params(), _moved(_params())
    tx = optax.MultiSteps(od.sgdw(0.1, DECAY, toward=od.toward_argument()), 2)
    far = jax.tree.map(lambda x: x + 100, start)
    state = tx.init(start)
    first, state = tx.update(_zeros(start), state, moved, reference=far)
    np.testing.assert_array_equal(first["kernel"], 0.0)
    second, _ = tx.update(_zeros(start), state, moved, reference=start)
    expected = -DECAY * (moved["kernel"] - start["kernel"])
    np.testing.assert_allclose(second["kernel"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", ["init", "argument", "initial rms"])
def test_nnx_optimizers(kind):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    tx = od.sgdw(0.1, DECAY, toward=POINTS[kind][0](None, None))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    start = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    model.kernel[...] = 2 * model.kernel[...]
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    extra = {"reference": start} if kind == "argument" else {}
    before = np.array(model.kernel[...])
    optimizer.update(model, grads, **extra)
    np.testing.assert_allclose(model.kernel[...], before * (1 - DECAY / 2), rtol=1e-5)


def test_without_toward_nothing_is_kept_and_nothing_is_added():
    params = _params()
    plain = od.adamw(1e-3, DECAY)
    assert type(plain.init(params)[2]) is od.types.DecoupledWeightDecayState
    counts = {
        kind: len(jax.tree.leaves(od.adamw(1e-3, DECAY, toward=toward).init(params)))
        for kind, toward in {
            "none": None,
            "init": od.toward_init(),
            "argument": od.toward_argument(),
            "rms": od.toward_rms(1.0),
            "initial rms": od.toward_rms(),
        }.items()
    }
    n = len(params)
    assert counts["argument"] == counts["rms"] == counts["none"] == counts["init"] - n
    assert counts["initial rms"] == counts["none"] + n


def test_states_are_migrated_with_their_reference():
    start, moved = _params(), _moved(_params())
    pulled = od.adamw(1e-3, DECAY, toward=od.toward_init())
    _, state = pulled.update(moved, pulled.init(start), moved)
    other = od.adamw(1e-3, DECAY / 2, schedule=ETA, toward=od.toward_init())
    migrated = od.migrate_opt_state(state, other, moved)
    chex.assert_trees_all_equal(migrated[2].reference, start)
    plain = od.adamw(1e-3, DECAY)
    _, without = plain.update(moved, plain.init(start), moved)
    migrated = od.migrate_opt_state(without, pulled, moved)  # it starts here
    chex.assert_trees_all_equal(migrated[2].reference, moved)
    assert int(migrated[2].count) == 1
    with pytest.raises(ValueError, match="the new optimizer has no reference/"):
        od.migrate_opt_state(state, plain, moved)


@pytest.mark.parametrize("kind", POINTS)
def test_exported_to_tpu_and_cuda(kind):
    tx = od.adamw(1e-3, DECAY, toward=POINTS[kind][0](None, None))
    params = _params()

    def step(grads, state, params, reference):
        return tx.update(grads, state, params, reference=reference)

    exported = jax.export.export(jax.jit(step), platforms=("tpu", "cuda", "cpu"))(
        params, tx.init(params), params, params
    )
    assert exported.platforms == ("tpu", "cuda", "cpu")


REFUSED = {
    "a tree": (
        lambda: od.adamw(0.1, DECAY, toward={"w": jnp.ones(2)}),
        TypeError,
        r"toward=.*toward_init\(\).*toward_argument",
    ),
    "the function": (
        lambda: od.adamw(0.1, DECAY, toward=od.toward_init),
        TypeError,
        r"toward=<function.*result of toward_init\(\)",
    ),
    "no argument": (
        lambda: _pull(od.toward_argument("teacher"), {}),
        ValueError,
        r"teacher=None in tx\.update.*teacher=\.\.\.",
    ),
    "another structure": (
        lambda: _pull(od.toward_argument(), {"reference": {"kernel": jnp.ones((8, 16))}}),
        ValueError,
        r"reference does not have .* lacks 'bias'",
    ),
    "another shape": (
        lambda: _pull(od.toward_argument(), {"reference": jax.tree.map(jnp.sum, _params())}),
        ValueError,
        r"reference at 'bias' has shape \(\); it must have the parameter's shape \(16,\)",
    ),
    "a name": (lambda: od.toward_argument("my reference"), TypeError, "name='my reference' must"),
    "rms": (lambda: od.toward_rms(0.0), ValueError, "rms=0.0 is not allowed.* > 0"),
    "stacked": (
        lambda: _pull(od.toward_rms(stacked=2), {}),
        ValueError,
        r"stacked=2 at 'bias', of shape \(16,\)",
    ),
}


def _pull(toward, extra):
    tx = od.sgdw(0.1, DECAY, toward=toward)
    return tx.update(_zeros(_params()), tx.init(_params()), _params(), **extra)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        call()


def test_the_paper_s_restarts_pull_too():
    start, moved = _params(), _moved(_params())
    for factory in (od.adamwr, od.sgdwr):
        tx = factory(0.1, 0.1, first_cycle_steps=100, toward=od.toward_init())
        updates, _ = tx.update(_zeros(start), tx.init(start), moved)
        expected = jax.tree.map(lambda a, b: -0.1 / math.sqrt(100) * (a - b), moved, start)
        chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-7)
    tx = od.decouple(optax.lion(1e-3, weight_decay=0.0), DECAY, toward=od.toward_init())
    updates, _ = tx.update(_zeros(start), tx.init(start), moved)
    expected = jax.tree.map(lambda a, b: -DECAY * (a - b), moved, start)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-7)
