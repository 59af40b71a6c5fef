"""The paper's network: Gastaldi's Shake-Shake ResNet, of 26 layers and two branches, in NNX."""

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.lib.models import ConvNorm, kernel_init, stages


@jax.custom_vjp
def shake(a: jax.Array, b: jax.Array, forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Mixes two branches with one coefficient, and their gradients with another.

    Args:
      a: the first branch, [N, height, width, channels].
      b: the second.
      forward: α [N, 1, 1, 1]; the result is α·a + (1 − α)·b.
      backward: β [N, 1, 1, 1]; of the gradient, a receives the part β and b the part 1 − β.
    """
    del backward
    return forward * a + (1 - forward) * b


def _shake_forward(
    a: jax.Array, b: jax.Array, forward: jax.Array, backward: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return shake(a, b, forward, backward), backward


def _shake_backward(backward: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
    none = jnp.zeros_like(backward)  # nothing is learned through the coefficients
    return backward * gradient, (1 - backward) * gradient, none, none


shake.defvjp(_shake_forward, _shake_backward)


class Branch(nnx.Module):
    """ReLU, 3×3 convolution, batch norm, twice."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, outputs, 3, stride, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.first(nnx.relu(x), train=train)
        return self.second(nnx.relu(x), train=train)


class Skip(nnx.Module):
    """The skip connection where the width changes: two 1×1 paths, side by side in the channels.

    The second sees the image shifted by one pixel down and to the right, so that where the
    stride is 2 the two see different pixels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        how = dict(use_bias=False, kernel_init=kernel_init, rngs=rngs)
        self.paths = nnx.List([nnx.Conv(inputs, outputs // 2, (1, 1), **how) for _ in range(2)])
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.stride = stride

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nnx.relu(x)
        shifted = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))[:, :-1, :-1]
        every = slice(None, None, self.stride)
        seen = (x[:, every, every], shifted[:, every, every])
        halves = [path(part) for path, part in zip(self.paths, seen, strict=True)]
        return self.norm(jnp.concatenate(halves, axis=-1), use_running_average=not train)


class ShakeBlock(nnx.Module):
    """Two branches, mixed at random, beside the skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.branches = nnx.List([Branch(inputs, outputs, stride, rngs=rngs) for _ in range(2)])
        self.skip = Skip(inputs, outputs, stride, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        a, b = (branch(x, train=train) for branch in self.branches)
        skip = x if self.skip is None else self.skip(x, train=train)
        if not train:
            return skip + 0.5 * (a + b)
        if key is None:
            raise ValueError("key=None with train=True: Shake-Shake trains at random; pass a key.")
        forward, backward = jax.random.uniform(key, (2, len(x), 1, 1, 1))
        return skip + shake(a, b, forward, backward)


class ShakeShake(nnx.Module):
    """Shake-Shake 26 2×``width``d, with the coefficients of "Shake-Shake-Image".

    A 3×3 convolution to 16 channels, then three stages of ``blocks`` blocks of ``width``, twice
    and four times as many channels. In training every block draws, for each image, uniform
    coefficients in [0, 1], independent in the forward and the backward pass; evaluation takes
    1/2. In the paper ``width`` is 64 and 96, and it gives 11.6 M and 25.6 M parameters; these
    layers have 11.65 M and 26.19 M.

    References:
      Gastaldi, Shake-Shake regularization, arXiv:1705.07485.
    """

    def __init__(self, width: int, *, blocks: int = 4, rngs: nnx.Rngs):
        self.stem = ConvNorm(3, 16, 3, rngs=rngs)
        self.blocks = stages(ShakeBlock, (16, width, 2 * width, 4 * width), blocks, rngs)
        self.head = nnx.Linear(4 * width, 10, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> jax.Array:
        x = self.stem(x, train=train)
        for i, block in enumerate(self.blocks):
            x = block(x, train=train, key=None if key is None else jax.random.fold_in(key, i))
        return self.head(nnx.relu(x).mean(axis=(1, 2)))
