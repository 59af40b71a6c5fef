"""Steps on a sphere, and AdamC: against loops in NumPy, closed forms and hand-built chains."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from jax.extend import core

import optax_decoupled as od

DIRECTIONS = {
    "adam": optax.scale_by_adam,
    "gradient": optax.identity,
    "muon": optax.contrib.scale_by_muon,
}


def _run(tx, params, gradient, steps):
    """The parameters after every step."""

    @jax.jit
    def run(params):
        def step(carry, t):
            params, state = carry
            updates, state = tx.update(gradient(params, t), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]

    return run(params)


def _noise(params, t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), t), params.shape)


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_trajectory_of_numpy(alpha):
    """200 steps in float64 with a moving rate."""
    rng = np.random.default_rng(0)
    theta, target = rng.normal(size=(2, 9))
    steps, rates = 200, alpha * np.linspace(1.0, 0.1, 200)
    with jax.enable_x64(True):
        tx = od.hyperball(optax.scale_by_adam(), lambda count: jnp.asarray(rates)[count])
        gradient = lambda params, t: params - target + jnp.sin(t.astype(float))
        path = np.asarray(_run(tx, jnp.asarray(theta), gradient, steps))
    radius, m, v = np.linalg.norm(theta), np.zeros(9), np.zeros(9)
    for t in range(steps):
        g = theta - target + np.sin(t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        theta = theta - rates[t] * radius * u / np.linalg.norm(u)
        theta = radius * theta / np.linalg.norm(theta)
        np.testing.assert_allclose(path[t], theta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_norm_stays_for_ten_thousand_steps(name):
    params = jax.random.normal(jax.random.key(1), (16, 8))
    path = _run(od.hyperball(DIRECTIONS[name](), 0.02), params, _noise, 10_000)
    norms = np.linalg.norm(np.asarray(path, np.float64).reshape(10_000, -1), axis=1)
    start = np.linalg.norm(np.asarray(params, np.float64))
    np.testing.assert_allclose(norms, start, rtol=1e-6)
    assert np.abs(path[-1] - params).max() > 0.1  # and it did move


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("alpha", [0.01, 0.5])
def test_the_relative_step_is_the_learning_rate(alpha, scale):
    """Whatever the size of gradient and weight: for orthogonal ones the angle is atan α."""
    params = scale * jnp.array([[3.0, 0.0], [0.0, 0.0]])
    grads = jnp.array([[0.0, 2.0], [0.0, 0.0]]) / scale
    tx = od.hyperball(optax.identity(), alpha)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    moved = np.asarray(params + updates, np.float64)
    assert -moved[0, 1] / moved[0, 0] == pytest.approx(alpha, rel=1e-5)
    assert np.linalg.norm(moved) == pytest.approx(3 * scale, rel=1e-6)


def test_what_is_zero_stays_without_nan():
    params = {"zero": jnp.zeros(3), "w": jnp.ones(3), "count": jnp.arange(2), "none": None}
    grads = {"zero": jnp.ones(3), "w": jnp.zeros(3), "count": jnp.zeros(2, int), "none": None}
    tx = od.hyperball(optax.identity(), 0.1)
    with pytest.warns(UserWarning, match="weights of 0 stay 0: 'zero'") as caught:
        state = tx.init(params)
    assert caught[0].filename == __file__
    tx.init(jax.tree.map(jnp.zeros_like, params))  # a template for a checkpoint, and no weights
    known = {"zero": jnp.zeros(3), "w": jnp.ones(3)}
    with pytest.warns(UserWarning, match="weights of 0 stay 0"):
        jax.jit(lambda: od.hyperball(optax.identity(), 0.1).init(known))()
    updates, _ = jax.jit(tx.update)(grads, state, params)
    chex.assert_tree_all_finite(updates)
    for name in ("zero", "w", "count"):
        np.testing.assert_allclose(updates[name], 0, atol=1e-7)


def test_a_step_that_ends_in_the_middle_of_the_sphere_moves_nothing():
    """No direction leads back from there; a longer step ends on the other side."""
    params = jnp.array([3.0, 0.0])
    for alpha, expected in ((1.0, 0 * params), (1.5, -2 * params)):
        tx = od.hyperball(optax.identity(), alpha)
        with jax.debug_nans(True), jax.debug_infs(True):
            updates, _ = tx.update(params, tx.init(params), params)
        np.testing.assert_allclose(updates, expected, atol=1e-6)


def test_a_step_that_ends_near_the_middle_keeps_the_norm():
    """There the square of the length before the projection is a difference of numbers near 1."""
    params, turned = np.array([3.0, 4.0]), np.array([2.9, 4.1])
    moved = params - 0.98 * 5 * turned / np.linalg.norm(turned)
    expected = 5 * moved / np.linalg.norm(moved)  # 0.03 of the norm was left
    tx, given = od.hyperball(optax.identity(), 0.98), jnp.asarray(params)
    updates, _ = tx.update(jnp.asarray(turned), tx.init(given), given)
    assert np.linalg.norm(expected - params) > 1
    np.testing.assert_allclose(given + updates, expected, rtol=1e-3)


@pytest.mark.parametrize("rate", [1e-1, 1e-2, 1e-3, 1e-5])
def test_a_weight_far_inside_of_the_sphere_returns_to_it(rate):
    """Weights of another run: their squares and that of the step are small beside the radius."""
    params, direction = 1e-3 * rate * np.array([3.0, 4.0]), np.array([4.0, -3.0])
    tx = od.hyperball(optax.identity(), rate)
    given, state = jnp.asarray(params), tx.init(jnp.array([3.0, 4.0]))
    updates, _ = tx.update(jnp.asarray(direction), state, given)
    moved = params - rate * direction
    expected = 5 * moved / np.linalg.norm(moved)
    np.testing.assert_allclose(given + updates, expected, rtol=1e-4)


@pytest.mark.parametrize("rate", [1e-1, 3e-3, 3e-4])
def test_explain_finds_the_norm_held_at_any_rate(rate):
    tx = od.hyperball(optax.scale_by_adam(), rate)
    report = od.explain_weight_decay(tx, {"kernel": jnp.ones((8, 8))})
    report.check()
    assert [row.kind for row in report.rows] == ["constrained"]


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e22, 1e30])
def test_the_size_of_the_direction_does_not_matter(size):
    params = jnp.linspace(-1, 2, 12).reshape(3, 4)
    tx = od.hyperball(optax.identity(), 0.1)
    update, state, noise = jax.jit(tx.update), tx.init(params), normal(params.shape)
    expected, _ = update(noise, state, params)
    updates, _ = update(np.float32(size) * noise, state, params)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(updates, expected, rtol=1e-4, atol=1e-6)


def test_a_direction_that_is_no_number_is_seen_in_the_weights():
    params = jnp.ones(3)
    tx = od.hyperball(optax.identity(), 0.1)
    updates, _ = tx.update(jnp.array([1.0, jnp.nan, 1.0]), tx.init(params), params)
    assert np.isnan(updates).all()


@pytest.mark.parametrize("shape", [(2**21,), (1, 2**21), (2**21, 1), (2**10, 2**10)])
def test_rounding_does_not_add_up_over_millions_of_elements(shape):
    """Added one after the other in float32, the squares of as many numbers are off by 1e-3."""
    params, noise, constant = normal(shape), normal(shape, seed=1), np.full(shape, 0.1, "float32")
    ball, change = od.hyperball(optax.identity(), 0.1), od.norm_change(outward=0.0, inward=0.0)
    for tx, step in ((ball, 1.0), (change, 0.1)):
        for given, u in ((params, step * noise), (constant, 0.3 * constant)):
            updates, _ = jax.jit(tx.update)(u, tx.init(given), given)
            moved = np.float64(given) + np.float64(updates)
            norm = np.linalg.norm(np.float64(given))
            assert np.linalg.norm(moved) == pytest.approx(norm, rel=5e-6)


@pytest.mark.parametrize(
    "tx", [od.hyperball(optax.identity(), 0.1), od.norm_change(outward=0.5)], ids=["ball", "change"]
)
def test_a_weight_is_reduced_once(tx):
    """Two passes over a weight: the sums, and the update."""
    params = jnp.ones((8, 16))
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    passes = [
        eqn
        for eqn in _equations(jaxpr.jaxpr)
        if eqn.primitive.name.startswith("reduce") and eqn.invars[0].aval.size >= params.size
    ]
    assert len(passes) == 1


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e5])
@pytest.mark.parametrize(
    "tx",
    [od.hyperball(optax.identity(), 0.1), od.norm_change(outward=0.5, inward=0.3)],
    ids=["ball", "change"],
)
def test_updates_can_be_differentiated_backwards(tx, scale):
    """In float32, by direction and weight, against finite differences in float64."""
    params = jnp.linspace(-1, 2, 12).reshape(3, 4)
    given, weights, along = (
        (scale * _noise(params, 0), params),
        _noise(params, 1),
        _noise(params, 2),
    )
    loss = lambda u, p: jnp.sum(weights * tx.update(u, tx.init(p), p)[0])
    for i in (0, 1):
        grads = jax.jit(jax.grad(loss, i))(*given)
        with jax.enable_x64(True):
            x = [np.asarray(y, np.float64) for y in given]
            size = 1e-6 * np.abs(x[i]).max()
            moved = lambda k, i=i, x=x, size=size: [*x[:i], x[i] + k * size * along, *x[i + 1 :]]
            slope = float(loss(*moved(1)) - loss(*moved(-1))) / (2 * size)
        assert np.vdot(grads, along) == pytest.approx(slope, rel=1e-4)


def test_a_float32_radius_serves_float64_weights_under_strict_promotion():
    """As after a checkpoint of a run in float32."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params, tx = jnp.array([3.0, 4.0]), od.hyperball(optax.identity(), 0.5)
        state = tx.init(params)
        state = state._replace(radius=state.radius.astype(jnp.float32))
        moved = params + jax.jit(tx.update)(jnp.array([1.0, -2.0]), state, params)[0]
        assert np.linalg.norm(moved) == pytest.approx(5.0)
        assert moved[1] > 4.5


