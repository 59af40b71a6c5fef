"""Small networks of which it is known which weights a norm makes scale-invariant."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.lib.data import digits
from benchmarks.lib.language import SOURCE

Params = dict[str, jax.Array]


class Network(NamedTuple):
    """A network and its data; its loss does not depend on the length of `invariant` weights."""

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, jax.Array], jax.Array]  # of the batch drawn with a key
    invariant: frozenset[str]


def centred(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Batch or layer norm without scale and offset."""
    x = x - x.mean(axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + 1e-6)


NORMS = {"batch norm": (0,), "layer norm": (1,), "no norm": None}
SIZES = {"hidden_1": (64, 64), "hidden_2": (64, 64), "hidden_3": (64, 64), "head": (64, 10)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> Callable[[jax.Array], Params]:
    """Normal weights whose variance is 1 over their inputs."""

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape) / np.prod(shape[:-1]) ** 0.5
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    return init


def mlp_logits(params: Params, x: jax.Array, norm: str) -> jax.Array:
    for name in ("hidden_1", "hidden_2", "hidden_3"):
        x = x @ params[name]
        axes = NORMS[norm]
        x = jax.nn.relu(x if axes is None else centred(x, axes))
    return x @ params["head"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp(norm: str) -> Network:
    data = digits()
    images, labels = jnp.asarray(data.images.reshape(-1, 64)), jnp.asarray(data.labels)

    def loss(params: Params, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (64,), 0, len(labels))
        return cross_entropy(mlp_logits(params, images[batch], norm), labels[batch])

    hidden = frozenset(SIZES) - {"head"} if norm != "no norm" else frozenset()
    return Network(drawn(SIZES), loss, hidden)


def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution [.., in] -> [.., out] of 8 x 8 images as matrix products."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1) @ kernel


def resnet() -> Network:
    """Two residual blocks with batch norm behind every convolution."""
    data, width = digits(), 16
    images, labels = jnp.asarray(data.images.reshape(-1, 8, 8, 1)), jnp.asarray(data.labels)
    convs = ("stem", *(f"block_{i}_{part}" for i in (1, 2) for part in ("in", "out")))
    shapes = {name: (9 * (1 if name == "stem" else width), width) for name in convs}

    def block(params: Params, x: jax.Array, name: str) -> jax.Array:
        return centred(convolved(x, params[name]), (0, 1, 2))

    def loss(params: Params, key: jax.Array) -> jax.Array:
        batch = jax.random.randint(key, (32,), 0, len(labels))
        x = jax.nn.relu(block(params, images[batch], "stem"))
        for i in (1, 2):
            inner = jax.nn.relu(block(params, x, f"block_{i}_in"))
            x = jax.nn.relu(x + block(params, inner, f"block_{i}_out"))
        return cross_entropy(x.mean((1, 2)) @ params["head"], labels[batch])

    return Network(drawn({**shapes, "head": (width, 10)}), loss, frozenset(convs))


def transformer(pre_norm: bool, tied: bool = False) -> Network:
    """Two blocks of width 32 over 32 characters; queries and keys are normalized.

    A tied head is the embedding's transpose.
    """
    source = np.frombuffer(SOURCE.read_bytes(), np.uint8)
    text, width, context, heads = jnp.asarray(source % 128), 32, 32, 4
    shapes: dict[str, tuple[int, ...]] = {"embed": (128, width), "place": (context, width)}
    for i in (1, 2):
        shapes |= {f"{name}_{i}": (width, width) for name in ("query", "key", "value", "out")}
        shapes |= {f"up_{i}": (width, 4 * width), f"down_{i}": (4 * width, width)}
    if not tied:
        shapes["head"] = (width, 128)
    mask = jnp.tril(jnp.ones((context, context), bool))

    def attended(params: Params, x: jax.Array, i: int) -> jax.Array:
        q, k, v = (
            (x @ params[f"{name}_{i}"]).reshape(*x.shape[:2], heads, -1)
            for name in ("query", "key", "value")
        )
        q, k = centred(q, (3,)), centred(k, (3,))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask[None, None], scores, -1e9))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return mixed @ params[f"out_{i}"]

    def fed(params: Params, x: jax.Array, i: int) -> jax.Array:
        return jax.nn.gelu(x @ params[f"up_{i}"]) @ params[f"down_{i}"]

    def loss(params: Params, key: jax.Array) -> jax.Array:
        starts = jax.random.randint(key, (8, 1), 0, len(text) - context)
        windows = text[starts + jnp.arange(context + 1)[None]]
        x = params["embed"][windows[:, :-1]] + params["place"][None]
        for i in (1, 2):
            for part in (attended, fed):
                if pre_norm:
                    x = x + part(params, centred(x, (2,)), i)
                else:
                    x = centred(x + part(params, x, i), (2,))
        head = params["embed"].T if tied else params["head"]
        return cross_entropy(centred(x, (2,)) @ head, windows[:, 1:])

    invariant = frozenset(f"{name}_{i}" for name in ("query", "key") for i in (1, 2))
    return Network(drawn(shapes), loss, invariant)


NETWORKS: dict[str, Callable[[], Network]] = {
    **{f"MLP, {norm}": (lambda norm=norm: mlp(norm)) for norm in NORMS},
    "ResNet": resnet,
    "transformer, pre-norm": lambda: transformer(True),
    "transformer, post-norm": lambda: transformer(False),
}
