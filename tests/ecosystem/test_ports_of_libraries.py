"""Ports from libraries around PyTorch and JAX take their steps; another convention does not.

The trajectories were recorded from the packages themselves at two learning rates that follow a
cosine: golden/make_libraries.py and golden/make_rollfast.py. FlashOptim 0.1.4, NVIDIA's
Emerging-Optimizers 0.3.0 (weight_decay_method in mixin.py) and PaLM are written out by formula.
"""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from problems import relative_error

import optax_decoupled as od

# A wrong convention removes much more than a decay of the paper's size.
pytestmark = pytest.mark.filterwarnings("ignore:weight_decay:UserWarning")

HERE = pathlib.Path(__file__).parent / "golden"
PROBLEM, LIBRARIES, ROLLFAST = (
    json.loads((HERE / f"{name}.json").read_text()) for name in ("pytorch", "libraries", "rollfast")
)
STEPS, KEEP = PROBLEM["steps"], PROBLEM["keep"]
CURVATURE, NOISE, THETA = (np.asarray(PROBLEM[x]) for x in ("curvature", "noise", "theta"))
COSINE = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))


def path(tx, dtype=float, shape=(6,)):
    """The parameters after the steps that are kept."""
    curvature, theta = (jnp.asarray(x, dtype).reshape(shape) for x in (CURVATURE, THETA))

    def step(carry, noise):
        params, state = carry
        updates, state = tx.update(curvature * params + noise, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    noise = jnp.asarray(NOISE, dtype).reshape(-1, *shape)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, noise)[1])
    return np.asarray(run((theta, tx.init(theta)))).reshape(STEPS, -1)[KEEP]