@pytest.mark.parametrize("params", [jnp.ones(3), jnp.zeros(3)])
def test_weights_whose_radius_is_zero_stay_as_they_are(params):
    """As after ``init`` on a template of zeros whose state was kept: they are not set to 0."""
    tx = od.hyperball(optax.identity(), 0.1)
    state = tx.init(jnp.zeros(3))
    with jax.debug_nans(True), jax.debug_infs(True):
        updates, _ = tx.update(jnp.arange(3.0), state, params)
    np.testing.assert_array_equal(updates, 0)


def test_slices_of_a_stack_are_weights_of_their_own():
    params = np.arange(1, 4, dtype=np.float32)[:, None] * np.ones((3, 5), np.float32)
    grads = normal(params.shape)
    stacked = od.hyperball(optax.identity(), 0.1, stacked=1)
    updates, state = jax.jit(stacked.update)(grads, stacked.init(params), params)
    assert state.radius.shape == (3,)
    single = od.hyperball(optax.identity(), 0.1)
    update = jax.jit(single.update)
    for i in range(3):
        expected, _ = update(grads[i], single.init(params[i]), params[i])
        np.testing.assert_allclose(updates[i], expected, rtol=1e-5)
    whole, _ = update(grads, single.init(params), params)
    assert np.abs(whole - updates).max() > 1e-2


