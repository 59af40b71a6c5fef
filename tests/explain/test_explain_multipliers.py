"""Arrays of multipliers: a decay of each element, with a range; also of large parameters."""

import contextlib
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, by_path

import optax_decoupled as od
from optax_decoupled._explain import probe
from optax_decoupled._select import multipliers

DEPTH = np.linspace(1.0, 0.5, 12)[:, None, None]
STACK = {
    "kernel": jax.ShapeDtypeStruct((12, 768, 3072), jnp.float32),  # above FULL_SIZE
    "bias": jax.ShapeDtypeStruct((12, 3072), jnp.float32),
}
MASKS = {
    "NumPy": {"kernel": DEPTH, "bias": False},
    "JAX": {"kernel": jnp.asarray(DEPTH), "bias": False},
    "a function of the shape": od.decay_rules(
        ("kernel", lambda shape: np.linspace(1.0, 0.5, shape[0])[:, None, None]), ("bias", 0.0)
    ),
    "a function that knows the depth": od.decay_rules(
        ("kernel", lambda shape: 1 - 0.5 * np.arange(shape[0])[:, None, None] / 11), ("bias", 0.0)
    ),
    "a mask function of jax.numpy": lambda params: {
        "kernel": jnp.linspace(1.0, 0.5, params["kernel"].shape[0])[:, None, None],
        "bias": False,
    },
    "weakly typed, of the whole shape": lambda params: {
        "kernel": jnp.full((12, 1, 1), 0.75) + 0.25 * jnp.linspace(1, -1, 12)[:, None, None],
        "bias": False,
    },
    "one that looks at types": lambda params: {
        name: DEPTH if isinstance(x, jax.Array) and x.ndim > 2 else False
        for name, x in params.items()
    },
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    ("options", "kind"),
    [({}, "decoupled"), ({"cautious": True}, "cautious"), ({"toward": od.toward_init()}, "toward")],
)
def test_a_decay_that_falls_with_depth_has_a_range(mask, options, kind, monkeypatch):
    monkeypatch.setattr(probe, "FULL_SIZE", 2**12)  # a sample does
    report = od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask, **options), STACK)
    rows = by_path(report)
    assert (rows["kernel"].kind, rows["bias"].kind) == (kind, "none")
    assert rows["kernel"].decay_range == pytest.approx((5e-5, 1e-4), rel=1e-3)
    assert rows["kernel"].decay_per_step == pytest.approx(7.5e-5, rel=1e-3)
    assert rows["bias"].decay_range is None
    assert "5.0e-05..1.0e-04" in str(report)
    assert max(map(len, str(report).splitlines())) <= 80
    assert not report.warnings


def test_one_number_has_no_range():
    for mask in (
        None,
        {"kernel": 0.5, "bias": 1.0},
        {"kernel": 0.5 * np.ones((12, 1, 1)), "bias": True},
    ):
        rows = od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), STACK).rows
        assert [row.decay_range for row in rows] == [None, None]
        assert {row.kind for row in rows} == {"decoupled"}


def test_the_budget_of_the_mean_over_a_run():
    params = {"w": jnp.ones((6, 4))}
    w = np.random.default_rng(0).uniform(size=(6, 4))
    tx = od.sgdw(LR, 1e-4, mask={"w": w}, schedule=optax.linear_schedule(1.0, 0.0, 100))
    (row,) = od.explain_weight_decay(tx, params, steps=100).rows
    budget = 1e-4 * w.mean() * (1 - np.arange(100) / 100).sum()
    assert row.budget == pytest.approx(budget, rel=1e-3)
    assert row.decay_range == pytest.approx((1e-4 * w.min(), 1e-4 * w.max()), rel=1e-3)


def test_l2_with_an_array_is_coupled():
    (row,) = od.explain_weight_decay(
        od.adam_l2(LR, 1e-2, mask={"w": np.array([[1.0], [0.5]])}), {"w": jnp.ones((2, 8))}
    ).rows
    assert (row.kind, row.decay_range) == ("coupled", None)


