"""Parameters of fewer than 32 bits: moments that move, decay that is not rounded away."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_decoupled as od

NARROW = [jnp.bfloat16, jnp.float16]
add_rounding = jax.jit(od.apply_updates_with_stochastic_rounding)


def _constant_gradients(tx, dtype):
    """State and update after 200 gradients of 1 and 8,000 of 0.01."""

    def step(g):
        def body(carry, _):
            state, _ = carry
            update, state = tx.update(g, state, g)
            return (state, update), None

        return body

    big, small = jnp.ones(3, dtype), jnp.full(3, 0.01, dtype)
    run = lambda g, carry, n: jax.lax.scan(step(g), carry, length=n)[0]
    return jax.jit(lambda c: run(small, run(big, c, 200), 8000))((tx.init(big), big))


@pytest.mark.parametrize("mu_dtype", [None, jnp.float32, jnp.bfloat16])
def test_moments_of_bfloat16_gradients_follow_those_of_float32(mu_dtype):
    (state, update) = _constant_gradients(od.scale_by_adam(mu_dtype=mu_dtype), jnp.bfloat16)
    (expected, expected_update) = _constant_gradients(od.scale_by_adam(), jnp.float32)
    np.testing.assert_allclose(state.nu, expected.nu, rtol=0.02)
    np.testing.assert_allclose(np.float32(update), expected_update, rtol=0.02)
    assert state.mu.dtype == (mu_dtype or jnp.bfloat16)
    assert state.nu.dtype == jnp.float32
    assert update.dtype == jnp.bfloat16


def test_with_a_narrow_second_moment_they_do_not():
    """0.999 v rounds back to v in bfloat16, in Optax and here if it is asked for."""
    expected = _constant_gradients(od.scale_by_adam(), jnp.float32)[0].nu[0]
    for tx in (optax.scale_by_adam(), od.scale_by_adam(nu_dtype=jnp.bfloat16)):
        assert float(_constant_gradients(tx, jnp.bfloat16)[0].nu[0]) > 100 * float(expected)


def test_a_narrow_first_moment_is_the_mean_of_skewed_noise():
    """For the usual b1; the docstring says from where on it needs float32."""
    tx = od.scale_by_adam(b1=0.9)

    def mean_moment(dtype):
        def step(carry, key):
            state, total = carry
            grads = jax.random.exponential(key, (4096,)).astype(jnp.bfloat16).astype(dtype)
            _, state = tx.update(grads, state)
            return (state, total + state.mu.astype(jnp.float32)), None

        keys = jax.random.split(jax.random.key(0), 300)
        start = (tx.init(jnp.zeros(4096, dtype)), jnp.zeros(4096))
        (_, total), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))(start)
        return float(total.mean()) / 300

    assert mean_moment(jnp.bfloat16) == pytest.approx(mean_moment(jnp.float32), rel=2e-3)


def test_a_narrow_mu_of_float32_gradients_is_computed_in_float32():
    """Where Optax multiplies in bfloat16: the difference to float32 is smaller here."""
    grads = jnp.linspace(0.5, 1.5, 100)

    def update(tx):
        step = lambda state, t: tx.update(grads * (1 + 0.1 * t), state)[::-1]
        return jax.lax.scan(step, tx.init(grads), jnp.arange(20.0))[1][-1]

    exact = update(optax.scale_by_adam())
    ours, theirs = (
        float(jnp.abs(update(make(mu_dtype=jnp.bfloat16)) - exact).max())
        for make in (od.scale_by_adam, optax.scale_by_adam)
    )
    assert 0 < ours < theirs


def test_momentum_of_bfloat16_gradients_follows_that_of_float32():
    make = lambda: od.sgdw(0.1, 0.0, scale_before_momentum=False)
    state, update = _constant_gradients(make(), jnp.bfloat16)
    expected, expected_update = _constant_gradients(make(), jnp.float32)
    np.testing.assert_allclose(np.float32(state[0].trace), expected[0].trace, rtol=0.02)
    np.testing.assert_allclose(np.float32(update), expected_update, rtol=0.02)


@pytest.mark.parametrize(
    ("dtype", "least"), [(jnp.bfloat16, 1e-3), (jnp.float16, 1e-3), (jnp.float16, 1e-7)]
)
def test_a_narrow_first_moment_comes_to_rest_within_one_unit_in_the_last_place(dtype, least):
    """Also below float16's normal numbers, 6e-5."""
    targets = jnp.geomspace(least, 1e3 * least, 50, dtype=dtype)
    tx = od.scale_by_adam()

    def step(state, _):
        return tx.update(targets, state, targets)[1], None

    start = tx.init(targets)._replace(mu=2 * targets)
    mu = jax.jit(lambda s: jax.lax.scan(step, s, length=500)[0].mu)(start)
    np.testing.assert_array_equal(mu, targets)


