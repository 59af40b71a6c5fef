"""weight_dynamics against NumPy, on any leaf and any device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_decoupled as od


def reference(theta, update):
    """rms, rotation and growth in float64, the angle from a right triangle."""
    theta, update = (np.asarray(x, np.complex128).ravel() for x in (theta, update))
    theta, update = (np.concatenate([x.real, x.imag]) for x in (theta, update))
    elements, after = theta.size // 2, theta + update
    unit = theta / np.linalg.norm(theta)
    parallel = after @ unit
    rotation = np.arctan2(np.linalg.norm(after - parallel * unit), parallel)
    growth = (after @ after) / (theta @ theta) - 1
    return np.linalg.norm(theta) / np.sqrt(elements), rotation, growth


def random_pair(shape=(40, 30), scale=1e-3, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    theta = jax.random.normal(keys[0], shape, dtype)
    return theta, (scale * jax.random.normal(keys[1], shape, dtype)).astype(dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 30.0])
def test_equals_the_float64_reference(scale, dtype):
    theta, update = random_pair(scale=scale, dtype=dtype)
    measured = jax.jit(od.weight_dynamics)(theta, update)
    expected = reference(theta, update)
    for value, wanted in zip(measured, expected, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6 * scale**2)


def test_an_arccos_would_see_no_small_angle():
    theta, update = random_pair(scale=1e-5)
    after = theta + update
    cosine = jnp.vdot(theta, after) / jnp.linalg.norm(theta) / jnp.linalg.norm(after)
    rotation = od.weight_dynamics(theta, update).rotation
    wanted = reference(theta, update)[1]
    np.testing.assert_allclose(rotation, wanted, rtol=1e-5)
    assert not np.isclose(np.arccos(min(float(cosine), 1.0)), wanted, rtol=0.5)


@pytest.mark.parametrize("c", [1e-7, 1e-3, 0.5])
def test_pure_decay_turns_nothing(c):
    theta, _ = random_pair((300, 300))
    measured = od.weight_dynamics(theta, -c * theta)
    assert measured.rotation < 1e-7 * c
    np.testing.assert_allclose(measured.growth, (1 - c) ** 2 - 1, rtol=1e-5)


@pytest.mark.parametrize(("factor", "rotation"), [(-1.5, np.pi), (-0.5, 0.0), (1.0, 0.0)])
def test_beyond_zero_the_weight_is_turned_around(factor, rotation):
    theta, _ = random_pair()
    np.testing.assert_allclose(
        od.weight_dynamics(theta, factor * theta).rotation, rotation, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_sum_over_a_hundred_million_elements_does_not_stall(dtype):
    """A plain running sum of float32 stops growing at 2²⁴ equal elements."""
    theta = jnp.full((100_000_000,), 0.1, dtype)
    update = jnp.full_like(theta, 1e-4)
    value, step = float(theta[0]), float(update[0])
    measured = jax.jit(od.weight_dynamics)(theta, update)
    np.testing.assert_allclose(measured.rms, value, rtol=1e-6)
    np.testing.assert_allclose(measured.growth, (1 + step / value) ** 2 - 1, rtol=1e-5)
    assert measured.rotation < 1e-6


def test_stacked_layers_are_measured_slice_by_slice():
    theta, update = random_pair((3, 2, 40))
    layers = {"scanned": theta, "head": theta[0, 0]}
    moves = {"scanned": update, "head": update[0, 0]}
    counts = {"scanned": 2, "head": 0}
    for stacked in (counts, lambda params: counts):
        measured = od.weight_dynamics(layers, moves, stacked=stacked)
        for i, j in np.ndindex(3, 2):
            slices = [tree["scanned"][i, j] for tree in measured]
            np.testing.assert_allclose(slices, reference(theta[i, j], update[i, j]), rtol=1e-4)
        assert measured.rms["head"].shape == ()
    flat = ({"scanned": theta}, {"scanned": update})
    one = od.weight_dynamics(*flat, stacked=np.int64(1)).growth["scanned"]
    np.testing.assert_allclose(one[2], reference(theta[2], update[2])[2], rtol=1e-4)
    whole = od.weight_dynamics(layers, moves).rotation["scanned"]
    assert abs(whole / measured.rotation["scanned"] - 1).max() > 0.05  # no mean of the slices


def test_a_prefix_names_the_stacked_axes_of_a_subtree():
    theta, update = random_pair((3, 4))
    params, moves = ({"layers": {"a": x, "b": x}, "head": x} for x in (theta, update))
    measured = od.weight_dynamics(params, moves, stacked={"layers": 1, "head": 0})
    shapes = jax.tree.map(jnp.shape, measured.rms, is_leaf=lambda x: hasattr(x, "shape"))
    assert shapes == {"layers": {"a": (3,), "b": (3,)}, "head": ()}


def test_what_does_not_train_passes():
    params = {
        "w": jnp.ones(4),
        "frozen": jnp.full(4, 2.0),
        "masked": optax.MaskedNode(),
        "none": None,
        "table": jnp.arange(6).reshape(2, 3),
        "empty": jnp.zeros((0, 3)),
    }
    updates = params | {"frozen": optax.MaskedNode(), "table": None, "w": jnp.full(4, 0.5)}
    measured = jax.jit(od.weight_dynamics)(params, updates)
    for tree in measured:
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        assert isinstance(tree["masked"], optax.MaskedNode)
        assert float(tree["table"]) == float(tree["empty"]) == 0.0
    assert float(measured.rms["frozen"]) == 2.0
    assert float(measured.rotation["frozen"]) == float(measured.growth["frozen"]) == 0.0
    assert float(measured.growth["w"]) == 1.25


def test_a_weight_of_zero_has_no_direction():
    zero, one = jnp.zeros(3), jnp.ones(3)
    with jax.debug_nans(True):
        moved, still = od.weight_dynamics(zero, one), od.weight_dynamics(zero, zero)
    assert [float(x) for x in moved] == [0.0, 0.0, np.inf]
    assert [float(x) for x in still] == [0.0, 0.0, 0.0]


def test_in_float64_the_numbers_are_float32():
    with jax.enable_x64(True):
        theta, update = (np.asarray(x, np.float64) for x in random_pair(scale=1e-9))
        measured = od.weight_dynamics({"w": theta, "n": jnp.arange(3)}, {"w": update, "n": None})
        assert {x.dtype for x in jax.tree.leaves(measured)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(measured.rotation["w"], reference(theta, update)[1], rtol=1e-6)


def test_more_elements_than_an_int32_counts():
    large = jax.ShapeDtypeStruct((70_000, 70_000), jnp.float32)
    assert "4899999744.0" in str(jax.make_jaxpr(od.weight_dynamics)(large, large))


def test_a_tree_without_leaves():
    assert od.weight_dynamics({}, {}) == ({}, {}, {})


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P(), P(None, "data"), P("data"), P("data", "model")])
def test_sharded_arrays_give_the_numbers_of_one_device(spec, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type, axis_type))
    theta, update = random_pair((8, 16, 32))
    expected = od.weight_dynamics(theta, update, stacked=1)
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (theta, update)]
    measure = jax.jit(lambda *trees: od.weight_dynamics(*trees, stacked=1))
    for value, wanted in zip(measure(*placed), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=1e-8)


def test_inside_cond_every_few_steps():
    theta, update = random_pair()

    @jax.jit
    def step(t):
        measured = od.weight_dynamics(theta, update)
        skipped = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), measured)
        return jax.lax.cond(t % 10 == 0, lambda: measured, lambda: skipped)

    assert np.isfinite(step(20).rms)
    assert np.isnan(step(21).rms)


def test_of_flax_nnx_parameters():
    from flax import nnx

    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    measured = od.weight_dynamics(params, jax.tree.map(lambda p: -0.1 * p, params))
    np.testing.assert_allclose(measured.growth["kernel"][...], 0.81 - 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: od.weight_dynamics({"w": jnp.ones(3)}, {"w": jnp.ones(())}), "updates at 'w'"),
        (lambda: od.weight_dynamics({"w": jnp.ones(3)}, {"v": jnp.ones(3)}), "has the structure"),
        (lambda: od.weight_dynamics(jnp.ones(3), jnp.ones(3), stacked=2), "stacked=2"),
        (lambda: od.weight_dynamics(jnp.ones(3), jnp.ones(3), stacked=-1), "stacked=-1"),
        (lambda: od.weight_dynamics([jnp.ones(3)], [jnp.ones(3)], stacked=[0.5]), "stacked=0.5"),
        (lambda: od.weight_dynamics([jnp.ones(3)], [jnp.ones(3)], stacked={"x": 1}), "stacked"),
    ],
)
def test_refuses(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_the_forces_of_a_step_are_those_of_the_float64_reference_and_balance(dtype):
    theta, v = random_pair(scale=1e-3, dtype=dtype)
    c = 3e-4
    measured = jax.jit(lambda u: od.weight_dynamics(theta, u, decay=c))(v - c * theta)
    wide = np.complex128 if jnp.iscomplexobj(theta) else float
    t, w = (np.asarray(x, wide).ravel().view(float) for x in (theta, v))
    np.testing.assert_allclose(measured.alignment, 2 * t @ w / (t @ t), rtol=1e-3)
    np.testing.assert_allclose(measured.injection, w @ w / (t @ t), rtol=1e-4)
    np.testing.assert_allclose(measured.removal, 2 * c, rtol=1e-6)
    balance = measured.alignment + measured.injection - measured.removal
    np.testing.assert_allclose(balance, measured.growth, atol=3 * c**2)


def test_decay_is_a_tree_a_prefix_or_a_mask_function_and_none_gives_no_forces():
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "n": jnp.arange(2)}
    updates = jax.tree.map(lambda p: -0.01 * p, params)
    assert od.weight_dynamics(params, updates)._fields == ("rms", "rotation", "growth")
    tree = {"w": 0.01, "b": 0.0, "n": 0.0}
    for decay in (tree, lambda p: tree):
        forces = od.weight_dynamics(params, updates, decay=decay)
        np.testing.assert_allclose(forces.removal["w"], 0.02)
        np.testing.assert_allclose(forces.alignment["w"], 0.0, atol=1e-8)
        np.testing.assert_allclose(forces.injection["w"], 0.0, atol=1e-12)
        np.testing.assert_allclose(forces.alignment["b"], -0.02, rtol=1e-5)
        assert not any(np.any(x["n"]) for x in forces)
    stacked = od.weight_dynamics(params, updates, decay=0.01, stacked={"w": 1, "b": 0, "n": 0})
    assert stacked.removal["w"].shape == stacked.injection["w"].shape == (4,)
    with pytest.raises(ValueError, match="mask"):
        od.weight_dynamics(params, updates, decay={"w": 0.01})