WEAK = jnp.full((1024, 1), 0.5)
assert WEAK.weak_type


@pytest.mark.parametrize("mask", [{"w": WEAK}, lambda p: {"w": jnp.full(p["w"].shape, 0.5)}])
def test_a_weakly_typed_multiplier_is_measured_on_a_sample(mask, monkeypatch):
    monkeypatch.setattr(probe, "FULL_SIZE", 2**12)
    params = {"w": jax.ShapeDtypeStruct((1024, 512), jnp.float32)}
    (row,) = od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), params).rows
    assert (row.kind, row.decay_range) == ("decoupled", None)
    assert row.decay_per_step == pytest.approx(5e-5, rel=1e-3)


def test_a_mask_under_vmap_sees_the_axes_that_it_has_there(monkeypatch):
    monkeypatch.setattr(probe, "FULL_SIZE", 2**12)
    inner = od.adamw(LR, 1e-4, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    tx = optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(inner.update))
    shapes = {"b": (8, 2048), "k": (8, 2048, 2048)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    bias, kernel = od.explain_weight_decay(tx, params).rows
    assert (bias.kind, kernel.kind) == ("none", "decoupled")


def test_a_mask_of_a_large_model_is_not_made_in_memory():
    """It would take 512 MiB; the sample is measured with the mask of the sample."""
    mask = lambda params: {"w": jnp.tri(*params["w"].shape, dtype=jnp.float32)}
    params = {"w": jax.ShapeDtypeStruct((16384, 8192), jnp.float32)}
    tracemalloc.start()
    with contextlib.suppress(ValueError):  # the whole has other operations than a sample
        od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), params)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_both_extremes_are_in_a_sample():
    layers = np.full(12, 0.5)
    layers[[7, 5]] = 0, 1
    for changed in (layers, layers[::-1], 1 - layers):
        sample = changed[multipliers._places(changed, 0, 4)]
        assert (sample.min(), sample.max()) == (0, 1)
        assert sample[[0, -1]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("layers", [(5, 6), (1,), (10,)])
def test_a_decay_of_some_layers_within_the_stack_is_seen(layers, monkeypatch):
    monkeypatch.setattr(probe, "FULL_SIZE", 2**12)
    inside = np.isin(np.arange(12), layers)[:, None, None]
    mask = {"kernel": inside, "bias": False}
    report = od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), STACK)
    kernel = by_path(report)["kernel"]
    assert kernel.kind == "decoupled"
    assert kernel.decay_range == pytest.approx((0.0, 1e-4), rel=1e-3)
    assert any("half-life and budget are those of the sample" in text for text in report.notes)


def test_a_mask_that_needs_values_fails_as_it_does_under_jit():
    mask = lambda params: {"w": bool((params["w"] > 0).any())}
    with pytest.raises(ValueError, match="TracerBoolConversionError"):
        od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), {"w": jnp.ones((3, 4))})


def test_a_mask_may_depend_on_values_for_some_parameters():
    mask = lambda params: {"w": (params["w"] != 0).astype(jnp.float32), "b": False}
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    rows = by_path(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), params))
    assert (rows["w"].kind, rows["b"].kind) == ("decoupled", "none")


def test_an_array_of_lower_rank_is_sampled_too(monkeypatch):
    monkeypatch.setattr(probe, "FULL_SIZE", 2**12)
    mask = {"kernel": np.linspace(1.0, 0.5, 3072), "bias": False}
    kernel = by_path(od.explain_weight_decay(od.adamw(LR, 1e-4, mask=mask), STACK))["kernel"]
    assert kernel.decay_range == pytest.approx((5e-5, 1e-4), rel=1e-3)