@pytest.mark.usefixtures("optimized")  # a fused multiply-add does not flush a subnormal 0.1 g
@pytest.mark.parametrize("towards_zero", [True, False])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_lost_change_of_any_moment_is_the_step_to_its_neighbour(dtype, towards_zero):
    """Every number of the format and the gradient beside it: a tenth of a unit would be lost."""
    info = jnp.finfo(dtype)
    numbers = np.asarray(_all_values(dtype)).astype(np.float32)
    # XLA flushes the subnormal numbers of float32, and those of bfloat16 are among them.
    least = 0.0 if dtype == jnp.float16 else 2 * float(info.smallest_normal)
    usable = np.isfinite(numbers) & (abs(numbers) > least) & (abs(numbers) < float(info.max))
    moments = jnp.asarray(_all_values(dtype))[usable]
    bits = jax.lax.bitcast_convert_type(moments, jnp.uint16)
    beside = jax.lax.bitcast_convert_type(bits - 1 if towards_zero else bits + 1, dtype)
    tx = od.scale_by_adam()
    _, state = jax.jit(tx.update)(beside, tx.init(moments)._replace(mu=moments))
    np.testing.assert_array_equal(np.float32(state.mu), np.float32(beside))


@pytest.mark.parametrize("compiled", ["no", "quickly", "optimized"])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_first_moment_that_equals_the_gradient_stays(dtype, compiled, request):
    """In float32 0.9 m + 0.1 m may differ from m. The difference depends on what XLA fuses."""
    if compiled == "optimized":
        request.getfixturevalue("optimized")
    numbers = np.asarray(_all_values(dtype)).astype(np.float32)
    usable = np.isfinite(numbers) & (abs(numbers) > 1e-34)  # else 0.001 m is subnormal
    moments = jnp.asarray(_all_values(dtype))[usable]
    for b1 in (0.9, 0.99, 0.999):
        tx = od.scale_by_adam(b1)
        update = tx.update if compiled == "no" else jax.jit(tx.update)
        _, state = update(moments, tx.init(moments)._replace(mu=moments))
        np.testing.assert_array_equal(np.float32(state.mu), np.float32(moments))


@pytest.mark.parametrize("dtype", NARROW)
def test_a_narrow_first_moment_is_gone_some_time_after_the_gradients(dtype):
    """One that stays while the second moment goes makes steps of any size."""
    tx = od.scale_by_adam()

    def step(state, g):
        return tx.update(g, state, g)[1], None

    grads = jnp.concatenate([jnp.full(100, 1e-3, dtype), jnp.zeros(5000, dtype)])[:, None]
    state = jax.jit(lambda s: jax.lax.scan(step, s, grads)[0])(tx.init(grads[0]))
    assert float(state.nu[0]) > 0.0
    np.testing.assert_array_equal(state.mu, 0.0)


def test_the_largest_float16_moment_does_not_overflow():
    tx = od.sgdw(0.1, 0.0, scale_before_momentum=False)
    largest = jnp.full(2, 65504.0, jnp.float16)
    state = tx.init(largest)
    state = (state[0]._replace(trace=largest), *state[1:])
    grads = jnp.array([6560.0, -6560.0], jnp.float16)  # 0.9 · 65504 + 6560 is 65513.6
    _, after = jax.jit(tx.update)(grads, state, largest)
    assert np.isfinite(np.float32(after[0].trace)).all()
    assert after[0].trace[0] == 65504


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_decay_of_eight_bit_parameters(dtype):
    params = jnp.ones(3, dtype)
    tx = od.sgdw(0.1, 2.0**-8)
    updates, _ = jax.jit(tx.update)(jnp.zeros(3), tx.init(params), params)
    np.testing.assert_array_equal(updates, -(2.0**-8))


