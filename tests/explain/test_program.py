"""`_explain.program` computes what `jax.jit` does, and compiles equal parts of an update once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

import optax_decoupled as od
from optax_decoupled._explain.program import Program

LAYERS = 6
RNG = np.random.default_rng(0)


def tree(layers=LAYERS):
    """Arrays of three shapes, and a scalar; no two are equal."""
    draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
    layer = lambda: {"kernel": draw(4, 4), "bias": draw(4)}
    return {f"layer_{i}": layer() for i in range(layers)} | {"wide": draw(3, 8), "scale": draw()}


def only_first(tx):
    """With arrays as masks, constants of the traced function."""
    mask = jax.tree.map(lambda x: np.arange(np.size(x)).reshape(np.shape(x)) % 2, tree())
    masked = lambda grads, mask: jax.tree.map(lambda g, m: g * m, grads, mask)
    return optax.GradientTransformation(
        tx.init, lambda grads, state, params: tx.update(masked(grads, mask), state, params)
    )


def crossed():
    """Each parameter moves by the norm of another one."""

    def update(grads, state, params):
        leaves, structure = jax.tree.flatten(params)
        norms = [jnp.linalg.norm(x) for x in leaves]
        updates = [x * n for x, n in zip(leaves, [*norms[1:], norms[0]], strict=True)]
        return structure.unflatten(updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def twice_clipped():
    """A global norm, and another one of what the first made."""
    return optax.chain(
        optax.clip_by_global_norm(0.1), optax.scale_by_trust_ratio(), optax.clip_by_global_norm(0.2)
    )


def sorted_on_host():
    """A callback for each parameter, which cannot be mapped."""
    sort_array = lambda x: np.sort(np.asarray(x), None).reshape(x.shape)

    def sort(x):
        return jax.pure_callback(sort_array, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    return optax.stateless(lambda grads, params: jax.tree.map(sort, grads))


def layerwise():
    """A rate for each layer, a number of the traced function."""
    rates = {name: 0.1 * (1 + i) for i, name in enumerate(tree())}
    times = lambda rate, x: jax.tree.map(lambda g: rate * g, x)
    scale = lambda grads, params: {name: times(rates[name], x) for name, x in grads.items()}
    return optax.chain(optax.scale_by_adam(), optax.stateless(scale))


def polynomial():
    """Coefficients in one array for all parameters."""
    powers = np.array([1.0, 0.5], np.float32)
    each = lambda g: jnp.polyval(powers, jnp.sqrt(abs(g)))
    return optax.stateless(lambda grads, params: jax.tree.map(each, grads))


def counted():
    """Updates that the count alone determines, once for all parameters and once for each."""

    def update(grads, state, params):
        alike = {shape: jnp.full(shape, jnp.cos(state)) for shape in {(4, 4), (4,), (3, 8), ()}}
        each = lambda g: alike[g.shape] + jnp.sin(jnp.full(g.shape, 0.1 * state))
        return jax.tree.map(each, grads), state + 1

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


def shifted():
    """The same array of one computed number for all parameters of a shape."""
    shift = lambda g, count: jnp.sqrt(abs(g) + jnp.full_like(g, 0.1 * count))
    return optax.GradientTransformation(
        lambda params: jnp.zeros(()),
        lambda grads, count, params: (jax.tree.map(lambda g: shift(g, count), grads), count + 1),
    )


def constant():
    """The same constant array for all parameters of a shape."""

    def update(grads, params):
        shapes = {x.shape for x in jax.tree.leaves(grads)}
        alike = {shape: jnp.exp(jnp.zeros(shape)) for shape in shapes}
        return jax.tree.map(lambda g: jnp.sqrt(abs(g)) + alike[g.shape], grads)

    return optax.stateless(update)


def by_size():
    """A rate for each parameter from its size, and none for an empty one."""
    scale = lambda g: g / max(g.size, 1) ** 0.5 + jnp.zeros_like(g)
    empty = lambda grads, params: {**grads, "empty": jnp.exp(jnp.zeros((2, 0)))}
    drop = lambda grads, params: {name: x for name, x in grads.items() if name != "empty"}
    each = optax.stateless(lambda grads, params: jax.tree.map(scale, grads))
    return optax.chain(optax.stateless(empty), each, optax.stateless(drop))


OPTIMIZERS = {
    "adamw": lambda: optax.adamw(1e-2, weight_decay=0.1),
    "ours": lambda: od.adamw(1e-2, 1e-3, mask=od.decay_mask),
    "lamb": lambda: optax.lamb(1e-2, weight_decay=0.1),
    "two global norms": twice_clipped,
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "accumulating": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "if finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 2),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=0.1),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.adam(1e-2)),
    "constants": lambda: only_first(optax.adam(1e-2)),
    "norms of others": crossed,
    "callback": sorted_on_host,
    "layerwise": layerwise,
    "of the count": counted,
    "shifted": shifted,
    "by size": by_size,
    "jitted": lambda: jitted(optax.adamw(1e-2, weight_decay=0.1)),
}


def jitted(tx):
    return optax.GradientTransformation(jax.jit(tx.init), jax.jit(tx.update))


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (jnp.shape(x), x.dtype) == (jnp.shape(y), y.dtype)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_three_updates_are_those_of_jit(name):
    tx, params = OPTIMIZERS[name](), tree()
    init, update, expected = Program(tx.init), Program(tx.update), jax.jit(tx.update)
    state, expected_state = init(params), tx.init(params)
    assert_equal(state, expected_state)
    moves = False
    for _ in range(3):
        grads = tree()
        updates, state = update(grads, state, params)
        wanted, expected_state = expected(grads, expected_state, params)
        assert_equal((updates, state), (wanted, expected_state))
        moves |= any(np.any(u) for u in jax.tree.leaves(updates))
    assert moves


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_layers_may_be_one_array_at_first_and_differ_later(name):
    """What is left out for equal arrays is not left out when they differ."""
    tx, update = OPTIMIZERS[name](), Program(OPTIMIZERS[name]().update)
    one = tree()
    params = {k: one["layer_0"] if k.startswith("layer") else x for k, x in one.items()}
    state = Program(tx.init)(params)
    for grads, weights in ((params, params), (tree(), params), (params, tree()), (params, params)):
        found = update(grads, state, weights)
        assert_equal(found, jax.jit(tx.update)(grads, state, weights))
        state = found[1]


def test_arrays_may_be_empty_or_of_one_number():
    """The number is computed, and no other result needs it."""
    empty = {f"empty_{i}": np.ones((2, 0), np.float32) for i in range(3)}
    assert_equal(
        Program(lambda n: jnp.full((3,), jnp.sin(n)))(2.0), np.full(3, np.sin(2.0), np.float32)
    )
    given = lambda n, key: (n, jnp.full((3,), n), 2, key, jnp.broadcast_to(key, (3,)))
    for function in (given, lambda n, key: given(n, key)[:4]):  # the second has no operation
        found = Program(function)(2.0, jax.random.key(0))
        assert_equal(found, jax.jit(function)(2.0, jax.random.key(0)))
    both = Program(lambda *xs: [jnp.full((3,), jnp.sum(jnp.exp(x))) for x in xs])
    x = np.ones((4, 4), np.float32)  # the sums of one array are computed once
    assert_equal(both(x, x), [np.full(3, 16 * np.e, np.float32)] * 2)
    for name in ("adamw", "lamb", "two global norms"):
        tx, params = OPTIMIZERS[name](), tree() | empty
        state = tx.init(params)
        found = Program(tx.update)(params, state, params)
        assert_equal(found, jax.jit(tx.update)(params, state, params))


def test_an_array_may_stand_at_several_places():
    """Of which some differ later, and of which each needs the result of another."""
    a, b = RNG.normal(size=(2, 3)).astype(np.float32)

    def twice(xs):
        return jnp.sin(xs[0]), jnp.sin(xs[1]), jnp.cos(xs[2]), jnp.cos(xs[1])

    def crossed_norms(xs):
        norms = [jnp.linalg.norm(x) for x in xs]
        return [x * n for x, n in zip(xs, [*norms[1:], norms[0]], strict=True)], norms

    for function in (twice, crossed_norms):
        program = Program(function)
        for xs in ([a, a, a], [a, b, b], [a, a, b], [b, a, a], [a, a, a]):
            assert_equal(program(xs), jax.jit(function)(xs))


def test_a_branch_that_is_not_taken_may_run_forever_or_fail():
    def fail(x):
        raise FloatingPointError(x)

    def double(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y * y) < 1e3, lambda y: 2 * y, x)

    def refuse(x):
        return jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def guarded(f):
        each = lambda x: jax.lax.cond(jnp.sum(x * x) > 0, lambda: f(x), lambda: x)
        return lambda xs: jax.tree.map(each, xs)

    xs = [np.ones(3, np.float32), np.full(3, 2, np.float32), np.zeros(3, np.float32)]
    assert_equal(Program(guarded(double))(xs), jax.jit(guarded(double))(xs))
    zeros = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    assert_equal(Program(guarded(refuse))(zeros), zeros)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "two threefries"])
def test_random_numbers_are_those_of_jit(kind):
    def noisy(key, xs):
        noise = []
        for i, k in enumerate(jax.random.split(key, len(xs))):
            with jax.threefry_partitionable(kind != "two threefries" or i % 2 == 0):
                noise.append(jax.random.normal(k, xs[i].shape))
        return [x + z for x, z in zip(xs, noise, strict=True)]

    key = jax.random.key(0, impl="threefry2x32" if kind.startswith("two") else kind)
    xs = list(RNG.normal(size=(4, 3)).astype(np.float32))
    assert_equal(Program(noisy)(key, xs), jax.jit(noisy)(key, xs))


def test_a_branch_for_another_platform_is_not_compiled():
    primitive = core.Primitive("of_another_platform")
    primitive.def_abstract_eval(lambda x: x)

    def each(x):
        return jax.lax.platform_dependent(x, tpu=primitive.bind, default=lambda x: -x)

    xs = [np.ones(3, np.float32), np.zeros(3, np.float32)]
    negated = Program(lambda xs: jax.tree.map(each, xs))(xs)
    assert_equal(negated, [-x for x in xs])


def sampled(trees):
    """Less of each array, an equal part for equal shapes."""
    shapes = {(4, 4): (2, 2), (4,): (2,), (3, 8): (3, 1)}
    cut = lambda x: x[tuple(map(slice, shapes.get(jnp.shape(x), jnp.shape(x))))]
    return jax.tree.map(lambda x: cut(np.asarray(x)), trees)


@pytest.mark.parametrize("name", ["adamw", "ours", "accumulating", "injected", "jitted", "clip"])
def test_elements_alone_are_computed_as_among_all_others(name):
    """A function that acts on each element alone is traced at one size only."""
    tx = OPTIMIZERS.get(name, lambda: optax.chain(optax.clip(0.5), optax.adam(1e-2)))()
    params, grads, times = tree(), tree(), 0

    def update(*trees):
        nonlocal times
        times += 1
        return tx.update(*trees)

    state = tx.init(params)
    program = Program(update)
    program.is_for_any_size = program.acts_on_elements(grads, state, params)
    assert program.is_for_any_size
    found = program(*sampled((grads, state, params)))
    assert_equal(found, sampled(jax.jit(tx.update)(grads, state, params)))
    assert times == 1
    init = Program(tx.init)
    init.is_for_any_size = init.acts_on_elements(params)
    assert_equal(init(sampled(params)), sampled(state))


@pytest.mark.parametrize(
    "name",
    [
        "lamb",
        "two global norms",
        "adafactor",
        "muon",
        "noise",
        "constants",
        "callback",
        "if finite",
    ],
)
def test_what_depends_on_other_elements_is_for_one_size(name):
    tx, params = OPTIMIZERS[name](), tree()
    assert not Program(tx.update).acts_on_elements(params, tx.init(params), params)


def test_an_update_that_acts_on_elements_may_be_kept_from_it():
    """If init depends on other elements, an update of samples is traced for them."""
    program = Program(lambda x: x * x.size)
    assert program.acts_on_elements(np.ones((4, 4), np.float32))
    assert_equal(program(np.ones(2, np.float32)), np.full(2, 2.0, np.float32))
    program.is_for_any_size = True
    assert_equal(program(np.ones(3, np.float32)), np.full(3, 16.0, np.float32))


def test_arrays_of_other_shapes_than_the_arguments_are_for_one_size():
    """How many elements of such an array a sample has is not known."""
    assert not Program(lambda x: (2 * x, jnp.ones(7))).acts_on_elements(np.ones(3))
    assert Program(lambda x: (2 * x, jnp.ones(3))).acts_on_elements(np.ones(3))


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda: optax.adamw(1e-2, weight_decay=0.1), 2),
        (lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2)), 3),
        (lambda: optax.lamb(1e-2), 3),
        (lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(), 2),
        (lambda: optax.inject_hyperparams(optax.adamw)(1e-2), 2),
        (lambda: od.adamw(1e-2, 1e-3, mask=od.decay_mask), 3),
        (lambda: optax.contrib.muon(1e-2), 3),  # coefficients in an array of the state
        (polynomial, 3),
        (shifted, 2),
        (constant, 2),
    ],
)
def test_layers_are_compiled_once(make, kinds):
    """The compiled program of twice as many layers has as many square roots."""
    roots = []
    for layers in (LAYERS, 2 * LAYERS):
        tx, params = make(), tree(layers)
        update = Program(tx.update)
        update(params, tx.init(params), params)
        ((compiled,),) = update._compiled.values()
        parts = [group.part for group in compiled.groups]
        keys = [str(operation.key) for part in parts for operation in part.operations]
        roots.append(sum("sqrt" in key for key in keys))
    assert roots[0] == roots[1] >= kinds


def test_parts_of_the_same_arrays_run_once():
    tx, one = optax.adamw(1e-2, weight_decay=0.1), tree()
    params = {k: one["layer_0"] if k.startswith("layer") else x for k, x in one.items()}
    update = Program(tx.update)
    updates, state = update(params, Program(tx.init)(params), params)
    assert updates["layer_0"]["kernel"] is updates["layer_5"]["kernel"]
    update(params, state, params)
    assert len(update._compiled) == 1
    (compiled,) = update._compiled.values()
    assert len(compiled) == 1  # what was equal is so after an update
    # A layer's kernel and the wide array, which has a similar size.
    assert {len(column.values) for column in compiled[0].columns} == {2}


@pytest.mark.parametrize("name", ["adamw", "lamb", "two global norms"])
def test_it_maps_over_scalars(name):
    cosine = optax.scale_by_schedule(optax.cosine_decay_schedule(0.1, 10))
    tx, params = optax.chain(OPTIMIZERS[name](), cosine), tree()
    state = tx.init(params)

    def at(count, params):
        moved = jax.tree.map(lambda x: count if x.dtype == jnp.int32 else x, state)
        return tx.update(params, moved, params)[0], count

    counts = np.arange(7, dtype=np.int32)
    found = Program(at, is_mapped=True)(counts, params)
    expected = jax.vmap(functools.partial(at, params=params))(counts)
    assert_equal(found, expected)
    assert np.ptp(found[0]["wide"], axis=0).all()


@pytest.mark.parametrize(("name", "times"), [("print", 1), ("two prints", 2), ("branch", 0)])
def test_effects_happen_as_often_as_without(name, times, capfd):
    """Equal ones too; those in a branch that is not taken do not."""

    def update(grads, state, params):
        show = lambda: jax.debug.print("seen {}", grads["wide"][0, 0])
        if name == "branch":
            jax.lax.cond(grads["scale"] > 1e3, show, lambda: None)
        for _ in range(times):
            show()
        return jax.tree.map(jnp.negative, grads), state

    grads = tree()
    updates, _ = Program(update)(grads, (), grads)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == times
    assert_equal(updates, jax.tree.map(np.negative, grads))
