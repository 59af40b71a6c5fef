"""Networks for the benchmarks, and how a Flax NNX classifier becomes a sweep task."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from data import Images
from flax import nnx

from optax_decoupled import sweep


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


def classification_task(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    data: Images,
    batches: Callable[[int], Any],
    steps: int,
    train_images: int,
) -> sweep.Task:
    """Trains a classifier on cross-entropy; reports the error on the images it never saw.

    The model state is the network's other variables (batch statistics) and the indices of
    the last epoch, which are all the training images: the metric ``error`` is in percent of
    all the others. (A mask of the images seen would cost a tenth of a small network's step.)

    Args:
      make_model: builds the model, which is called as ``model(images, train=...)``.
      data: all the images.
      batches: seed -> indices into ``data``, int32 [steps, batch size].
      steps: optimizer steps.
      train_images: images per epoch, a multiple of the batch size.
    """
    graphdef, _, _ = nnx.split(make_model(nnx.Rngs(0)), nnx.Param, ...)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, rest = nnx.split(make_model(nnx.Rngs(key)), nnx.Param, ...)
        return params, (rest, jnp.zeros(train_images, jnp.int32))

    def loss(params: Any, state: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        del key  # nothing random in the forward pass
        rest, epoch = state
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(images[batch], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return losses.mean(), (rest, jnp.concatenate([epoch[len(batch) :], batch]))

    def evaluate(params: Any, state: Any) -> dict[str, jax.Array]:
        rest, epoch = state
        model = nnx.merge(graphdef, params, rest, copy=True)
        wrong = jnp.argmax(model(images, train=False), axis=-1) != labels
        held_out = jnp.ones(len(labels), bool).at[epoch].set(False)
        return {"error": 100 * wrong.mean(where=held_out)}

    return sweep.Task(init=init, loss=loss, batches=batches, evaluate=evaluate, steps=steps)
