"""The factor on what an update changes of the norm: against NumPy float64 and closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal

import optax_decoupled as od

FACTORS = [(0.5, 1.0), (0.0, 0.0), (1.0, 0.25), (2.0, 1.5), (0.0, 1.0)]


def reference(u, theta, outward, inward):
    """The new weight from the equations, in float64 or complex128."""
    u, theta = (np.asarray(x).astype(np.result_type(x.dtype, np.float64)) for x in (u, theta))
    n0, n1 = np.linalg.norm(theta), np.linalg.norm(theta + u)
    n = n0 + (outward if n1 > n0 else inward) * (n1 - n0)
    return (theta + u) * max(n, 0) / n1


def _changed(u, theta, outward, inward, **kwargs):
    tx = od.norm_change(outward=outward, inward=inward, **kwargs)
    return jax.jit(tx.update)(u, tx.init(theta), theta)[0]


@pytest.mark.parametrize(("outward", "inward"), FACTORS)
@pytest.mark.parametrize("radial", [0.7, -0.7, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_the_new_weight_of_numpy(outward, inward, radial, dtype):
    with jax.enable_x64(dtype == "float64"):
        theta = normal((5, 7), dtype)
        u = radial * theta + 0.3 * normal((5, 7), dtype, seed=1)
        moved = np.asarray(theta).astype(complex) + np.asarray(_changed(u, theta, outward, inward))
    tolerance = 1e-13 if dtype == "float64" else 2e-6
    np.testing.assert_allclose(
        moved, reference(u, theta, outward, inward), rtol=tolerance, atol=tolerance
    )
    wrong = reference(u, theta, inward, outward)
    if outward != inward:  # growth and shrinkage are told apart
        assert np.abs(moved - wrong).max() > 1e-3


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("outward", "inward"), [(0.5, 1.0), (0.0, 0.0), (1.0, 0.5)])
def test_small_updates_keep_their_accuracy(size, outward, inward):
    """The radial part is far below the rounding of the norm: a difference of norms loses it."""
    theta = normal((64, 64))
    for sign in (1, -1):
        u = size * (sign * theta + normal(theta.shape, seed=1))
        update = np.float64(_changed(u, theta, outward, inward))
        with jax.enable_x64(True):
            exact = reference(u, theta, outward, inward) - np.float64(theta)
        error = np.linalg.norm(update - exact) / np.linalg.norm(exact)
        assert error < 1e-6
        plain = np.linalg.norm(np.float64(u) - exact) / np.linalg.norm(exact)
        assert plain > 0.1 or (outward if sign > 0 else inward) == 1.0


def test_one_and_one_is_no_operation():
    theta, u = normal((4, 4), jnp.bfloat16), normal((4, 4), jnp.bfloat16, seed=1)
    tx = od.norm_change()
    updates, _ = tx.update({"w": u}, tx.init({"w": theta}), {"w": theta})
    assert updates["w"] is u
    assert not jax.make_jaxpr(lambda u: tx.update(u, tx.init(theta), theta)[0])(u).eqns
    traced = jax.jit(lambda f: _changed(u, theta, f, f))(1.0)  # computed, and the same bits
    np.testing.assert_array_equal(traced, u)
    assert jnp.any(_changed(u, theta, 0.5, 0.5) != u)


@pytest.mark.parametrize("name", ["adam", "sgd", "growing"])
def test_zero_and_zero_keeps_the_norm_for_a_hundred_steps(name):
    inner = {"adam": optax.adam(0.1), "sgd": optax.sgd(0.3), "growing": optax.sgd(-0.3)}[name]

    def norms(tx):
        def step(carry, t):
            theta, state = carry
            grads = theta + jax.random.normal(jax.random.fold_in(jax.random.key(2), t), (16, 8))
            updates, state = tx.update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        theta = normal((16, 8))
        path = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(100))[1])((theta, tx.init(theta)))
        start = np.linalg.norm(np.float64(theta))
        return np.linalg.norm(np.float64(path), axis=(1, 2)) / start

    np.testing.assert_allclose(
        norms(optax.chain(inner, od.norm_change(outward=0, inward=0))), 1, rtol=1e-6
    )
    assert np.abs(norms(inner) - 1).max() > 0.1


def test_zero_and_zero_is_the_projection_of_hyperball():
    """One step from the sphere: α ‖θ‖ u/‖u‖, subtracted and set back."""
    theta, u = normal((6, 5)), normal((6, 5), seed=1)
    hyperball = od.hyperball(optax.identity(), 0.2)
    expected, _ = hyperball.update(u, hyperball.init(theta), theta)
    step = -0.2 * jnp.linalg.norm(theta) * u / jnp.linalg.norm(u)
    np.testing.assert_allclose(_changed(step, theta, 0, 0), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(_changed(step, theta, 1, 0.5) - expected).max() > 1e-3


def test_the_direction_stays_and_the_growth_is_halved():
    theta, u = jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])
    moved = theta + _changed(u, theta, 0.5, 1.0)
    np.testing.assert_allclose(moved, 4 * np.array([0.6, 0.8]), rtol=1e-6)  # from 3 to 5
    back = theta + _changed(-theta / 3, theta, 0.5, 1.0)
    np.testing.assert_allclose(back, [2.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(_changed(-0.9 * theta, theta, 1.0, 3.0), -theta)  # n >= 0


def test_weights_and_updates_of_zero():
    theta, zero = normal((3, 4)), jnp.zeros((3, 4))
    for outward, inward in FACTORS:
        np.testing.assert_array_equal(_changed(zero, theta, outward, inward), 0)
        np.testing.assert_array_equal(_changed(zero, zero, outward, inward), 0)
        grown = _changed(theta, zero, outward, inward)  # ‖θ‖ grows from 0
        np.testing.assert_allclose(grown, outward * np.asarray(theta), rtol=1e-6)
        if outward == 0:
            np.testing.assert_array_equal(grown, 0)
        to_zero = _changed(-theta, theta, outward, inward)
        expected = -min(inward, 1) * np.asarray(theta)
        np.testing.assert_allclose(to_zero, expected, rtol=1e-6)


def test_weights_of_zero_stay_exactly_where_nothing_may_grow():
    u = normal((200, 7))
    held = _changed(u, jnp.zeros_like(u), 0.0, 0.5, stacked=1)  # 200 weights
    np.testing.assert_array_equal(held, 0)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_squares_do_not_overflow(scale):
    theta, u = scale * normal((4, 4)), scale * normal((4, 4), seed=1)
    for outward, inward in FACTORS:
        moved = (np.float64(theta) + np.float64(_changed(u, theta, outward, inward))) / scale
        expected = reference(u, theta, outward, inward) / scale
        np.testing.assert_allclose(moved, expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("bfloat16", 1e25), ("float16", 2e3), ("bfloat16", 1)]
)
def test_narrow_weights_are_computed_in_float32(dtype, scale):
    theta = (scale * normal((32, 32))).astype(dtype)
    u = (0.3 * scale * normal((32, 32), seed=1)).astype(dtype)
    with jax.numpy_dtype_promotion("strict"):
        update = _changed(u, theta, 0.0, 0.0)
        wide = _changed(u.astype(jnp.float32), theta, 0.0, 0.0)
    assert (update.dtype, wide.dtype) == (jnp.dtype(dtype), jnp.float32)
    np.testing.assert_array_equal(update, wide.astype(dtype))
    before, after = (
        np.linalg.norm(np.float64(x)) for x in (theta, np.float64(theta) + np.float64(wide))
    )
    assert after == pytest.approx(before, rel=1e-6)


def test_slices_of_a_stack_are_weights_of_their_own():
    theta = {
        "blocks": jnp.arange(1.0, 4.0)[:, None, None] * normal((3, 5, 2)),
        "w": jnp.ones(4),
    }
    u = {"blocks": normal((3, 5, 2), seed=1), "w": normal((4,), seed=2)}
    update = _changed(u, theta, 0.5, 0.25, stacked={"blocks": 1, "w": 0})
    for i in range(3):
        expected = _changed(u["blocks"][i], theta["blocks"][i], 0.5, 0.25)
        np.testing.assert_allclose(update["blocks"][i], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(update["w"], _changed(u["w"], theta["w"], 0.5, 0.25))
    whole = _changed(u, theta, 0.5, 0.25)
    assert np.abs(whole["blocks"] - update["blocks"]).max() > 1e-2
    with pytest.raises(ValueError, match="stacked=3 at 'w'"):
        od.norm_change(outward=0.5, stacked=3).init(theta)


def test_leaves_that_are_left_alone():
    theta = {"n": jnp.arange(3), "w": jnp.ones(3), "none": jnp.ones(3), "empty": jnp.ones((0, 4))}
    u = {"n": jnp.arange(3), "w": jnp.ones(3), "none": None, "empty": jnp.ones((0, 4))}
    tx = od.norm_change(outward=0.0, inward=0.0)
    updates, state = tx.update(u, tx.init(theta), theta)
    assert updates["n"] is u["n"]
    assert updates["none"] is None
    assert updates["empty"].shape == (0, 4)
    np.testing.assert_allclose(updates["w"], 0, atol=3e-7)
    assert state == optax.EmptyState()
    hidden = {"w": jnp.ones(3), "b": optax.MaskedNode()}
    updates, _ = tx.update(hidden, state, hidden)
    assert isinstance(updates["b"], optax.MaskedNode)


def test_in_a_partition_beside_adamw():
    theta = {"kernel": normal((4, 4)), "bias": jnp.ones(4)}
    brake = optax.chain(optax.sgd(0.5), od.norm_change(outward=0.0, inward=0.0))
    labels = {"kernel": "brake", "bias": "plain"}
    tx = optax.partition({"brake": brake, "plain": od.adamw(0.1, 1e-3)}, labels)
    u = {"kernel": normal((4, 4), seed=1), "bias": jnp.zeros(4)}
    updates, _ = jax.jit(tx.update)(u, tx.init(theta), theta)
    np.testing.assert_allclose(updates["bias"], -1e-3, rtol=1e-6)
    np.testing.assert_allclose(
        updates["kernel"], _changed(-0.5 * u["kernel"], theta["kernel"], 0, 0), rtol=1e-6
    )


def test_factors_may_be_traced_and_scheduled():
    theta, u = normal((4, 3)), normal((4, 3), seed=1)
    factors = jnp.array([0.0, 0.5, 1.0])
    several = jax.vmap(lambda f: _changed(u, theta, f, f))(factors)
    for f, update in zip(factors, several, strict=True):
        np.testing.assert_allclose(update, _changed(u, theta, float(f), float(f)), rtol=1e-6)
    assert np.abs(several[0] - several[1]).max() > 1e-2
    over_weights = jax.vmap(lambda u, p: _changed(u, p, 0.5, 0.5))(u, theta)
    np.testing.assert_allclose(over_weights, _changed(u, theta, 0.5, 0.5, stacked=1), rtol=1e-6)
    half_later = lambda count: jnp.where(count < 1, 1.0, 0.5)
    tx = optax.inject_hyperparams(od.norm_change)(outward=half_later, inward=half_later)
    state, expected = tx.init(theta), (1.0, 0.5)
    for f in expected:
        update, state = jax.jit(tx.update)(u, state, theta)
        np.testing.assert_allclose(update, _changed(u, theta, f, f), rtol=1e-6)


def test_sharded_and_donated():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    theta, u = normal((16, 4)), normal((16, 4), seed=1)
    tx = od.norm_change(outward=0.0, inward=0.5)
    expected = _changed(u, theta, 0.0, 0.5)
    placed = jax.device_put((u, theta), sharding)
    step = jax.jit(lambda u, p: p + tx.update(u, optax.EmptyState(), p)[0], donate_argnums=(1,))
    moved = step(*placed)
    assert moved.sharding.is_equivalent_to(sharding, 2)
    assert placed[1].is_deleted()
    np.testing.assert_allclose(moved, theta + expected, rtol=1e-5, atol=1e-6)


def test_strict_promotion_and_ranks():
    theta, u = normal((4, 3), jnp.bfloat16), normal((4, 3), seed=1)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for factor in (0.5, jnp.bfloat16(0.5), np.float64(0.5)):
            chex.assert_tree_all_finite(_changed(u, theta, factor, 1.0, stacked=1))


def test_norm_change_refuses():
    with pytest.raises(ValueError, match=r"outward=-0\.5 is not allowed.*finite number >= 0"):
        od.norm_change(outward=-0.5)
    with pytest.raises(ValueError, match="inward=inf"):
        od.norm_change(inward=float("inf"))
    with pytest.raises(TypeError, match="outward=True is a bool"):
        od.norm_change(outward=True)
    with pytest.raises(TypeError, match=r"outward=<function.*inject_hyperparams"):
        od.norm_change(outward=lambda t: 0.5)
    with pytest.raises(ValueError, match=r"inward has shape \(2,\)"):
        od.norm_change(inward=jnp.ones(2))
    for tx in (od.norm_change(), od.norm_change(outward=0.5)):
        with pytest.raises(ValueError, match="params=None in norm_change"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
