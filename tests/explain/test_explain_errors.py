"""What is wrong with the arguments is said by name."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from explaining import LR, only_kernels, small_params

import optax_decoupled as od


def test_swapped_arguments_are_named():
    tx, params = od.adamw(LR, 1e-4), {f"layer_{i}": jnp.ones((100, 100)) for i in range(100)}
    with pytest.raises(TypeError, match="the first argument") as caught:
        od.explain_weight_decay(params, tx)
    assert len(str(caught.value)) < 500


def test_a_mask_that_inject_hyperparams_breaks_at_init_is_named():
    for factory, mask in [
        (od.adamw, only_kernels),
        (optax.adamw, lambda params: {"dense": {k: k == "kernel" for k in params["dense"]}}),
    ]:
        tx = optax.inject_hyperparams(factory)(LR, weight_decay=1e-4, mask=mask)
        with pytest.raises(ValueError, match=r'tx.init fails .*static_args=\("mask",\)'):
            od.explain_weight_decay(tx, small_params())


def test_arguments_are_checked():
    params, tx = small_params(), od.adamw(LR, 1e-4)
    with pytest.raises(TypeError, match=r"must be an optax.GradientTransformation"):
        od.explain_weight_decay(optax.adamw, params)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"traced arrays.*outside"):
        jax.jit(lambda p: od.explain_weight_decay(tx, p).rows[0].decay_per_step)(params)
    with pytest.raises(TypeError, match=r"random key at 'key', which is no.*nnx.Param"):
        od.explain_weight_decay(tx, {**params, "key": jax.random.key(0)})
    with pytest.raises(ValueError, match=r"state is not what this tx has.*'2/count' is missing"):
        od.explain_weight_decay(tx, params, state=optax.adam(LR).init(params))
    with pytest.raises(ValueError, match="grads has the structure"):
        od.explain_weight_decay(tx, params, grads={"dense": 1.0})
    other = {"dense": {"kernel": jnp.ones((3, 3)), "bias": jnp.zeros(16)}}
    with pytest.raises(ValueError, match=r"grads at 'dense/kernel' has shape \(3, 3\)"):
        od.explain_weight_decay(tx, params, grads=other)
    with pytest.raises(ValueError, match=r"state at '0/mu/dense/kernel' has shape \(3, 3\)"):
        od.explain_weight_decay(tx, params, state=tx.init(other))
    with pytest.raises(
        ValueError, match=r"(?s)tx.update\(grads, state, params\) fails.*functools.partial"
    ):
        od.explain_weight_decay(optax.lbfgs(), params)


def test_errors_of_the_optimizer_are_shown_with_their_type():
    def fail(*_):
        raise KeyError("no such group")

    params = small_params()
    broken = optax.GradientTransformation(fail, optax.sgd(LR).update)
    with pytest.raises(ValueError, match=r"tx.init fails .*KeyError: 'no such group'") as caught:
        od.explain_weight_decay(broken, params)
    assert "inject_hyperparams" not in str(caught.value)
    broken = optax.GradientTransformation(optax.sgd(LR).init, fail)
    with pytest.raises(ValueError, match=r"tx.update.* fails .*KeyError: 'no such group'"):
        od.explain_weight_decay(broken, params)
    tx = optax.inject_hyperparams(optax.adamw)(LR, mask=lambda params: params["dense"].items())
    with pytest.raises(ValueError, match=r'tx.init fails .*Error: .*static_args=\("mask",\)'):
        od.explain_weight_decay(tx, params)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(tx), optax.apply_if_finite])
@pytest.mark.parametrize("pair", [True, False])
def test_lookahead_is_named_and_what_to_pass_instead(wrap, pair):
    fast = optax.adamw(LR, weight_decay=0.1)
    tx = optax.lookahead(fast, 5, 0.5)
    tx = wrap(tx, 3) if wrap is optax.apply_if_finite else wrap(tx)
    params = optax.LookaheadParams.init_synced(small_params())
    with pytest.raises(
        ValueError, match=r"optax.lookahead cannot .*explain_weight_decay\(fast_opt"
    ):
        od.explain_weight_decay(tx, params if pair else small_params())
    rows = od.explain_weight_decay(fast, params.fast).rows
    assert [row.decay_per_step for row in rows] == pytest.approx([1e-4, 1e-4], rel=1e-3)


NEED_A_LOSS = {
    "momo": (lambda: optax.contrib.momo(0.1), "none", 0.0),
    "momo_adam": (
        lambda: optax.contrib.momo_adam(0.01, weight_decay=0.1),
        "decoupled",
        1e-3 / (1 + 1e-3),
    ),
    "Polyak": (
        lambda: optax.chain(optax.polyak_sgd(), od.add_decoupled_weight_decay(1e-4)),
        "decoupled",
        1e-4,
    ),
    "plateau": (
        lambda: optax.chain(
            optax.adamw(LR, weight_decay=0.1), optax.contrib.reduce_on_plateau(cooldown=1)
        ),
        "decoupled",
        1e-4,
    ),
}


@pytest.mark.parametrize("name", NEED_A_LOSS)
@pytest.mark.parametrize("bound", [True, False])
def test_an_update_that_takes_a_loss_is_passed_one(name, bound):
    make, kind, c = NEED_A_LOSS[name]
    tx = make()
    if bound:
        tx = optax.GradientTransformation(tx.init, functools.partial(tx.update, value=2.0))
    report = od.explain_weight_decay(tx, small_params(), steps=10)
    assert {row.kind for row in report.rows} == {kind}
    for row in report.rows:
        assert (row.decay_per_step, row.budget) == pytest.approx((c, 10 * c), rel=1e-3)
    assert any("with a loss of 1" in note for note in report.notes) != bound
