"""Arrays of multipliers: a decay of each element, with a range; also of large parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, by_path

import optax_decoupled as od
from optax_decoupled._explain import probe

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
