"""What Optax asks of every optimizer, and what users wrap them in; one suite for all cases."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from jax import export

import optax_decoupled as od

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def strict_modes(request):
    """Runs the suite in JAX's strict modes; `test_modes_of_jax.py` has them one by one.

    Exceptions: Optax's own Adam and MultiSteps mix dtypes; one test makes NaNs on purpose;
    and JAX donates no buffers while it looks for NaNs. JAX's checks of its own programs take a
    quarter of the time, so the slow cases alone have them.
    """
    test = request.node.originalname or request.node.name
    case = getattr(request.node, "callspec", None) and request.node.callspec.params.get("case")
    is_strict = "accumulation" not in test and (case is None or case.strict)
    with (
        jax.numpy_dtype_promotion("strict" if is_strict else "standard"),
        jax.numpy_rank_promotion("raise"),
        jax.enable_checks(request.node.get_closest_marker("slow") is not None),
        jax.debug_nans("broken_gradient" not in test and "donation" not in test),
    ):
        yield


def _parabola(dtype):
    target = jnp.array([1.0, -1.0, 1.0], dtype) * (1 + 1j if jnp.iscomplexobj(dtype) else 1)
    return jnp.array([-1.0, 10.0, 1.0], dtype), target, _distance(target)


def _matrix(dtype):
    target = jnp.array([[3.0, -2.0], [1.0, 4.0]], dtype)
    return jnp.zeros((2, 2), dtype), target, _distance(target)


def _mixed(dtype):
    target = (jnp.array([1.0, -1.0, 2.0], dtype), jnp.array([[1.0, 0.0], [-1.0, 1.0]], dtype))
    return jax.tree.map(jnp.zeros_like, target), target, _distance(target)


def _rosenbrock(dtype):
    a = 1 + 1j if jnp.iscomplexobj(jnp.zeros(0, dtype)) else 1.0

    def objective(x):
        return abs_squared(a - x[0]) + 100 * abs_squared(x[1] - x[0] ** 2)

    return jnp.zeros(2, dtype), jnp.array([a, a**2], dtype), objective


def abs_squared(x):
    return jnp.real(x) ** 2 + jnp.imag(x) ** 2


def _distance(target):
    def objective(params):
        squares = jax.tree.map(lambda p, t: jnp.sum(abs_squared(p - t)), params, target)
        return sum(jax.tree.leaves(squares))

    return objective


PROBLEMS = {"parabola": _parabola, "matrix": _matrix, "mixed": _mixed, "rosenbrock": _rosenbrock}


def _step(tx, objective):
    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(jnp.conj, jax.grad(objective)(params))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return step


@every_case
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.complex64, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_convergence(case, problem, dtype):
    params, target, objective = PROBLEMS[problem](dtype)
    tx = case.make()
    run = jax.jit(lambda c: jax.lax.scan(_step(tx, objective), c, length=15_500)[0])
    found, _ = run((params, tx.init(params)))
    chex.assert_trees_all_close(found, target, rtol=3e-2, atol=3e-2)


PARAMS = {"kernel": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "bias": jnp.full(3, 0.5, jnp.float32)}
GRADS = jax.tree.map(jnp.cos, PARAMS)


def _cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@every_case
def test_extra_arguments_are_ignored(case):
    tx = case.make()
    updates, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS, unexpected=1)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)


@every_case
def test_second_call_does_not_recompile(case):
    tx = case.make()
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = step(GRADS, state, PARAMS)


@every_case
def test_map_params(case):
    tx = case.make()
    state = tx.init(PARAMS)
    marked = optax.tree.map_params(tx, lambda _: "param", state, transform_non_params=lambda _: 0)
    names = [leaf for leaf in jax.tree.leaves(marked) if leaf == "param"]
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.shape != ()]
    assert len(names) == len(arrays) > 0


@every_case
def test_inject_hyperparams(case):
    injected = optax.inject_hyperparams(case.factory, static_args=case.static_args)(**case.kwargs)
    plain = case.make()
    updates, _ = jax.jit(injected.update)(GRADS, injected.init(PARAMS), PARAMS)
    expected, _ = jax.jit(plain.update)(GRADS, plain.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3)


DTYPES = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@every_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_shapes_are_stable(case, dtype):
    """Updates have the gradients' dtype, the state keeps its own: lax.cond would refuse else."""
    with jax.enable_x64(dtype in ("float64", "complex128")):
        params, grads = _cast(PARAMS, dtype), _cast(GRADS, dtype)
        tx = case.make()
        state = tx.init(params)

        def maybe(flag, state):
            return jax.lax.cond(
                flag, lambda: tx.update(grads, state, params), lambda: (grads, state)
            )

        updates, new_state = jax.eval_shape(maybe, True, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("promotion", ["strict", "standard"])
def test_a_first_step_is_finite(promotion, dtype):
    """All optimizers are one program, which compiles faster. JAX raises where a NaN appears."""
    cases = [case for case in CASES.values() if case.strict == (promotion == "strict")]
    assert cases
    with (
        jax.enable_x64(dtype in ("float64", "complex128")),
        jax.numpy_dtype_promotion(promotion),
    ):
        params, grads = _cast(PARAMS, dtype), _cast(GRADS, dtype)

        @jax.jit
        def first_updates(grads, params):
            optimizers = [case.make() for case in cases]
            return [tx.update(grads, tx.init(params), params)[0] for tx in optimizers]

        for case, updates in zip(cases, first_updates(grads, params), strict=True):
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
            for update in jax.tree.leaves(updates):
                assert np.isfinite(update.astype(complex)).all(), case
                assert np.abs(update.astype(complex)).max() > 1e-6, case


@every_case
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_are_stable_with_float32_hyperparameters(case, dtype):
    """As under vmap over hyperparameters, or from a schedule."""
    params = _cast(PARAMS, dtype)
    numbers = {k: v for k, v in case.kwargs.items() if isinstance(v, float)}

    @jax.jit
    def two_steps(hyperparameters):
        tx = case.make(**hyperparameters)

        def step(state, _):
            updates, state = tx.update(params, state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), length=2)

    _, updates = two_steps(jax.tree.map(jnp.float32, numbers))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@every_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradient_accumulation_takes_the_step_of_the_mean_gradient(case, dtype):
    params, grads = _cast(PARAMS, dtype), _cast(GRADS, dtype)
    make = functools.partial(case.make, **{case.decay: 5e-3})
    accumulating = optax.MultiSteps(make(), 4)
    state = accumulating.init(params)
    update = jax.jit(accumulating.update)
    updates = None
    for i in range(4):
        scaled = jax.tree.map(lambda g, i=i: g * (0.25 + 0.5 * i), grads)  # mean 1
        updates, state = update(scaled, state, params)
        if i < 3:
            chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    expected, _ = jax.jit(make().update)(grads, make().init(params), params)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    chex.assert_trees_all_close(updates, expected, rtol=tolerance, atol=tolerance * 1e-2)
    assert int(state.gradient_step) == 1


