"""Generated parts of the pages that are code and what it prints."""

import contextlib
import io
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_decoupled as od

HEALTHY = """\
params = {"embed": {"embedding": jnp.ones((100, 32))}}
for i in range(3):
    params[f"layer_{i}"] = {
        "attention": {"kernel": jnp.ones((32, 32)), "bias": jnp.zeros(32)},
        "norm": {"scale": jnp.ones(32)},
    }

rules = od.decay_rules((".*/kernel", 1.0), ("embed/.*", 0.5), (".*", 0.0))
report = od.explain_weight_decay(od.adamw(1e-3, 1e-4, mask=rules), params)
print(report)
report.check()  # raises if there is any warning: pin it in a test of your own
"""
BROKEN = """\
tx = optax.chain(optax.adam(1e-3), optax.add_decayed_weights(1e-4))
print(od.explain_weight_decay(tx, params))
"""
SEEN = """\
import jax.numpy as jnp, optax
import optax_decoupled as od

params = {f"layer_{i}": {"kernel": jnp.ones((64, 64)), "bias": jnp.zeros(64)} for i in range(12)}
tx = optax.chain(optax.adam(1e-3), optax.add_decayed_weights(1e-4))  # trains without a warning
print(od.explain_weight_decay(tx, params), end="\\n\\n")

tx = od.adamw(1e-3, 1e-4, mask=od.decay_mask)
report = od.explain_weight_decay(tx, params)
print(report)
report.check()  # raises if there is any warning: pin it in a test of your own
"""
PLANNED = """\
import optax_decoupled as od

decay = od.weight_decay_from_pytorch(0.1, learning_rate=3e-4)
plan = od.plan_weight_decay(100_000, weight_decay=decay, learning_rate=3e-4)
print(plan)
"""
AFTER_SGD = """\
params = {"embedder": {"embedding": jnp.ones((1000, 300))}, "mlp": {"kernel": jnp.ones((512, 1))}}
tx = optax.chain(optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(3e-6))
report = od.explain_weight_decay(tx, params, steps=10_520)
print(report)
assert {row.kind for row in report.rows} == {"growing"}
"""
SIXTY_STEPS = """\
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
images = images / 16


def norm_after(tx, steps=60):
    def loss(w):
        return optax.losses.softmax_cross_entropy_with_integer_labels(images @ w, labels).mean()

    @jax.jit
    def step(w, state):
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    w = 0.1 * jax.random.normal(jax.random.key(0), (64, 10))
    state = tx.init(w)
    for _ in range(steps):
        w, state = step(w, state)
    return float(jnp.linalg.norm(w))


sgd = optax.sgd(0.1, momentum=0.9)
chained = norm_after(optax.chain(sgd, optax.add_decayed_weights(3e-3)))
without, meant = norm_after(sgd), norm_after(od.decouple(sgd, 3e-3))
print(f"chained after SGD {chained:.1f}, no decay {without:.1f}, decouple {meant:.1f}")
assert meant < without < chained
"""
LINEN_NAMES = """\
from flax import linen as nn


class Critic(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.LayerNorm()(nn.Dense(32)(x))))


params = Critic().init(jax.random.key(0), jnp.ones((1, 8)))["params"]


def neither_bias_nor_norm(params):
    names = lambda path: tuple(key.key for key in path)[-2:]
    chosen = lambda path, _: names(path)[-1] != "bias" and names(path) != ("LayerNorm", "scale")
    return jax.tree_util.tree_map_with_path(chosen, params)


tx = optax.adamw(3e-4, weight_decay=1e-4, mask=neither_bias_nor_norm)
report = od.explain_weight_decay(tx, params)
print(report)
assert next(row for row in report.rows if row.path == "LayerNorm_0/scale").decay_per_step > 0
"""
MUON = """\
matrix, norm = jnp.ones((64, 64)), {"scale": jnp.ones(64)}
params = {
    "token_embedder": {"embedding": jnp.ones((256, 64))},
    "decoder": {
        "layer": {"mlp": {"kernel": matrix}, "norm": norm},
        "decoder_norm": norm,
        "logits_dense": {"kernel": jnp.ones((64, 256))},
    },
}
by_muon = lambda path: "mlp" in jax.tree_util.keystr(path)
numbers = jax.tree_util.tree_map_with_path(
    lambda path, _: optax.contrib.MuonDimensionNumbers() if by_muon(path) else None, params
)
tx = optax.contrib.muon(
    3e-5, weight_decay=0.0, adam_weight_decay=0.1, muon_weight_dimension_numbers=numbers
)
report = od.explain_weight_decay(tx, params)
print(report)
assert [row.path for row in report.rows if row.kind == "none"] == ["decoder/layer/mlp/kernel"]
"""
ADAFACTOR = """\
params = {"embed": {"embedding": jnp.ones((256, 64))}, "mlp": {"kernel": jnp.ones((64, 256))}}
tx = optax.adafactor(1.6e-3, weight_decay_rate=0.1)
report = od.explain_weight_decay(tx, params)
print(report)
assert all(abs(row.decay_per_step - 0.1) < 1e-4 for row in report.rows)
"""


def explained() -> str:
    """Two snippets and what they print."""
    namespace = _namespace()
    return (
        "A healthy optimizer:\n\n"
        + _run(HEALTHY, namespace)
        + "\nA broken optimizer, which Optax trains without a warning:\n\n"
        + _run(BROKEN, namespace)
    )


def _namespace() -> dict[str, Any]:
    return {"jax": jax, "jnp": jnp, "optax": optax, "od": od}


def _run(code: str, namespace: dict[str, Any], most: int | None = None) -> str:
    """Code and what it prints, or so many of its first lines."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    printed = output.getvalue().splitlines(keepends=True)
    text = "".join(printed[:most])
    if most is not None:
        text += "...\n"
    return f"```python\n{code}```\n\n```text\n{text}```\n"


FOUND = {
    "found_after_sgd": AFTER_SGD,
    "found_sixty_steps": SIXTY_STEPS,
    "found_linen_names": LINEN_NAMES,
    "found_muon": MUON,
    "found_adafactor": ADAFACTOR,
}
SECTIONS = {
    "explained": explained,
    "seen": lambda: _run(SEEN, {}),
    "planned": lambda: _run(PLANNED, {}, most=9),
    **{name: lambda code=code: _run(code, _namespace()) for name, code in FOUND.items()},
}