def test_beside_adamw_in_a_partition():
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    tx = optax.partition(
        {"sphere": od.hyperball(optax.scale_by_adam(), 0.1), "plain": od.adamw(0.1, 1e-3)},
        {"kernel": "sphere", "bias": "plain"},
    )
    grads = {"kernel": normal((4, 4)), "bias": jnp.zeros(4)}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["bias"], -1e-3, rtol=1e-6)
    assert jnp.linalg.norm(params["kernel"] + updates["kernel"]) == pytest.approx(4.0, rel=1e-6)


def test_sharded_weights_have_the_norm_of_the_whole():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    params, tx = normal((16, 4), seed=1), od.hyperball(optax.scale_by_adam(), 0.1)
    grads = normal((16, 4), seed=2)
    expected, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    placed = jax.device_put((grads, params), sharding)
    updates, _ = jax.jit(tx.update)(placed[0], tx.init(placed[1]), placed[1])
    np.testing.assert_allclose(updates, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_are_moved_in_float32(dtype):
    params = jnp.linspace(1, 2, 64, dtype=dtype)
    tx = od.hyperball(optax.identity(), 0.1)
    with jax.numpy_dtype_promotion("strict"):
        updates, state = jax.jit(tx.update)(normal(params.shape), tx.init(params), params)
    assert updates.dtype == jnp.float32
    assert state.radius.dtype == jnp.float32
    moved = np.float64(params) + np.float64(updates)
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(np.float64(params)), rel=1e-6)


def test_exported_to_tpu_and_cuda():
    tx, params = od.hyperball(optax.scale_by_adam(), 0.1), jnp.ones((4, 4))
    step = jax.jit(tx.update)
    platforms = ("tpu", "cuda", "cpu")
    exported = jax.export.export(step, platforms=platforms)(params, tx.init(params), params)
    assert exported.platforms == platforms


def test_hyperball_refuses():
    with pytest.raises(TypeError, match=r"direction=<function.*GradientTransformation"):
        od.hyperball(optax.scale_by_adam, 0.1)
    with pytest.raises(ValueError, match=r"learning_rate=-0\.1"):
        od.hyperball(optax.scale_by_adam(), -0.1)
    tx = od.hyperball(optax.identity(), 0.1)
    state = tx.init(jnp.ones(2))
    with pytest.raises(ValueError, match="params=None in hyperball"):
        tx.update(jnp.ones(2), state)


FINISHED = [optax.adam(1e-3), optax.sgd(0.1, momentum=0.9), od.adamw(1e-3, 1e-4)]