@every_case
def test_masked_and_partition(case):
    frozen = {"kernel": "train", "bias": "freeze"}
    make = functools.partial(case.make, **{case.decay: 5e-3})
    labelled = optax.partition({"train": make(), "freeze": optax.set_to_zero()}, frozen)
    masked = optax.masked(make(), {"kernel": True, "bias": False})
    kernel = {"kernel": PARAMS["kernel"]}
    grads = {"kernel": GRADS["kernel"]}
    expected, _ = jax.jit(make().update)(grads, make().init(kernel), kernel)
    for tx, bias in ((labelled, jnp.zeros(3)), (masked, GRADS["bias"])):
        updates, _ = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
        chex.assert_trees_all_close(updates, {**expected, "bias": bias}, rtol=1e-6)


@every_case
def test_apply_if_finite_skips_a_broken_gradient(case):
    make = functools.partial(case.make, **{case.decay: 5e-3})
    tx = optax.apply_if_finite(make(), max_consecutive_errors=3)
    state = tx.init(PARAMS)
    broken = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    updates, skipped = jax.jit(tx.update)(broken, state, PARAMS)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    chex.assert_trees_all_equal(skipped.inner_state, state.inner_state)
    updates, _ = jax.jit(tx.update)(GRADS, skipped, PARAMS)
    expected, _ = jax.jit(make().update)(GRADS, make().init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


@every_case
def test_donation_of_params_and_a_fresh_state(case):
    """No two leaves of a fresh state may share a buffer, nor with the parameters."""
    tx = case.make()
    step = jax.jit(
        lambda params, state: _step(tx, _distance(PARAMS))((params, state), None)[0],
        donate_argnums=(0, 1),
    )
    for init in (tx.init, jax.jit(tx.init)):
        params = jax.tree.map(jnp.copy, PARAMS)
        state = init(params)
        donated = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.shape != ()]
        params, state = step(params, state)
        assert all(leaf.is_deleted() for leaf in donated)
        step(params, state)