def cosine(count):
    """In the precision of the run; Optax's cosine is float32 under x64 too."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(count, float) / STEPS))


def squared(count):
    return cosine(count) ** 2


def adam(lr, **options):
    return optax.adam(lambda t: lr * cosine(t), **options)


def lion(lr):
    return optax.lion(lambda t: lr * cosine(t), weight_decay=0.0)


def sgd(lr):
    return optax.sgd(lambda t: lr * cosine(t), 0.9)


def adam_of_pytorch_optimizer(lr):
    """Adam with 1e-8, and 1e-15 under the root, added before the bias correction."""
    correction = lambda t: 1 - 0.999 ** (jnp.asarray(t, float) + 1)
    scale = optax.inject_hyperparams(optax.scale_by_adam)(
        eps=lambda t: 1e-8 / jnp.sqrt(correction(t)), eps_root=lambda t: 1e-15 / correction(t)
    )
    return optax.chain(scale, optax.scale_by_learning_rate(lambda t: lr * cosine(t)))


# What each convention makes of the number v: the decay and its schedule.
CONVENTIONS = {
    "the paper's": lambda lr, v: (v, cosine),
    "PyTorch's": lambda lr, v: (v * lr, cosine),
    "corrected": lambda lr, v: (v * lr, squared),
    "constant": lambda lr, v: (v, None),
    "squared rate": lambda lr, v: (v * lr**2, squared),
}
# The convention of each library, and its optimizer without decay.
OF = {
    "optimi.AdamW": ("the paper's", lambda lr: adam(lr, b2=0.99, eps=1e-6)),
    "optimi.SGD": ("the paper's", sgd),
    "optimi.Lion": ("the paper's", lion),
    "pytorch_optimizer.Lion": ("constant", lion),
    "pytorch_optimizer.AdamC": ("constant", adam_of_pytorch_optimizer),
    "pytorch_optimizer.AdamC, normalized": ("corrected", adam_of_pytorch_optimizer),
    "pytorch_optimizer.SGDW": ("PyTorch's", sgd),  # it accepts fixed_decay and ignores it
    "pytorch_optimizer.QHAdam": ("PyTorch's", adam),
    "timm's adamw": ("PyTorch's", adam),
    "timm's adamc": ("corrected", adam),
    "FlashAdamW": ("the paper's", adam),
    "Emerging-Optimizers, decoupled": ("PyTorch's", adam),
    "Emerging-Optimizers, independent": ("constant", adam),
    "Emerging-Optimizers, palm": ("squared rate", adam),
}
FORMULAS = {  # v, and the fractions that the steps remove at the rates α_t with α_0 the first
    "FlashAdamW": (1e-3, lambda v, rates: v * rates / rates[0]),
    "Emerging-Optimizers, decoupled": (0.1, lambda v, rates: v * rates),
    "Emerging-Optimizers, independent": (1e-3, lambda v, rates: v + 0 * rates),
    "Emerging-Optimizers, palm": (1.0, lambda v, rates: v * rates**2),  # PaLM's own is v = 1
}
PORTS = {
    "optimi.AdamW": lambda lr, v: od.adamw(lr, v, schedule=cosine, b2=0.99, eps=1e-6),
    "optimi.SGD": lambda lr, v: od.sgdw(lr, v, schedule=cosine, scale_before_momentum=False),
    "pytorch_optimizer.SGDW": lambda lr, v: od.sgdw(
        lr, od.weight_decay_from_pytorch(v, lr), schedule=cosine, scale_before_momentum=False
    ),
    "timm's adamw": lambda lr, v: od.adamw(
        lr, od.weight_decay_from_pytorch(v, lr), schedule=cosine
    ),
    "timm's adamc": lambda lr, v: od.adamc(
        lr, od.weight_decay_from_pytorch(v, lr), schedule=cosine, normalized=True
    ),
    "FlashAdamW": lambda lr, v: od.adamw(lr, v, schedule=cosine),
}


def gradient(theta, t):
    return CURVATURE * theta + NOISE[t]


def formula_cases():
    for library, (v, fractions) in FORMULAS.items():
        for lr in (0.02, 0.05):
            theirs = reference.adam(THETA, gradient, COSINE, lr, decay=fractions(v, lr * COSINE))
            yield library, lr, v, theirs[KEEP]


CASES = [
    (case["library"], case["lr"], case["weight_decay"], np.asarray(case["theta"]))
    for case in LIBRARIES["cases"].values()
] + list(formula_cases())
NAMES = [f"{library} at {lr}" for library, lr, *_ in CASES]


@pytest.mark.parametrize(("library", "lr", "v", "theirs"), CASES, ids=NAMES)
def test_one_convention_takes_their_steps(library, lr, v, theirs):
    right, make = OF[library]
    with jax.enable_x64(True):
        for name, convention in CONVENTIONS.items():
            ours = path(od.decouple(make(lr), *convention(lr, v)))
            error = relative_error(ours, theirs)
            assert error < 1e-7 if name == right else error > 1e-3, (name, error)


@pytest.mark.parametrize(
    ("library", "lr", "v", "theirs"),
    [case for case in CASES if case[0] in PORTS],
    ids=[name for name, case in zip(NAMES, CASES, strict=True) if case[0] in PORTS],
)
def test_an_optimizer_takes_their_steps(library, lr, v, theirs):
    with jax.enable_x64(True):
        assert relative_error(path(PORTS[library](lr, v)), theirs) < 1e-9


@pytest.mark.parametrize("lr", [0.02, 0.05])
def test_l2_of_emerging_optimizers(lr):
    theirs = reference.adam(THETA, gradient, COSINE, lr, l2=0.1)[KEEP]
    with jax.enable_x64(True):
        assert relative_error(path(od.adam_l2(lr, 0.1, schedule=cosine)), theirs) < 1e-9
        assert relative_error(path(od.adamw(lr, 0.1 * lr, schedule=cosine)), theirs) > 1e-3


def rollfast(name):
    case = ROLLFAST["cases"][name]
    rate = optax.cosine_decay_schedule(case["lr"], STEPS)
    return rate, lambda tx: relative_error(path(tx, jnp.float32, (2, 3)), np.asarray(case["theta"]))


@pytest.mark.parametrize("lr", [0.02, 0.005])
def test_soda_of_rollfast(lr):
    rate, error = rollfast(f"soda at {lr}")
    pulled = lambda first: od.decouple(
        optax.adam(rate), lambda t: 1 / (t + first), toward=od.toward_init()
    )
    assert error(pulled(2)) < 1e-6
    assert error(pulled(1)) > 5e-4
    assert error(od.decouple(optax.adam(rate), lambda t: 0.4 / (t + 2))) > 1e-1


@pytest.mark.parametrize("lr", [0.02, 0.005])
def test_hyperball_of_rollfast_adds_its_decay_to_the_direction(lr):
    def ours(rate, decay):
        direction = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(decay))
        return od.hyperball(direction, rate)

    for decay, other in ((0.0, 0.3), (0.3, 0.0)):
        rate, error = rollfast(f"hyperball at {lr}, {decay}")
        assert error(ours(rate, decay)) < 2e-6
        assert error(ours(rate, other)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "packages", "recorded"),
    [
        ("make_libraries", ("torch", "optimi", "pytorch_optimizer", "timm"), LIBRARIES),
        ("make_rollfast", ("rollfast.optim.hyperball",), ROLLFAST),
    ],
)
def test_the_installed_packages_still_take_the_recorded_steps(
    monkeypatch, script, packages, recorded
):
    for package in packages:
        pytest.importorskip(package, reason=f"golden/{script}.py needs {package}")
    monkeypatch.syspath_prepend(HERE)
    cases = runpy.run_path(str(HERE / f"{script}.py"))["record"]()["cases"]
    assert cases.keys() == recorded["cases"].keys()
    for name, case in cases.items():
        expected = np.asarray(recorded["cases"][name]["theta"])
        assert relative_error(np.asarray(case["theta"]), expected) < 1e-6, name
