"""Multipliers that are arrays: against NumPy float64, in every transform that takes a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arrays import normal
from steps import jitted_step

import optax_decoupled as od
from optax_decoupled._common.probing import Originals, measuring
from optax_decoupled._select.multipliers import fitted

LAYERS = np.linspace(1.0, 0.25, 4).reshape(4, 1, 1)
ELEMENTS = np.random.default_rng(0).uniform(0, 2, (5, 3))
MASKS = {
    "layers": ((4, 5, 3), LAYERS),
    "elements": ((5, 3), ELEMENTS),
    "columns": ((5, 3), np.array([0.0, 0.5, 2.0])),  # of lower rank
    "a gate's rows": ((6, 2), np.array([[1], [1], [0], [0], [1], [0]], bool)),
    "whole numbers": ((3, 2), np.array([[0], [1], [2]])),
}
every_mask = pytest.mark.parametrize(("shape", "w"), MASKS.values(), ids=MASKS)


def _trees(shape, dtype=jnp.float32):
    return [{"k": normal(shape, dtype, seed), "b": np.ones(3, dtype)} for seed in range(2)]


def _difference(make, shape, w, steps=3, dtype=jnp.float32):
    """How the parameters after some steps differ from those without decay, in float64."""
    params, grads = _trees(shape, dtype)
    ends = []
    for mask in ({"k": w, "b": False}, {"k": False, "b": False}):
        tx = make(mask)
        theta, state, step = params, jax.jit(tx.init)(params), jitted_step(tx)
        for _ in range(steps):
            theta, state = step(grads, state, theta)
        ends.append(np.float64(theta["k"]))
    return ends[0] - ends[1]


C = 5e-3
DECOUPLED = {
    "add_decoupled_weight_decay": lambda mask: od.add_decoupled_weight_decay(C, mask=mask),
    "adamw": lambda mask: od.adamw(1e-3, C, mask=mask),
    "sgdw": lambda mask: od.sgdw(1e-2, C, mask=mask),
    "adamc": lambda mask: od.adamc(1e-3, C, schedule=1.0, mask=mask),
    "decouple": lambda mask: od.decouple(optax.sgd(0.1), C, mask=mask),
}


@every_mask
@pytest.mark.parametrize("name", DECOUPLED)
def test_each_element_loses_its_own_fraction(name, shape, w):
    """The updates of the rest do not depend on the weights, so the decay is what differs."""
    trees = _trees(shape)
    tx = DECOUPLED[name]({"k": False, "b": False})
    state, update = jax.jit(tx.init)(trees[0]), jax.jit(tx.update)
    with_decay = without = np.float64(trees[0]["k"])
    for _ in range(3):
        updates, state = update(trees[1], state, trees[0])
        u = np.float64(updates["k"])
        with_decay, without = with_decay + u - C * w * with_decay, without + u
    expected = with_decay - without
    found = _difference(DECOUPLED[name], shape, w)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    uniform = _difference(DECOUPLED[name], shape, True)
    assert np.abs(found - uniform).max() > 1e-3  # one fraction for all is something else


@pytest.mark.parametrize("make", [od.adamwr, od.sgdwr])
def test_warm_restarts(make):
    tx = lambda mask: make(1e-3, 1e-2, first_cycle_steps=4, mask=mask)
    half = _difference(tx, (4, 5, 3), 0.5 * np.ones((4, 1, 1)), steps=1)
    found = _difference(tx, (4, 5, 3), LAYERS, steps=1)
    np.testing.assert_allclose(found, 2 * LAYERS * half, atol=1e-6)
    assert np.abs(found).max() > 1e-3


@every_mask
@pytest.mark.parametrize("scaled", [False, True])
def test_l2_adds_a_gradient_of_each_element(shape, w, scaled):
    params, grads = _trees(shape)
    scale = jax.tree.map(lambda p: 1 + np.abs(p), params)
    mask = {"k": w, "b": False}
    make = (lambda l2, mask: od.scale_adjusted_l2_to_grad(l2, scale, mask=mask)) if scaled else None
    tx = make(0.5, mask) if make else od.l2_to_grad(0.5, mask=mask)
    found, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    s = np.float64(scale["k"]) if scaled else 1.0
    expected = np.float64(grads["k"]) + 0.5 * s * w * np.float64(params["k"])
    np.testing.assert_allclose(found["k"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["b"], grads["b"])


def test_optimizers_with_l2():
    """SGD without momentum: rate times λ' is the fraction. Adam: another first step."""
    sgd = lambda mask: od.sgd_l2(0.1, 10 * C, momentum=0.0, mask=mask)
    decay = _difference(lambda mask: od.sgdw(0.1, C, momentum=0.0, mask=mask), (4, 5, 3), LAYERS)
    found = _difference(sgd, (4, 5, 3), LAYERS)
    np.testing.assert_allclose(found, decay, atol=1e-6)
    assert np.abs(found).max() > 1e-3
    params, grads = _trees((4, 5, 3))
    tx = od.adam_l2(0.1, 0.5, eps=1.0, mask={"k": LAYERS, "b": False})
    updates, _ = tx.update(grads, tx.init(params), params)
    g = np.float64(grads["k"]) + 0.5 * LAYERS * np.float64(params["k"])
    np.testing.assert_allclose(updates["k"], -0.1 * g / (abs(g) + 1), rtol=1e-4, atol=1e-6)


