"""PyTorch's own database of optimizer configurations: each with a counterpart takes our steps.

The database is what PyTorch tests its optimizers with, OptimizerInfo in
torch.testing._internal.common_optimizers. It needs torch, expecttest and hypothesis.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import THETA, gradient, relative_error

import optax_decoupled as od

STEPS = 30


def l2(weight_decay, tx):
    return optax.chain(od.l2_to_grad(weight_decay), tx)


def correction(t):
    return 1 - 0.999 ** (jnp.asarray(t, float) + 1)


def largest_moment(lr, betas, eps):
    """AMSGrad of PyTorch: the largest second moment is taken before the bias correction."""
    return optax.inject_hyperparams(optax.amsgrad, static_args="bias_correction_nu")(
        lambda t: lr * jnp.sqrt(correction(t)),
        *betas,
        eps=lambda t: eps * jnp.sqrt(correction(t)),
        bias_correction_nu=False,
    )


def adam(lr, weight_decay, betas, eps, amsgrad):
    if amsgrad:
        return l2(weight_decay, largest_moment(lr, betas, eps))
    return od.adam_l2(lr, weight_decay, b1=betas[0], b2=betas[1], eps=eps)


def adamw(lr, weight_decay, betas, eps, amsgrad):
    decay = od.weight_decay_from_pytorch(weight_decay, lr)
    if amsgrad:
        return od.decouple(largest_moment(lr, betas, eps), decay)
    return od.adamw(lr, decay, b1=betas[0], b2=betas[1], eps=eps)


def radam(lr, weight_decay, betas, eps, decoupled_weight_decay, moved=True):
    """PyTorch adds eps before the bias correction."""
    eps_at = (lambda t: eps / jnp.sqrt(correction(t))) if moved else eps
    steps = optax.inject_hyperparams(optax.radam)(lr, *betas, eps=eps_at)
    if decoupled_weight_decay:
        return od.decouple(steps, od.weight_decay_from_pytorch(weight_decay, lr))
    return l2(weight_decay, steps)


def adagrad(lr, weight_decay, lr_decay, initial_accumulator_value):
    """Optax adds eps under the root, PyTorch 1e-10 beside it."""
    rate = lambda t: lr / (1 + jnp.asarray(t, float) * lr_decay)
    return l2(weight_decay, optax.adagrad(rate, initial_accumulator_value, eps=0.0))


def rmsprop(lr, weight_decay, alpha, eps, centered, momentum):
    options = dict(eps_in_sqrt=False, centered=centered, momentum=momentum)
    return l2(weight_decay, optax.rmsprop(lr, alpha, eps, **options))


def sgd(lr, weight_decay, momentum, nesterov):
    options = dict(momentum=momentum, nesterov=nesterov, scale_before_momentum=False)
    return od.sgd_l2(lr, weight_decay, **options)


COUNTERPARTS = {
    "Adadelta": lambda lr, weight_decay, rho, eps: l2(weight_decay, optax.adadelta(lr, rho, eps)),
    "Adagrad": adagrad,
    "Adam": adam,
    "AdamW": adamw,
    "Adamax": lambda lr, weight_decay, betas, eps: l2(weight_decay, optax.adamax(lr, *betas, eps)),
    "RAdam": radam,
    "RMSprop": rmsprop,
    "SGD": sgd,
}
# Optax has other algorithms of these names or none; PyTorch's Muon computes in bfloat16. Neither
# has SGD with dampening.
WITHOUT = {"Adafactor", "ASGD", "Muon", "NAdam"}


@pytest.fixture(scope="module")
def database():
    needs = "PyTorch's database of optimizers needs {}"
    for package in ("torch", "expecttest", "hypothesis"):
        pytest.importorskip(package, reason=needs.format(package))
    from torch.testing._internal.common_optimizers import (  # pyright: ignore[reportMissingImports]
        optim_db,
    )

    decaying = [x for x in optim_db if "weight_decay" in inspect.signature(x.optim_cls).parameters]
    return {info.optim_cls.__name__: info for info in decaying}


def configurations(info):
    """Each configuration's options, completed by the defaults."""
    defaults = {name: x.default for name, x in inspect.signature(info.optim_cls).parameters.items()}
    for case in info.optim_inputs_func(device="cpu"):
        options = {**defaults, **case.kwargs}
        if not options.get("dampening"):
            yield case.kwargs, options | {"lr": float(options["lr"])}


def theirs(optimizer, options, size=1.0):
    import torch  # pyright: ignore[reportMissingImports]

    theta, path = torch.nn.Parameter(torch.tensor(THETA)), []
    tx = optimizer([theta], **options)
    for t in range(STEPS):
        theta.grad = torch.tensor(size * gradient(theta.detach().numpy(), t))
        tx.step()
        path.append(theta.detach().numpy().copy())
    return np.stack(path)


def ours(make, options, size=1.0):
    """The trajectory in float64; with `maximize` along the reversed gradient."""
    size = -size if options["maximize"] else size
    known = inspect.signature(make).parameters.keys() & options.keys()
    with jax.enable_x64(True):
        tx = make(**{name: options[name] for name in known})
        params, path = jnp.asarray(THETA), []
        state, update = tx.init(params), jax.jit(tx.update)
        for t in range(STEPS):
            grads = jnp.asarray(size * gradient(np.asarray(params), t))
            updates, state = update(grads, state, params)
            params = optax.apply_updates(params, updates)
            path.append(np.asarray(params))
    return np.stack(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTERPARTS)
def test_every_configuration_takes_the_same_steps(database, name):
    info, make = database[name], COUNTERPARTS[name]
    for given, options in configurations(info):
        expected = theirs(info.optim_cls, given)
        assert relative_error(ours(make, options), expected) < 1e-8, given
        if options["weight_decay"]:
            for other in (0.0, 1.1 * options["weight_decay"]):
                wrong = ours(make, options | {"weight_decay": other})
                assert relative_error(wrong, expected) > 1e-6, (given, other)


@pytest.mark.slow
def test_all_optimizers_that_decay_are_sorted(database):
    assert database.keys() == COUNTERPARTS.keys() | WITHOUT
    assert sum(len(list(configurations(database[x]))) for x in COUNTERPARTS) >= 50


@pytest.mark.slow
def test_radam_of_optax_adds_eps_after_the_bias_correction(database):
    """With small gradients, so that eps matters."""
    for given, options in configurations(database["RAdam"]):
        expected = theirs(database["RAdam"].optim_cls, given, 1e-4)
        moved, unmoved = (ours(radam, options | {"moved": x}, 1e-4) for x in (True, False))
        assert relative_error(moved, expected) < 1e-9, given
        if not options["weight_decay"] or options["decoupled_weight_decay"]:
            assert relative_error(unmoved, expected) > 1e-7, given