@pytest.mark.parametrize("dtype", NARROW)
def test_derivatives_through_a_step_are_those_of_float32(dtype):
    """Rounding on bits has the derivative of a cast."""

    def final(rate, dtype):
        params = jnp.linspace(0.5, 1.5, 4).astype(dtype)
        tx = od.sgdw(rate, 1e-3)
        state = tx.init(params)
        for step in range(5):
            updates, state = tx.update(params * params, state, params)
            key = jax.random.key(step)
            params = od.apply_updates_with_stochastic_rounding(params, updates, key)
        return params.astype(jnp.float32).sum()

    backward, forward = (jax.jit(d(final), static_argnums=1) for d in (jax.grad, jax.jacfwd))
    expected = backward(0.05, jnp.float32)
    assert abs(float(expected)) > 10
    np.testing.assert_allclose(backward(0.05, dtype), expected, rtol=0.02)
    np.testing.assert_allclose(forward(0.05, dtype), expected, rtol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_moment_dtypes_of_wider_parameters(dtype):
    tx = od.adamw(0.1, 1e-3, mu_dtype=dtype, nu_dtype=dtype)
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params)
    assert state[0].mu.dtype == state[0].nu.dtype == dtype


def test_the_first_moment_of_complex_parameters_has_a_complex_dtype():
    params = jnp.array([1.0 + 2.0j, -1.0j])
    _, state = (tx := od.scale_by_adam(mu_dtype=jnp.complex64)).update(params, tx.init(params))
    np.testing.assert_allclose(state.mu, 0.1 * params, rtol=1e-6)
    for dtype, kind, leaf in (
        (jnp.float32, "complex", params),
        (jnp.complex64, "real", params.real),
    ):
        with pytest.raises(ValueError, match=f"first moment of {kind} parameters.* must be {kind}"):
            od.scale_by_adam(mu_dtype=dtype).init(leaf)


def test_complex_second_moments_can_be_stored_as_real_numbers():
    params = jnp.array([1.0 + 2.0j, -1.0j])
    real, stock = od.scale_by_adam(nu_dtype=jnp.float32), optax.scale_by_adam()
    _, state = real.update(params, real.init(params))
    _, expected = stock.update(params, stock.init(params))
    updates, state = real.update(2 * params, state)
    expected_updates, _ = stock.update(2 * params, expected)
    np.testing.assert_allclose(updates, expected_updates, rtol=1e-6)
    assert state.nu.dtype == jnp.float32


def _decay(apply, dtype, steps, c=1e-4, shape=(4096,)):
    """Parameters after so many steps of decay alone; `apply(params, updates, key)`."""
    tx = od.decouple(optax.sgd(0.1), c)
    params = jnp.linspace(0.5, 2.0, shape[0]).astype(dtype)
    zeros = jnp.zeros_like(params)

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(zeros, state, params)
        return (apply(params, updates, key), state), None

    keys = jax.random.split(jax.random.key(0), steps)
    run = jax.jit(lambda c: jax.lax.scan(step, c, keys)[0][0])
    return params, run((params, tx.init(params)))


@pytest.mark.parametrize("dtype", NARROW)
def test_stochastic_rounding_keeps_the_decay(dtype):
    """(1 − c)^T in the mean, within 0.5 %, over 10,000 steps of c = 1e-4."""
    before, after = _decay(od.apply_updates_with_stochastic_rounding, dtype, 10_000)
    assert after.dtype == dtype
    ratio = float(jnp.mean(after.astype(jnp.float32)) / jnp.mean(before.astype(jnp.float32)))
    assert ratio == pytest.approx((1 - 1e-4) ** 10_000, rel=5e-3)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_first_moment_is_rounded_to_nearest_from_zero(dtype):
    """Halves of float32 numbers of every size, ties and subnormal numbers of float16 too."""
    rng = np.random.default_rng(0)
    sizes = 2.0 ** rng.uniform(-23, 14, 10_000) * rng.choice([-1, 1], 10_000)
    half = float(jnp.finfo(dtype).eps) / 2
    ties = 2 * (1 + np.arange(1, 1 / half, 2) * half)
    grads = jnp.asarray(np.concatenate([sizes, ties, -ties]), jnp.float32)
    tx = od.scale_by_adam(b1=0.5, mu_dtype=dtype)
    _, state = jax.jit(tx.update)(grads, tx.init(grads))
    expected = np.asarray(0.5 * grads).astype(dtype)
    assert (expected.astype(np.float32) != np.asarray(0.5 * grads)).mean() > 0.5
    np.testing.assert_array_equal(state.mu, expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_to_nearest_loses_it_altogether(dtype):
    nearest = lambda params, updates, key: optax.apply_updates(params, updates)
    before, after = _decay(nearest, dtype, 100)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [1.2345, -1.2345, 3.1e-5, -3.1e-7, 1234.56, 1.9999])
