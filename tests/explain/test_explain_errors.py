"""What is wrong with the arguments is said by name."""

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
