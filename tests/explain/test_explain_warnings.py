"""Warnings name a mistake, and nothing that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from explaining import LR, kinds, small_params, trained

import optax_decoupled as od

FROZEN = "frozen or unused"


def _warned(text, report):
    return any(text in warning for warning in report.warnings)


def _gradients(bias=0.0):
    return {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.full(16, bias)}}


@pytest.mark.parametrize("make", [lambda: od.adamw(LR, 1e-4), lambda: od.sgd_l2(0.1, 1e-3)])
def test_a_parameter_that_decays_without_a_gradient_is_named(make):
    report = od.explain_weight_decay(make(), small_params(), grads=_gradients())
    (warning,) = [text for text in report.warnings if FROZEN in text]
    assert "'dense/bias'" in warning
    assert "kernel" not in warning


def test_a_parameter_with_any_gradient_or_without_decay_is_not_named():
    tx = od.adamw(LR, 1e-4)
    lone = _gradients()
    lone["dense"]["bias"] = jnp.zeros(16).at[11].set(1e-20)
    for grads in (None, _gradients(bias=1e-3), lone):
        assert not _warned(FROZEN, od.explain_weight_decay(tx, small_params(), grads=grads))
    masked = od.adamw(LR, 1e-4, mask=od.decay_mask)
    assert not _warned(FROZEN, od.explain_weight_decay(masked, small_params(), grads=_gradients()))


def test_a_gradient_is_looked_at_beyond_the_sample():
    """Of a table of which most rows are not used."""
    table = {"table": jnp.ones((4000, 64))}
    for row, warns in [(3999, False), (None, True)]:
        grads = np.zeros((4000, 64), np.float32)
        if row is not None:
            grads[row] = 1.0
        report = od.explain_weight_decay(od.adamw(LR, 1e-4), table, grads={"table": grads})
        assert _warned(FROZEN, report) == warns


def _soda(c=lambda t: 1 / (t + 2), toward=True):
    pull = od.add_decoupled_weight_decay(c, toward=od.toward_init() if toward else None)
    return optax.chain(optax.scale_by_adam(), optax.scale(-LR), pull)


@pytest.mark.parametrize("step", [0, 1, 5, 60])
def test_a_pull_by_a_large_part_of_the_way_is_no_mistake(step):
    """SODA's first is a half, the next a third (arXiv:2605.11172)."""
    report = od.explain_weight_decay(_soda(), {"w": jnp.ones((8, 16))}, step=step)
    assert kinds(report) == {"toward"}
    assert report.rows[0].decay_per_step == pytest.approx(1 / (step + 2), rel=1e-3)
    report.check()


@pytest.mark.filterwarnings("ignore:weight_decay reaches")
@pytest.mark.parametrize(
    ("c", "toward", "warning"),
    [
        (1.5, True, "more than the whole difference"),
        (1.0, True, None),
        (0.5, False, "more than a quarter"),
        (0.1, False, "looks like a PyTorch value"),
    ],
)
def test_a_decay_to_0_or_beyond_the_start_is_one(c, toward, warning):
    report = od.explain_weight_decay(_soda(lambda t: c, toward), {"w": jnp.ones((8, 16))})
    assert [text for text in report.warnings if warning and warning not in text] == []
    assert len(report.warnings) == (warning is not None)


WARMUP = optax.linear_schedule(0.0, 1.0, 10)
ESTIMATORS = {
    "prodigy": lambda: optax.contrib.prodigy(WARMUP, weight_decay=10.0),
    "prodigy, safeguarded": lambda: optax.contrib.prodigy(
        WARMUP, weight_decay=10.0, safeguard_warmup=True
    ),
    "prodigy, above 0": lambda: optax.contrib.prodigy(
        optax.linear_schedule(0.1, 1.0, 10), weight_decay=10.0
    ),
    "D-Adaptation": lambda: optax.contrib.dadapt_adamw(WARMUP, weight_decay=10.0),
    "D-Adaptation, above 0": lambda: optax.contrib.dadapt_adamw(
        optax.linear_schedule(0.1, 1.0, 10), weight_decay=10.0
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_updates_are_called_not_finite_where_real_ones_are(name):
    tx, params = ESTIMATORS[name](), small_params()
    moved, _ = trained(tx, params, 3)
    finite = all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(moved))
    assert finite == (name not in ("prodigy", "D-Adaptation"))
    report = od.explain_weight_decay(tx, params)
    assert _warned("begin it above 0", report) == (not finite)
    assert kinds(report) == ({"decoupled"} if finite else {"none"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: od.sgd_l2(0.1, 1e-3),
        lambda: od.adamw(LR, 1e-4),
        lambda: optax.chain(od.sgd_l2(0.1, 1e-3), od.add_decoupled_weight_decay(1e-4)),
    ],
    ids=["coupled", "of biases", "double"],
)
def test_warnings_compare_no_rows(monkeypatch, make):
    """Which is by their text: 3,200 of them would take a minute."""

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(od.types.DecayRow, "__eq__", fail)
    assert od.explain_weight_decay(make(), small_params()).warnings