@every_mask
def test_cautious_and_toward(shape, w):
    params, grads = _trees(shape)
    theta, u = np.float64(params["k"]), -np.float64(grads["k"])
    mask = {"k": w, "b": False}
    moved = jax.tree.map(lambda p: p + 1, params)
    tx = od.add_decoupled_weight_decay(C, mask=mask, toward=od.toward_init(), cautious=True)
    updates = jax.tree.map(np.negative, grads)
    found, _ = jax.jit(tx.update)(updates, tx.init(params), moved)
    np.testing.assert_allclose(found["k"], u - C * w * (u * 1 <= 0), rtol=1e-5, atol=1e-6)
    tx = od.add_decoupled_weight_decay(C, mask=mask, cautious=True)
    found, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    np.testing.assert_allclose(
        found["k"], u - C * w * theta * (u * theta <= 0), rtol=1e-5, atol=1e-6
    )
    assert np.abs(found["k"] - u).max() > 1e-3


@every_mask
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_strict_dtypes_and_ranks(shape, w, dtype, kind):
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        params, _ = _trees(shape, dtype)
        tx = od.sgdw(0.1, C, schedule=lambda t: jnp.float32(1.0), mask={"k": kind(w), "b": False})
        updates, _ = jax.jit(tx.update)(
            jax.tree.map(np.zeros_like, params), tx.init(params), params
        )
    assert updates["k"].dtype == params["k"].dtype
    tolerance = {"bfloat16": 4e-3, "float64": 1e-6}.get(dtype, 1e-6)
    expected = -C * w * np.asarray(params["k"]).astype(complex)
    np.testing.assert_allclose(np.asarray(updates["k"]).astype(complex), expected, rtol=tolerance)


def test_traced_and_vmapped():
    params, grads = _trees((4, 5, 3))

    def update(w, params):
        tx = od.add_decoupled_weight_decay(C, mask={"k": w, "b": False})
        return tx.update(grads, tx.init(params), params)[0]["k"]

    several = jnp.stack([jnp.asarray(LAYERS), jnp.ones((4, 1, 1))])
    found = jax.jit(jax.vmap(update, (0, None)))(several, params)
    for w, each in zip(several, found, strict=True):
        expected = np.float64(grads["k"]) - C * np.float64(w) * np.float64(params["k"])
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_sharded():
    mesh = jax.make_mesh((4,), ("layers",), axis_types=(jax.sharding.AxisType.Auto,))
    params, grads = _trees((4, 5, 3))
    tx = od.adamw(1e-3, C, mask={"k": LAYERS, "b": False})
    expected, _ = tx.update(grads, tx.init(params), params)
    spec = lambda p: jax.sharding.PartitionSpec(*["layers"] * (p.ndim == 3))
    shardings = jax.tree.map(lambda p: jax.sharding.NamedSharding(mesh, spec(p)), params)
    placed = jax.device_put((grads, params), (shardings, shardings))
    updates, _ = jax.jit(tx.update)(placed[0], tx.init(placed[1]), placed[1])
    np.testing.assert_allclose(updates["k"], expected["k"], rtol=1e-6)
    assert updates["k"].sharding.is_equivalent_to(shardings["k"], 3)


def test_a_whole_tree_that_is_one_array():
    params = jnp.ones((4, 2))
    tx = od.add_decoupled_weight_decay(C, mask=np.arange(4.0)[:, None])
    updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    np.testing.assert_allclose(updates, -C * np.arange(4.0)[:, None] * np.ones((4, 2)), rtol=1e-6)


def test_a_parameter_without_elements_may_have_an_array():
    params = {"w": jnp.ones((0, 3))}
    od.sgdw(0.1, C, mask={"w": np.ones((0, 1))}).init(params)


def test_a_layer_is_normalized_or_not():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    make = lambda marks: od.adamc(0.1, C, schedule=lambda step: 0.5, normalized=marks)
    with pytest.raises(ValueError, match="normalized must be a mask of bools"):
        make({"a": True, "b": 0.5}).init(params)
    for marks in ({"a": True, "b": False}, {"a": 1.0, "b": 0.0}):
        tx = make(marks)
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        np.testing.assert_allclose(updates["a"], -C / 4, rtol=1e-6)
        np.testing.assert_allclose(updates["b"], -C / 2, rtol=1e-6)