def test_a_mask_by_dtype_sees_the_parameters_own():
    params = {"a": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones((3, 4))}
    mask = lambda params: jax.tree.map(lambda x: x.dtype == jnp.bfloat16, params)
    rows = by_path(od.explain_weight_decay(od.adamw(LR, 4e-3, mask=mask), params))
    assert (rows["a"].kind, rows["b"].kind) == ("decoupled", "none")


def test_decouple_measures_a_depth_of_its_own():
    mask = lambda params: {"w": jnp.eye(5)[params["w"].shape[0] - 1][:, None]}
    inner = od.adamw(LR, 1e-4, mask=mask)
    with pytest.warns(UserWarning, match="'w' by itself"):
        od.decouple(inner, 1e-4).init({"w": jnp.ones((5, 8))})


def test_an_array_that_does_not_fit_is_refused_at_full_size():
    with pytest.raises(ValueError, match=r"mask at 'kernel' has shape \(13, 1, 1\)"):
        od.explain_weight_decay(
            od.adamw(LR, 1e-4, mask={"kernel": np.ones((13, 1, 1)), "bias": False}), STACK
        )


def test_decouple_still_warns_of_a_decay_within_that_has_an_array():
    params = {"w": jnp.ones((5, 8))}
    inner = od.adamw(LR, 1e-4, mask={"w": np.linspace(1, 0.5, 5)[:, None]})
    with pytest.warns(UserWarning, match="'w' by itself"):
        od.decouple(inner, 1e-4).init(params)


WIDE = {"w": jax.ShapeDtypeStruct((12, 4, 4), jnp.float32)}


@pytest.mark.parametrize(
    ("highest", "text"), [(0.02, "looks like a PyTorch value"), (0.5, "more than a quarter")]
)
def test_warnings_look_at_the_highest_fraction(highest, text):
    """The mean over twelve layers, of which one decays, causes none of them."""
    c = highest * (np.arange(12) == 11)[:, None, None]
    decay = optax.stateless(lambda u, p: jax.tree.map(lambda u, p: u - c * p, u, p))
    tx = optax.chain(optax.sgd(LR), decay)
    report = od.explain_weight_decay(tx, WIDE)
    assert report.rows[0].highest == pytest.approx(highest, rel=1e-3)
    assert any(text in warning for warning in report.warnings)


@pytest.mark.parametrize(("highest", "is_lost"), [(1e-3, True), (4e-3, False)])
def test_a_range_is_lost_to_rounding_if_its_highest_fraction_is(highest, is_lost):
    params = {"w": jax.ShapeDtypeStruct((12, 4, 4), jnp.bfloat16)}
    mask = {"w": (np.arange(12) == 11)[:, None, None].astype(np.float32)}
    (row,) = od.explain_weight_decay(od.sgdw(LR, highest, mask=mask), params).rows
    assert row.decay_range == pytest.approx((0.0, highest), rel=1e-2)
    assert row.lost_to_rounding == is_lost


def test_a_decay_of_the_longest_row_is_no_multiplier():
    """Its fractions are the same at each size of the parameter, but not in another order."""

    def shrink(update, param):
        size = jnp.linalg.norm(param, axis=-1, keepdims=True)
        return update - 1e-3 * param * jnp.where(size == size.max(), 1.0, 0.5)

    decay = optax.stateless(lambda updates, params: jax.tree.map(shrink, updates, params))
    tx = optax.chain(optax.adam(LR), decay)
    (row,) = od.explain_weight_decay(tx, {"w": jnp.ones((4, 256))}).rows
    assert (row.kind, row.decay_range) == ("nonlinear", None)


def test_a_range_far_below_the_steps_is_not_lost_in_their_rounding():
    mask = {"w": np.linspace(1, 0.5, 8)[:, None]}
    (row,) = od.explain_weight_decay(od.sgdw(4.0, 1e-5, mask=mask), {"w": jnp.ones((8, 16))}).rows
    assert row.kind == "decoupled"
    assert row.decay_range == pytest.approx((5e-6, 1e-5), rel=1e-3)