def test_stochastic_rounding_is_unbiased_and_takes_a_neighbour(dtype, value):
    n = 1 << 18
    exact = np.float32(value)
    updates = np.full(n, exact, np.float32)
    rounded = add_rounding(np.zeros(n, dtype), updates, jax.random.key(1))
    rounded = np.asarray(rounded, np.float64)
    # The two neighbours of the exact value among all the values of the format.
    below, above = _neighbours(exact, dtype)
    assert set(np.unique(rounded)) == {below, above}
    # The mean of n choices between them deviates by at most 5 standard errors.
    assert abs(rounded.mean() - exact) <= 5 * 0.5 * (above - below) / np.sqrt(n) + 1e-12


def _all_values(dtype):
    return jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), dtype)


def _neighbours(exact, dtype):
    values = _all_values(dtype)
    finite = np.float64(values[jnp.isfinite(values)].astype(jnp.float32))
    return finite[finite <= exact].max(), finite[finite >= exact].min()


@pytest.mark.parametrize("dtype", NARROW)
def test_zero_updates_move_no_value_of_the_format(dtype):
    values = _all_values(dtype)
    # XLA flushes subnormal float32 numbers, and with them the subnormal ones of bfloat16.
    smallest = 0.0 if dtype == jnp.float16 else jnp.finfo(dtype).smallest_normal
    values = values[jnp.isfinite(values) & (jnp.abs(values) >= smallest)]
    assert len(values) > 60_000
    for key in jax.random.split(jax.random.key(0), 20):
        np.testing.assert_array_equal(add_rounding(values, jnp.zeros_like(values), key), values)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_representable_stays(dtype):
    values = jnp.array([0.0, -0.0, 1.0, -2.5, 2.0**-14, 1024.0, jnp.inf, -jnp.inf], dtype)
    new = add_rounding(values, jnp.zeros_like(values), jax.random.key(0))
    np.testing.assert_array_equal(new, values)
    nan = add_rounding(jnp.full_like(values, jnp.nan), values, jax.random.key(0))
    assert bool(jnp.isnan(nan).all())


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_no_number_stays_none(dtype):
    """Whatever its payload: all ones, as a GPU writes it, would be carried to -0."""
    bits = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0x7F800001], np.uint32).repeat(1000)
    updates, params = bits.view(np.float32), np.ones(len(bits), dtype)
    new = add_rounding(params, updates, jax.random.key(0))
    assert np.isnan(np.float32(new)).all()
    infinite = add_rounding(params, np.full_like(updates, np.inf), jax.random.key(0))
    assert np.isposinf(np.float32(infinite)).all()


@pytest.mark.parametrize("shape", [(8, 9, 10), (720, 1), (2, 3, 4, 30)])
def test_an_elements_choice_depends_on_its_index_alone(shape):
    """So no two elements of an array share one, whatever its shape."""
    params, updates = jnp.ones(720, jnp.bfloat16), jnp.linspace(0.0, 1e-2, 720)
    add = lambda *trees: add_rounding(*trees, jax.random.key(3))
    flat, shaped = add(params, updates), add(params.reshape(shape), updates.reshape(shape))
    np.testing.assert_array_equal(np.float32(shaped).ravel(), np.float32(flat))
    assert np.sum(np.float32(flat) != np.float32(params + updates.astype(params.dtype))) > 100