@pytest.mark.parametrize("count", [4, 5, 8])
def test_a_sample_of_multipliers_has_both_ends_and_the_extremes_in_their_order(count):
    for seed in range(50):
        w = np.random.default_rng(seed).random(12)
        with measuring(Originals({}, are_sampled=True)):
            sample = fitted("mask", w, (2, count))
        assert sample.shape == (1, count)
        places = [w.tolist().index(x) for x in sample[0]]
        assert places == sorted(places)
        assert {0, w.argmin(), w.argmax(), 11} <= set(places)
    with measuring(Originals({}, are_sampled=True)):
        even = fitted("mask", np.arange(10.0), (4,))
    np.testing.assert_array_equal(even, [0, 3, 6, 9])


def test_rules_with_arrays_and_functions_of_the_shape():
    params = {"blocks": {"k": jnp.ones((4, 5, 3)), "b": jnp.ones((4, 3))}, "gate": jnp.ones((6, 2))}
    recurrent = np.array([1, 1, 1, 0, 0, 0])[:, None]
    mask = od.decay_rules(
        (".*/k", lambda shape: np.linspace(1, 0.25, shape[0]).reshape(-1, 1, 1)),
        (".*/b", lambda shape: 1 / len(shape)),
        ("gate", recurrent),
    )
    tx = od.add_decoupled_weight_decay(C, mask=mask)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(
        updates["blocks"]["k"], -C * np.broadcast_to(LAYERS, (4, 5, 3)), rtol=1e-6
    )
    np.testing.assert_allclose(updates["blocks"]["b"], -C / 2, rtol=1e-6)
    np.testing.assert_allclose(updates["gate"], -C * np.broadcast_to(recurrent, (6, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "parts"),
    [
        ({"k": np.ones(4)}, ["mask at 'k' has shape (4,)", "(4, 5, 3)", "w.reshape(-1, 1, 1)"]),
        ({"k": np.ones((1, 4, 5, 3))}, ["mask at 'k' has shape (1, 4, 5, 3)", "broadcast"]),
        ({"k": jnp.ones((4, 2, 1))}, ["has shape (4, 2, 1)", "(4, 5, 3)"]),
        ({"k": np.array([1.0, -1.0, 0.0])}, ["mask at 'k'", "-1.0", ">= 0"]),
        ({"k": np.array([1.0, np.nan, 0.0])}, ["mask at 'k'", "nan", "finite"]),
        ({"k": np.array([1.0, np.inf, 0.0])}, ["mask at 'k'", "inf", "finite"]),
        ({"k": np.ones(3) * 1j}, ["mask at 'k' has dtype complex128", "real numbers"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(mask, parts):
    params = {"k": jnp.ones((4, 5, 3))}
    for make in (od.adamw, od.sgdw):
        with pytest.raises((ValueError, TypeError)) as caught:
            make(1e-3, C, mask=mask).init(params)
        assert all(part in str(caught.value) for part in parts), caught.value


def test_refused_prefixes_rules_and_stacks():
    params = {"blocks": {"k": jnp.ones((4, 5, 3)), "b": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"mask at 'blocks' for 'blocks/b' has shape \(4, 1, 1\)"):
        od.adamw(1e-3, C, mask={"blocks": LAYERS}).init(params)
    rules = od.decay_rules((".*/k", np.ones(4)), (".*", 0.0))
    with pytest.raises(ValueError, match=r"decay rule '\.\*/k' for 'blocks/k' has shape \(4,\)"):
        rules(params)
    with pytest.raises(ValueError, match=r"decay rule '\.\*'.*-1.0.*>= 0"):
        od.decay_rules((".*", np.array([-1.0, 1.0])))
    with pytest.raises(ValueError, match=r"decay rule '\.\*' for 'blocks/b'=-1"):
        od.decay_rules((".*", lambda shape: -1))(params)
    with pytest.raises(ValueError, match=r"stacked at 'blocks/k' is an array of shape \(1, 1, 1\)"):
        od.norm_change(outward=0.5, stacked={"blocks": {"k": np.ones((1, 1, 1)), "b": 0}}).init(
            params
        )


@pytest.mark.parametrize("bad", [-1.0, jnp.nan, jnp.inf])
def test_jax_arrays_with_numbers_that_are_no_multipliers_are_refused(bad):
    tx = od.add_decoupled_weight_decay(1e-3, mask={"w": jnp.array([1.0, bad])})
    for init in (tx.init, jax.jit(tx.init)):
        with pytest.raises(ValueError, match=r"mask at 'w'=.* is not allowed"):
            init({"w": jnp.ones((3, 2))})