@every_case
def test_decay_with_x64_and_float32_params_stays_float32(case):
    with jax.enable_x64(True):
        params = _cast(PARAMS, jnp.float32)
        tx = case.make(**{case.decay: 5e-3})
        start = jax.jit(tx.init)(params)
        updates, state = jax.jit(tx.update)(params, start, params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
        chex.assert_trees_all_equal_shapes_and_dtypes(state, start)


@every_case
def test_zero_gradients_decay_or_not(case):
    """Decoupled: θ(1 − c), the same fraction everywhere. Coupled: not a fraction of θ."""
    tx = case.make(**{case.decay: 5e-3})
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    start = jax.tree.map(lambda p: p / 2, PARAMS)
    update = jax.jit(tx.update)
    updates, state = update(zeros, tx.init(start), PARAMS)
    removed = -np.asarray(updates["kernel"]) / np.asarray(PARAMS["kernel"])
    spread = np.ptp(removed) / np.max(np.abs(removed))
    assert np.all(removed > 0)
    # Without momentum's memory, the first step of SGD with L2 is a decay (Proposition 1).
    assert (spread > 1e-2) == case.preconditioned
    second, _ = update(zeros, state, start if case.pulled else zeros)
    remembered = np.max(np.abs(second["kernel"]))
    assert (remembered == 0.0) == case.decoupled


@every_case
def test_the_step_lowers_for_tpu_and_cuda(case):
    tx = case.make(**{case.decay: 5e-3})
    state = tx.init(PARAMS)
    platforms = ("tpu", "cuda", "cpu")
    exported = export.export(jax.jit(tx.update), platforms=platforms)(GRADS, state, PARAMS)
    assert exported.platforms == platforms
    expected, _ = tx.update(GRADS, state, PARAMS)
    updates, _ = exported.call(GRADS, state, PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_vmap_over_rates_and_decays_at_once():
    def loss_after(rate, decay):
        tx = od.adamw(rate, decay)
        run = lambda c: jax.lax.scan(_step(tx, _distance(PARAMS)), c, length=20)[0]
        zeros = jax.tree.map(jnp.zeros_like, PARAMS)
        return _distance(PARAMS)(run((zeros, tx.init(zeros)))[0])

    rates, decays = jnp.array([0.01, 0.03]), jnp.array([0.0, 0.001, 0.009])
    grid = jax.jit(jax.vmap(jax.vmap(loss_after, (None, 0)), (0, None)))(rates, decays)
    assert grid.shape == (2, 3)
    assert len(np.unique(np.asarray(grid))) == 6
    np.testing.assert_allclose(grid[1, 2], loss_after(0.03, jnp.float32(0.009)), rtol=1e-4)