@pytest.mark.parametrize("direction", FINISHED)
def test_a_finished_optimizer_is_no_direction(direction):
    """Its sign is that of a step: subtracted, it would climb."""
    tx = od.hyperball(direction, 0.1)
    with pytest.warns(UserWarning, match=r"climbs. Pass the direction alone") as caught:
        state = jax.jit(tx.init)({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
    assert len(caught) == 1
    assert caught[0].filename == __file__  # and not a line of JAX
    params = jnp.array([3.0, 4.0])
    updates, _ = tx.update(params, tx.init(params), params)  # told once
    assert jax.tree.structure(state) == jax.tree.structure(tx.init({"w": params, "b": params}))
    assert jnp.isclose(jnp.linalg.norm(params + updates), 5.0)


@pytest.mark.parametrize(
    "direction",
    [
        optax.scale_by_adam(),
        optax.identity(),
        optax.trace(0.9),
        optax.contrib.scale_by_muon(),
        optax.chain(optax.add_decayed_weights(1e-3), optax.scale_by_adam()),
        optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(-0.1)),
        optax.chain(optax.add_noise(0.01, 0.55, 0), optax.scale_by_adam()),
    ],
)
def test_a_direction_is_believed(direction):
    od.hyperball(direction, 0.1).init({"w": jnp.ones((3, 4))})  # warnings are errors here


ETA = optax.cosine_decay_schedule(1.0, 60)


def _network():
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    return {
        "embed": {"embedding": normal(7, 4)},
        "block_0": {"attn": {"kernel": normal(4, 4)}, "norm": {"scale": normal(4)}},
        "block_1": {"mlp": {"kernel": normal(4, 4), "bias": normal(4)}},
        "lm_head": {"kernel": normal(4, 7)},
    }


@pytest.mark.parametrize("normalized", [None, od.decay_rules((".*attn.*", 1.0), default=0.0)])
@pytest.mark.parametrize("mask", [None, od.decay_mask])
@pytest.mark.parametrize("alpha", [1e-3, 3e-2])
def test_adamc_is_two_chains(normalized, mask, alpha):
    """By hand: η² on what is normalized and decays, η on the rest that decays."""
    params, decay = _network(), 5e-3
    extra = {} if normalized is None else {"normalized": normalized}
    hidden = {"block_0/attn/kernel"} | ({"block_1/mlp/kernel"} if normalized is None else set())
    names = {"kernel", "embedding"} if mask else {"kernel", "embedding", "scale", "bias"}
    decaying = lambda path: path[-1] in names

    def chosen(inside):
        def mask(params):
            def one(keys, _):
                path = [k.key for k in keys]
                return decaying(path) and ("/".join(path) in hidden) == inside

            return jax.tree_util.tree_map_with_path(one, params)

        return mask

    by_hand = optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_schedule(lambda t: -alpha * ETA(t)),
        optax.masked(od.add_decoupled_weight_decay(decay, lambda t: ETA(t) ** 2), chosen(True)),
        optax.masked(od.add_decoupled_weight_decay(decay, ETA), chosen(False)),
    )
    ours = od.adamc(alpha, decay, schedule=ETA, mask=mask, **extra)
    ends = []
    for tx in (by_hand, ours, od.adamw(alpha, decay, schedule=ETA, mask=mask)):
        theta, state, update = params, tx.init(params), jax.jit(tx.update)
        for t in range(50):
            grads = jax.tree.map(lambda x, t=t: jnp.sin(x + t), theta)
            updates, state = update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
        ends.append(theta)
    chex.assert_trees_all_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), ends[1], ends[2])
    flat, _ = jax.tree_util.tree_flatten_with_path(difference)
    moved = {"/".join(k.key for k in keys) for keys, x in flat if x > 1e-3}
    assert moved == hidden


def test_adamc_keeps_the_gradient_to_weight_ratio_at_the_end_of_a_cosine():
    """A scale-invariant weight under noise: its gradient is that of unit length over ‖θ‖."""
    steps, alpha, decay = 4000, 3e-3, 1e-2 - 1e-6
    eta = optax.cosine_decay_schedule(1.0, steps)
    start = jax.random.normal(jax.random.key(1), (256,))
    start *= 4 / jnp.linalg.norm(start)

    def gradient(params, t):
        g, unit = _noise(params, t), params / jnp.linalg.norm(params)
        return (g - unit * jnp.vdot(unit, g)) / jnp.linalg.norm(params)

    def growth(tx):
        """Of the ratio ‖g‖/‖θ‖ ~ 1/‖θ‖², from the middle of the run to its end."""
        norms = np.linalg.norm(np.asarray(_run(tx, start, gradient, steps)), axis=1)
        return (norms[steps // 2] / norms[-1]) ** 2

    everything = dict(schedule=eta, mask=None)
    corrected = growth(od.adamc(alpha, decay, normalized=True, **everything))
    assert corrected < 1.6
    assert growth(od.adamw(alpha, decay, **everything)) > 2 * corrected
