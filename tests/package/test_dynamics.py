"""weight_dynamics against NumPy, on any leaf and any device; the equilibria against simulations."""

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
        od.weight_dynamics(theta, factor * theta).rotation, rotation, atol=1e-6
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
    one = od.weight_dynamics(layers, moves, stacked=1).growth["scanned"]
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
        (lambda: od.weight_dynamics({"w": jnp.ones(3)}, {"v": jnp.ones(3)}), "w|v"),
        (lambda: od.weight_dynamics(jnp.ones(3), jnp.ones(3), stacked=2), "stacked=2"),
        (lambda: od.weight_dynamics(jnp.ones(3), jnp.ones(3), stacked=-1), "stacked=-1"),
        (lambda: od.weight_dynamics([jnp.ones(3)], [jnp.ones(3)], stacked=[0.5]), "stacked=0.5"),
        (lambda: od.weight_dynamics([jnp.ones(3)], [jnp.ones(3)], stacked={"x": 1}), "stacked is"),
        (lambda: od.equilibrium_adamw(1e-3, 0.0), "weight_decay=0.0"),
        (lambda: od.equilibrium_adamw(0.0, 1e-3), "learning_rate=0.0"),
        (lambda: od.equilibrium_adamw(1e-3, 1e-3, 1.0), "b1=1.0"),
        (lambda: od.equilibrium_lion(1e-3, 1e-3, b2=1.0), "b2=1.0"),
        (lambda: od.equilibrium_sgdw(0.1, 1.0), "weight_decay=1.0"),
        (lambda: od.equilibrium_sgdw(0.1, 1e-3, gradient_norm=0.0), "gradient_norm=0.0"),
        (lambda: od.equilibrium_sgdw(0.1, 1e-3, size=0), "size=0"),
        (lambda: od.equilibrium_sgd_l2(0.1, 0.0), "l2=0.0"),
        (lambda: od.rms_over_run(1e-3, 1e-3, None, 0, 1.0), "steps=0"),
        (lambda: od.rms_over_run(1e-3, 1e-3, None, 10, -1.0), "initial_rms=-1.0"),
        (lambda: od.rms_over_run(1e-3, 1e-3, jnp.ones(2), 10, 1.0), "schedule has shape"),
        (lambda: od.rms_over_run(1e-3, 1e-3, lambda t: jnp.ones(2), 10, 1.0), "shape"),
    ],
)
def test_refuses(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()


# Simulations: this package's optimizers on random gradients, from 1.3 times the predicted rms.

SIZE = 3000


def plain(theta, noise):
    """Gradients that know nothing of the weights."""
    return noise


def scale_invariant(theta, noise):
    """The gradient of a loss that does not see ‖θ‖: orthogonal to θ, of norm 1/‖θ‖."""
    square = theta @ theta
    across = noise - theta * (theta @ noise) / square
    return across / jnp.linalg.norm(across) / jnp.sqrt(square)


def simulate(tx, steps, initial_rms, gradient=plain):
    """The dynamics of every step, and the rms at the end."""

    def step(carry, key):
        theta, state = carry
        grads = gradient(theta, jax.random.normal(key, (SIZE,)))
        updates, state = tx.update(grads, state, theta)
        measured = od.weight_dynamics(theta, updates)
        return (optax.apply_updates(theta, updates), state), measured

    theta = jax.random.normal(jax.random.key(1), (SIZE,))
    theta *= initial_rms / jnp.sqrt(jnp.mean(theta**2))
    keys = jax.random.split(jax.random.key(0), steps)
    return jax.jit(lambda: jax.lax.scan(step, (theta, tx.init(theta)), keys)[1])()


def settled(tx, predicted, gradient=plain):
    """rms, rotation and growth after four relaxation times, averaged over as many more."""
    after = int(4 * predicted.relaxation)
    measured = simulate(tx, 3 * after, 1.3 * predicted.rms, gradient)
    return [float(np.sqrt(np.mean(np.square(measured.rms[after:]))))] + [
        float(np.mean(x[after:])) for x in measured[1:]
    ]


def assert_settles(tx, predicted, tolerance, gradient=plain):
    rms, rotation, growth = settled(tx, predicted, gradient)
    np.testing.assert_allclose([rms, rotation], predicted[:2], rtol=tolerance)
    assert abs(growth) < 0.02 * rotation**2 + 0.1 / predicted.relaxation / 12


quiet = pytest.mark.filterwarnings("ignore:weight_decay:UserWarning")  # c = 0.01 on purpose


@quiet
@pytest.mark.parametrize(
    ("alpha", "c", "b1", "rms", "rotation"),
    [
        (1e-3, 1e-3, 0.9, 0.02226, 0.010262),
        (1e-2, 1e-3, 0.9, 0.2226, 0.010262),
        (1e-3, 1e-2, 0.9, 0.006774, 0.032517),
        (1e-3, 1e-3, 0.0, 0.022366, 0.044710),
    ],
)
def test_adamw_settles_where_predicted(alpha, c, b1, rms, rotation):
    predicted = od.equilibrium_adamw(alpha, c, b1)
    np.testing.assert_allclose(predicted[:2], [rms, rotation], rtol=1e-4)
    assert_settles(od.adamw(alpha, c, b1=b1), predicted, 0.02)


def test_lion_settles_where_predicted():
    tx = od.decouple(optax.lion(1e-3, b1=0.9, b2=0.99, weight_decay=0.0), 1e-3)
    assert_settles(tx, od.equilibrium_lion(1e-3, 1e-3), 0.04)


@pytest.mark.parametrize(("alpha", "momentum"), [(0.1, 0.9), (0.5, 0.9), (0.1, 0.0)])
def test_sgdw_settles_where_predicted(alpha, momentum):
    predicted = od.equilibrium_sgdw(alpha, 1e-3, momentum, size=SIZE)
    assert_settles(od.sgdw(alpha, 1e-3, momentum=momentum), predicted, 0.01, scale_invariant)


@pytest.mark.parametrize(("alpha", "momentum"), [(0.1, 0.9), (0.1, 0.0)])
def test_sgd_with_l2_settles_where_predicted(alpha, momentum):
    l2 = 1e-3 * (1 - momentum) / alpha
    predicted = od.equilibrium_sgd_l2(alpha, l2, momentum, size=SIZE)
    decoupled = od.equilibrium_sgdw(alpha, 1e-3, momentum, size=SIZE)
    np.testing.assert_allclose(predicted, decoupled, rtol=1e-12)
    assert_settles(od.sgd_l2(alpha, l2, momentum=momentum), predicted, 0.01, scale_invariant)


def test_a_larger_gradient_is_a_larger_weight_of_the_same_rotation():
    one, four = (od.equilibrium_sgdw(0.1, 1e-3, gradient_norm=g) for g in (1.0, 4.0))
    assert four.rotation == one.rotation
    assert four.rms == pytest.approx(2 * one.rms)


@pytest.mark.parametrize(
    ("tx", "predicted", "gradient"),
    [
        (od.adamw(1e-3, 1e-3), od.equilibrium_adamw(1e-3, 1e-3), plain),
        (
            od.sgdw(0.1, 1e-3, momentum=0.0),
            od.equilibrium_sgdw(0.1, 1e-3, 0.0, size=SIZE),
            scale_invariant,
        ),
    ],
    ids=["adamw", "sgdw"],
)
def test_the_distance_falls_to_a_third_in_one_relaxation(tx, predicted, gradient):
    """And not in half or twice the time: SGDW is twice as fast as AdamW at the same decay."""
    steps = int(predicted.relaxation)
    rms = simulate(tx, steps + 1, 1.2 * predicted.rms, gradient).rms
    squares = np.asarray(rms, float) ** 2 / predicted.rms**2
    if gradient is scale_invariant:
        squares **= 2  # there the fourth power relaxes exponentially
    assert (squares[-1] - 1) / (squares[0] - 1) == pytest.approx(np.exp(-1), rel=0.15)


STEPS = 10_000
cosine = optax.cosine_decay_schedule(1.0, STEPS)


def test_the_rms_over_a_cosine_where_the_equilibrium_of_the_moment_fails():
    start = od.equilibrium_adamw(1e-3, 1e-3).rms
    predicted = od.rms_over_run(1e-3, 1e-3, cosine, STEPS, 2 * start)
    measured = simulate(od.adamw(1e-3, 1e-3, schedule=cosine), STEPS, 2 * start).rms
    assert predicted.shape == (STEPS + 1,)
    np.testing.assert_allclose(measured, predicted[:-1], rtol=0.05)
    eta = float(cosine(STEPS - 100))
    momentary = od.equilibrium_adamw(1e-3 * eta, 1e-3 * eta).rms
    assert predicted[-100] > 10 * momentary


def test_corrected_decay_keeps_the_rms():
    squared = lambda t: cosine(t) ** 2
    start = od.equilibrium_adamw(1e-3, 1e-3).rms
    predicted = od.rms_over_run(1e-3, 1e-3, cosine, STEPS, start, squared)
    tx = od.adamw(1e-3, 1e-3, schedule=cosine, decay_schedule=squared)
    measured = simulate(tx, STEPS, start).rms
    np.testing.assert_allclose(predicted, start, rtol=0.01)
    np.testing.assert_allclose(measured, start, rtol=0.05)
    paper = od.rms_over_run(1e-3, 1e-3, cosine, STEPS, start)
    assert paper[-1] < 0.6 * start  # the paper's decay lets it fall


def test_the_recursion_over_a_run_is_its_own_closed_form():
    c, alpha, steps = 2e-3, 1e-3, 5000
    rms = od.rms_over_run(alpha, c, None, steps, 0.5)
    keep = (1 - c) ** 2
    t = np.arange(steps + 1)
    squares = 0.25 * keep**t + alpha**2 * (1 - keep**t) / (1 - keep)
    np.testing.assert_allclose(rms**2, squares, rtol=1e-10)
    split = od.rms_over_run(lambda t: alpha, lambda t: c, 1.0, steps, 0.5)
    np.testing.assert_allclose(split, rms, rtol=1e-4)


@quiet
@pytest.mark.parametrize(("c", "b1", "share"), [(1e-3, 0.0, 0.484), (1e-2, 0.9, 0.32)])
def test_cautious_decay_acts_like_half_of_it_and_less_with_momentum(c, b1, share):
    tx = od.adamw(1e-3, c, b1=b1, cautious=True)
    there = settled(tx, od.equilibrium_adamw(1e-3, share * c, b1))
    np.testing.assert_allclose(there[0], od.equilibrium_adamw(1e-3, share * c, b1).rms, rtol=0.02)
    assert not np.isclose(there[0], od.equilibrium_adamw(1e-3, c, b1).rms, rtol=0.3)


def test_equilibria_of_arrays_and_tracers():
    rates = jnp.array([1e-3, 1e-2])
    there = jax.jit(jax.vmap(lambda a: od.equilibrium_adamw(a, 1e-3)))(rates)
    expected = [od.equilibrium_adamw(a, 1e-3).rms for a in (1e-3, 1e-2)]
    np.testing.assert_allclose(there.rms, expected, rtol=1e-5)
    assert type(od.equilibrium_lion(1e-4, 1e-3).rms) is float
