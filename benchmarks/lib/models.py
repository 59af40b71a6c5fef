"""Networks for the benchmarks in Flax NNX. The paper's own are in `shake_shake.py`.

All are called as ``model(x, train=...)``; those for images also take a ``key`` when they train.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """As both ResNets' authors draw them: variance 2 / (kernel area · output channels).

    Drawn flat, because XLA takes 4 s on CPU to compile random bits of four axes, and 0.3 s flat.
    """
    variance = jnp.asarray(2 / (math.prod(shape) / shape[-2]), dtype)
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape) * jnp.sqrt(variance)


class MLP(nnx.Module):
    """Linear layers of the given sizes with ReLU between, batch norm before each ReLU or none.

    Batch norm keeps running averages of decay 0.9, which evaluation uses.
    """

    def __init__(self, sizes: tuple[int, ...], *, batch_norm: bool, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise(sizes))
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])
        normalized = sizes[1:-1] if batch_norm else ()
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=0.9, rngs=rngs) for n in normalized])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        *hidden, head = self.layers
        for i, layer in enumerate(hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x, use_running_average=not train)
            x = nnx.relu(x)
        return head(x)


class ConvNet(nnx.Module):
    """3×3 convolutions with batch norm and ReLU, each halving the image; mean; linear head."""

    def __init__(self, channels: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
        pairs = list(itertools.pairwise(channels))
        convolutions = [nnx.Conv(*pair, (3, 3), strides=2, rngs=rngs) for pair in pairs]
        self.convolutions = nnx.List(convolutions)
        self.norms = nnx.List([nnx.BatchNorm(n, momentum=0.9, rngs=rngs) for n in channels[1:]])
        self.head = nnx.Linear(channels[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(convolution(x), use_running_average=not train))
        return self.head(x.mean(axis=(1, 2)))


class ConvNet1D(nnx.Module):
    """1-d convolutions of sizes 5, 3 and 3, each of stride 2 and with ReLU; mean; linear head.

    A convolution is a matrix product of patches, because XLA on CPU runs convolutions inside a
    loop about ten times slower.

    Args:
      channels: of each convolution.
      classes: of the head.
      make_norm: makes what normalizes that many channels before each ReLU; None for nothing.
      rngs: of the initial weights.
    """

    SIZES = (5, 3, 3)

    def __init__(
        self,
        channels: int,
        classes: int,
        make_norm: Callable[..., nnx.BatchNorm | nnx.LayerNorm] | None,
        *,
        rngs: nnx.Rngs,
    ):
        inputs = (1, channels, channels)
        pairs = zip(self.SIZES, inputs, strict=True)
        self.layers = nnx.List([nnx.Linear(s * i, channels, rngs=rngs) for s, i in pairs])
        norms = [make_norm(channels, rngs=rngs) for _ in self.SIZES] if make_norm else []
        self.norms = nnx.List(norms)
        self.head = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i, (size, layer) in enumerate(zip(self.SIZES, self.layers, strict=True)):
            x = layer(patches(x, size, 2))
            if self.norms:
                norm = self.norms[i]
                averages = {"use_running_average": not train}
                x = norm(x, **averages) if isinstance(norm, nnx.BatchNorm) else norm(x)
            x = nnx.relu(x)
        return self.head(x.mean(axis=1))


def patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Windows of zero-padded sequences: [N, length, C] -> [N, ⌈length / stride⌉, size · C].

    The product with a kernel [size · C, outputs] is the convolution of padding ``size // 2`` by
    a kernel [size, C, outputs], for an odd size.
    """
    length = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (0, 0)))
    return jnp.concatenate([padded[:, k : k + length : stride] for k in range(size)], axis=-1)


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.convolution(x), use_running_average=not train)


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions beside the identity, or a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, outputs, 3, stride, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, rngs=rngs)
        changes = (inputs, 1) != (outputs, stride)
        self.skip = ConvNorm(inputs, outputs, 1, stride, rngs=rngs) if changes else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.second(nnx.relu(self.first(x, train=train)), train=train)
        return nnx.relu(y + (x if self.skip is None else self.skip(x, train=train)))


class ResNet(nnx.Module):
    """A batch-norm ResNet for CIFAR of 2 + 6·``blocks`` layers (arXiv:1512.03385).

    A 3×3 stem and three stages of ``blocks`` blocks, ``width``, twice and four times as wide,
    the last two beginning with a stride of 2; mean; linear head. For CPUs, ``small_maps`` gives
    the stem a stride of 2 and 2×2 mean pooling: blocks see maps of a sixteenth of the pixels.
    """

    def __init__(self, blocks: int, width: int, *, small_maps: bool = False, rngs: nnx.Rngs):
        self.small_maps = small_maps
        self.stem = ConvNorm(3, width, 3, 2 if small_maps else 1, rngs=rngs)
        self.blocks = stages(ResidualBlock, (width, width, 2 * width, 4 * width), blocks, rngs)
        self.head = nnx.Linear(4 * width, 10, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        del key  # nothing random
        x = nnx.relu(self.stem(x, train=train))
        if self.small_maps:
            x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(x.mean(axis=(1, 2)))


def stages(block: type, widths: tuple[int, ...], blocks: int, rngs: nnx.Rngs) -> nnx.List:
    """Stages of ``blocks`` blocks, from each width to the next; all but the first halve."""
    made = []
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        stride = 1 if stage == 0 else 2
        made.append(block(inputs, outputs, stride, rngs=rngs))
        made += [block(outputs, outputs, 1, rngs=rngs) for _ in range(blocks - 1)]
    return nnx.List(made)
