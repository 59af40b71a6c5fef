"""Where weights settle: the formulas against simulations by this package's optimizers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

pytestmark = pytest.mark.usefixtures("optimized")  # they train

# On random gradients, from 1.3 times the predicted rms.
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
    assert abs(growth) * predicted.relaxation < 0.01  # neither grows nor shrinks


quiet = pytest.mark.filterwarnings("ignore:weight_decay:UserWarning")  # c = 0.01 on purpose


@quiet
@pytest.mark.parametrize(
    ("alpha", "c", "b1", "rms", "rotation"),
    [
        (1e-3, 1e-3, 0.9, 0.02226, 0.010262),
        (1e-2, 1e-3, 0.9, 0.2226, 0.010262),
        (1e-3, 1e-2, 0.9, 0.006774, 0.032523),
        (1e-3, 1e-3, 0.0, 0.022366, 0.044725),
    ],
)
def test_adamw_settles_where_predicted(alpha, c, b1, rms, rotation):
    predicted = od.equilibrium.adamw(alpha, c, b1)
    np.testing.assert_allclose(predicted[:2], [rms, rotation], rtol=1e-4)
    assert_settles(od.adamw(alpha, c, b1=b1), predicted, 0.02)


@pytest.mark.parametrize("c", [1e-6, 1e-2, 0.3])
@pytest.mark.parametrize("predict", [od.equilibrium.adamw, od.equilibrium.lion])
def test_without_momentum_the_rotation_is_the_angle_whose_cosine_is_1_minus_c(predict, c):
    """Updates of no memory are orthogonal to the weight; the sine is 10 % off for c = 0.3."""
    no_memory = {"b1": 0.0} if predict is od.equilibrium.adamw else {"b1": 0.0, "b2": 0.0}
    rotation = predict(1.0, c, **no_memory).rotation
    assert rotation == pytest.approx(np.arctan2(np.sqrt(c * (2 - c)), 1 - c), rel=1e-12)
    traced = jax.jit(lambda c: predict(1.0, c, **no_memory).rotation)(c)
    assert traced == pytest.approx(rotation, rel=1e-6)


def test_lion_settles_where_predicted():
    tx = od.decouple(optax.lion(1e-3, b1=0.9, b2=0.99, weight_decay=0.0), 1e-3)
    assert_settles(tx, od.equilibrium.lion(1e-3, 1e-3), 0.015)


def _simulated_lion(c, b1, b2, size):
    """Rms and rotation under Gaussian gradients at rate 1, from the equations, in NumPy."""
    rng = np.random.default_rng(0)
    theta, m = np.zeros(size), np.zeros(size)
    squares, turns = [], []
    settled = int(4 / c + 5 / (1 - b2))
    for t in range(settled + max(1000, int(1 / c))):
        g = rng.standard_normal(size, np.float32)
        new = (1 - c) * theta - np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        if t >= settled and t % 10 == 0:
            cosine = theta @ new / np.sqrt((theta @ theta) * (new @ new))
            squares.append(theta @ theta / size)
            turns.append(np.arccos(cosine))
        theta = new
    return np.sqrt(np.mean(squares)), np.mean(turns)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.95, 0.98), (0.9, 0.999)])
@pytest.mark.parametrize("c", [pytest.param(1e-4, marks=pytest.mark.slow), 1e-3, 1e-2, 3e-2])
def test_the_equilibrium_of_lion_is_within_2_percent_of_a_simulation(c, b1, b2):
    there = od.equilibrium.lion(1.0, c, b1, b2)
    rms, rotation = _simulated_lion(c, b1, b2, 10_000)
    assert there.rms == pytest.approx(rms, rel=0.02)
    assert there.rotation == pytest.approx(rotation, rel=0.02)


def test_the_linear_part_of_the_sign_alone_would_be_30_percent_off():
    c, b1, b2 = 1e-2, 0.9, 0.99
    k = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    assert od.equilibrium.lion(1.0, c, b1, b2).rms * np.sqrt(np.pi * c * k) < 0.8


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.95, 0.98), (0.0, 0.9)])
def test_the_equilibrium_of_lion_sums_the_arcsine_law(b1, b2):
    """The sum over signs, term by term, from the weights of the gradients in the momentum."""
    c, lags = 1e-3, np.arange(20_000)
    weights = np.array([1 - b1, *(b1 * (1 - b2) * b2 ** np.arange(5_000))])
    R = np.array([weights[: len(weights) - k] @ weights[k:] for k in range(4_000)])
    signs = 2 / np.pi * np.arcsin(R / R[0])
    S = np.sum((1 - c) ** lags[1:4_000] * signs[1:])
    expected = np.sqrt((1 + 2 * S) / (1 - (1 - c) ** 2))
    assert od.equilibrium.lion(1.0, c, b1, b2).rms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("alpha", "momentum"), [(0.1, 0.9), (0.5, 0.9), (0.1, 0.0)])
def test_sgdw_settles_where_predicted(alpha, momentum):
    predicted = od.equilibrium.sgdw(alpha, 1e-3, momentum, size=SIZE)
    assert_settles(od.sgdw(alpha, 1e-3, momentum=momentum), predicted, 0.01, scale_invariant)


@pytest.mark.parametrize(("alpha", "momentum"), [(0.1, 0.9), (0.1, 0.0)])
def test_sgd_with_l2_settles_where_predicted(alpha, momentum):
    l2 = 1e-3 * (1 - momentum) / alpha
    predicted = od.equilibrium.sgd_l2(alpha, l2, momentum, size=SIZE)
    decoupled = od.equilibrium.sgdw(alpha, 1e-3, momentum, size=SIZE)
    np.testing.assert_allclose(predicted, decoupled, rtol=1e-12)
    assert_settles(od.sgd_l2(alpha, l2, momentum=momentum), predicted, 0.01, scale_invariant)


def test_a_larger_gradient_is_a_larger_weight_of_the_same_rotation():
    one, four = (od.equilibrium.sgdw(0.1, 1e-3, gradient_norm=g) for g in (1.0, 4.0))
    assert four.rotation == one.rotation
    assert four.rms == pytest.approx(2 * one.rms)


@pytest.mark.parametrize(
    ("predict", "optimizer"),
    [
        (od.equilibrium.adamw, od.adamw),
        (od.equilibrium.lion, optax.lion),
        (od.equilibrium.sgdw, od.sgdw),
        (od.equilibrium.sgd_l2, od.sgd_l2),
    ],
)
def test_the_default_momentum_is_that_of_the_optimizer(predict, optimizer):
    defaults = inspect.signature(optimizer).parameters
    shared = inspect.signature(predict).parameters.keys() & {"b1", "b2", "momentum"}
    given = {name: defaults[name].default for name in shared}
    assert given
    assert predict(0.1, 1e-3) == predict(0.1, 1e-3, **given)
    assert predict(0.1, 1e-3) != predict(0.1, 1e-3, **dict.fromkeys(given, 0.8))


@pytest.mark.parametrize(
    ("tx", "predicted", "gradient"),
    [
        (od.adamw(1e-3, 1e-3), od.equilibrium.adamw(1e-3, 1e-3), plain),
        (
            od.sgdw(0.1, 1e-3, momentum=0.0),
            od.equilibrium.sgdw(0.1, 1e-3, 0.0, size=SIZE),
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
    start = od.equilibrium.adamw(1e-3, 1e-3).rms
    predicted = od.equilibrium.rms_over_run(1e-3, 1e-3, cosine, STEPS, 2 * start)
    measured = simulate(od.adamw(1e-3, 1e-3, schedule=cosine), STEPS, 2 * start).rms
    assert predicted.shape == (STEPS + 1,)
    np.testing.assert_allclose(measured, predicted[:-1], rtol=0.05)
    eta = float(cosine(STEPS - 100))
    momentary = od.equilibrium.adamw(1e-3 * eta, 1e-3 * eta).rms
    assert predicted[-100] > 10 * momentary


def test_corrected_decay_keeps_the_rms():
    squared = lambda t: cosine(t) ** 2
    start = od.equilibrium.adamw(1e-3, 1e-3).rms
    predicted = od.equilibrium.rms_over_run(1e-3, 1e-3, cosine, STEPS, start, squared)
    tx = od.adamw(1e-3, 1e-3, schedule=cosine, decay_schedule=squared)
    measured = simulate(tx, STEPS, start).rms
    np.testing.assert_allclose(predicted, start, rtol=0.01)
    np.testing.assert_allclose(measured, start, rtol=0.05)
    paper = od.equilibrium.rms_over_run(1e-3, 1e-3, cosine, STEPS, start)
    assert paper[-1] < 0.6 * start  # the paper's decay lets it fall


def test_the_recursion_over_a_run_is_its_own_closed_form():
    c, alpha, steps = 2e-3, 1e-3, 5000
    rms = od.equilibrium.rms_over_run(alpha, c, None, steps, 0.5)
    keep = (1 - c) ** 2
    t = np.arange(steps + 1)
    squares = 0.25 * keep**t + alpha**2 * (1 - keep**t) / (1 - keep)
    np.testing.assert_allclose(rms**2, squares, rtol=1e-10)
    split = od.equilibrium.rms_over_run(lambda t: alpha, lambda t: c, 1.0, steps, 0.5)
    np.testing.assert_allclose(split, rms, rtol=1e-4)


@quiet
@pytest.mark.parametrize(("c", "b1", "share"), [(1e-3, 0.0, 0.484), (1e-2, 0.9, 0.32)])
def test_cautious_decay_acts_like_half_of_it_and_less_with_momentum(c, b1, share):
    tx = od.adamw(1e-3, c, b1=b1, cautious=True)
    there = settled(tx, od.equilibrium.adamw(1e-3, share * c, b1))
    np.testing.assert_allclose(there[0], od.equilibrium.adamw(1e-3, share * c, b1).rms, rtol=0.02)
    assert not np.isclose(there[0], od.equilibrium.adamw(1e-3, c, b1).rms, rtol=0.3)


def test_equilibria_of_arrays_and_tracers():
    rates = jnp.array([1e-3, 1e-2])
    there = jax.jit(jax.vmap(lambda a: od.equilibrium.adamw(a, 1e-3)))(rates)
    expected = [od.equilibrium.adamw(a, 1e-3).rms for a in (1e-3, 1e-2)]
    np.testing.assert_allclose(there.rms, expected, rtol=1e-5)
    assert type(od.equilibrium.lion(1e-4, 1e-3).rms) is float


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: od.equilibrium.adamw(1e-3, 0.0), "weight_decay=0.0"),
        (lambda: od.equilibrium.adamw(0.0, 1e-3), "learning_rate=0.0"),
        (lambda: od.equilibrium.adamw(1e-3, 1e-3, 1.0), "b1=1.0"),
        (lambda: od.equilibrium.lion(1e-3, 1e-3, b2=1.0), "b2=1.0"),
        (lambda: od.equilibrium.sgdw(0.1, 1.0), "weight_decay=1.0"),
        (lambda: od.equilibrium.sgdw(0.1, 1e-3, gradient_norm=0.0), "gradient_norm=0.0"),
        (lambda: od.equilibrium.sgdw(0.1, 1e-3, size=0), "size=0"),
        (lambda: od.equilibrium.sgd_l2(0.1, 0.0), "l2=0.0"),
        (lambda: od.equilibrium.rms_over_run(1e-3, 1e-3, None, 0, 1.0), "steps=0"),
        (lambda: od.equilibrium.rms_over_run(1e-3, 1e-3, None, 10, -1.0), "initial_rms=-1.0"),
        (
            lambda: od.equilibrium.rms_over_run(1e-3, 1e-3, jnp.ones(2), 10, 1.0),
            "schedule has shape",
        ),
        (lambda: od.equilibrium.rms_over_run(1e-3, 1e-3, lambda t: jnp.ones(2), 10, 1.0), "shape"),
    ],
)
def test_refuses(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()