@pytest.mark.parametrize("dtype", NARROW)
def test_float64_updates_are_rounded_as_those_of_float32(dtype):
    with jax.enable_x64(True):
        params, updates = jnp.ones((4, 2), dtype), jnp.full((4, 2), 2.0**-12, jnp.float64)
        add = lambda u: add_rounding(params, u, jax.random.key(0))
        new, expected = add(updates), add(updates.astype(jnp.float32))
    assert new.dtype == dtype
    np.testing.assert_array_equal(np.float32(new), np.float32(expected))


def test_float32_parameters_are_added_as_optax_does():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"a": jax.random.normal(keys[0], (50,)), "b": None, "c": jnp.arange(3)}
    updates = {"a": jax.random.normal(keys[1], (50,)), "b": None, "c": jnp.ones(3, int)}
    chex.assert_trees_all_equal(
        od.apply_updates_with_stochastic_rounding(params, updates, keys[2]),
        optax.apply_updates(params, updates),
    )


def test_the_key_decides():
    params = {"a": jnp.ones(1000, jnp.bfloat16), "b": jnp.ones(1000, jnp.bfloat16)}
    updates = jax.tree.map(lambda p: -1e-3 * p, params)
    first, again, other = (add_rounding(params, updates, jax.random.key(k)) for k in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first["a"] != other["a"]).any()
    assert (first["a"] != first["b"]).any()  # leaves are rounded independently


def test_the_choices_are_independent():
    """Of neighbours near and far, of leaves, and of steps: no correlation above 5 sigma."""
    n, middle = 1 << 18, 1 + 2.0**-8  # halfway between two bfloat16 numbers
    shapes = {"vector": (n,), "matrix": (512, n // 512), "tensor": (8, n // 64, 8)}
    zeros = {name: jnp.zeros(shape, jnp.bfloat16) for name, shape in shapes.items()}
    updates = jax.tree.map(lambda p: jnp.full(p.shape, middle), zeros)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(3)]
    runs = [add_rounding(zeros, updates, key) for key in keys]
    signs = np.array([np.where(np.ravel(x) > 1, 1.0, -1.0) for run in runs for x in run.values()])
    limit = 5 / np.sqrt(n)
    assert abs(signs.mean(axis=1)).max() < limit
    between = signs @ signs.T / n
    assert abs(between - np.eye(len(signs))).max() < limit
    for lag in (1, 2, 3, 7, 8, 64, 512, 4096, n // 2):
        assert abs(np.mean(signs[:, lag:] * signs[:, :-lag], axis=1)).max() < limit * np.sqrt(2)


def test_a_sum_of_many_roundings_has_the_variance_of_independent_ones():
    """Blocks of 256 choices between 0 and 1, of probability 1/4: variance 256·3/16."""
    n, quarter = 1 << 20, 1 + 2.0**-9
    zeros, updates = np.zeros(n, jnp.bfloat16), np.full(n, quarter, np.float32)
    new = add_rounding(zeros, updates, jax.random.key(3))
    sums = np.sum(np.reshape(np.asarray(new) > 1, (-1, 256)), axis=1)
    assert sums.mean() == pytest.approx(64, rel=0.01)
    assert sums.var() == pytest.approx(48, rel=0.11)  # 5 standard errors of 4096 blocks


@pytest.mark.parametrize("key", [0, None, jnp.float32(1), jax.random.split(jax.random.key(0), 3)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(TypeError, match=r"(?s)key=.* must be one JAX random key"):
        od.apply_updates_with_stochastic_rounding(jnp.ones(2), jnp.ones(2), key)


def test_an_old_style_key_is_as_good():
    params = jnp.ones(64, jnp.bfloat16)
    raw, typed = jax.random.PRNGKey(3), jax.random.key(3)
    new = [
        od.apply_updates_with_stochastic_rounding(params, 1e-3 * params, k) for k in (raw, typed)
    ]
    np.testing.assert_array_equal(*new)


def test_narrower_formats_are_refused():
    params = jnp.ones(3, jnp.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"float8_e4m3fn.*float16 and bfloat16"):
        od.apply_updates_with_stochastic_rounding(params, params, jax.random.key(0))


def test_an_empty_tree():
    assert od.apply_updates_with_stochastic_rounding({}, {}, jax.random.key(0)) == {}
