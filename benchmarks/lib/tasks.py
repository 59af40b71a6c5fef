"""How a Flax NNX classifier becomes a sweep task, on digits and on CIFAR-10.

Both report ``error``, the percentage of held-out images that are misclassified, and
``train_loss``, the mean cross-entropy of the last epoch's batches as they were trained on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.lib.data import Cifar10, Images, crop_and_flip, few_shot_batches, normalized
from optax_decoupled import sweep

MakeModel = Callable[[nnx.Rngs], nnx.Module]
EVALUATED_AT_ONCE = 1000  # images, on an accelerator


def classification_task(
    make_model: MakeModel,
    data: Images,
    batches: Callable[[int], Any],
    steps: int,
    train_images: int,
) -> sweep.Task:
    """Trains a classifier on cross-entropy; reports the error on the images it never saw.

    The model state is the network's other variables (batch statistics), and of the last epoch
    the losses and the indices, which are all the training images: all the others are held out.
    (A mask of the images seen would cost a tenth of a small network's step.)

    Args:
      make_model: builds the model, which is called as ``model(images, train=...)``.
      data: all the images.
      batches: seed -> indices into ``data``, int32 [steps, batch size].
      steps: optimizer steps.
      train_images: images per epoch, a multiple of the batch size.
    """
    start, apply = _functions(make_model)
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    steps_per_epoch = train_images // len(batches(0)[0])

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, rest = start(key)
        return params, (rest, jnp.zeros(steps_per_epoch), jnp.zeros(train_images, jnp.int32))

    def loss(params: Any, state: Any, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        del key  # nothing random in the forward pass
        rest, losses, epoch = state
        logits, rest = apply(params, rest, images[batch], train=True)
        value = _cross_entropy(logits, labels[batch])
        return value, (rest, _latest(losses, value[None]), _latest(epoch, batch))

    def evaluate(params: Any, state: Any) -> dict[str, jax.Array]:
        rest, losses, epoch = state
        logits, _ = apply(params, rest, images, train=False)
        wrong = jnp.argmax(logits, axis=-1) != labels
        held_out = jnp.ones(len(labels), bool).at[epoch].set(False)
        return {"error": 100 * wrong.mean(where=held_out), "train_loss": losses.mean()}

    return sweep.Task(init=init, loss=loss, batches=batches, evaluate=evaluate, steps=steps)


def cifar10_task(
    make_model: MakeModel,
    data: Cifar10,
    *,
    train_images: int,
    batch_size: int,
    epochs: int,
    test_images: int,
) -> sweep.Task:
    """Trains on random crops and mirror images of CIFAR-10; reports the error on its test set.

    Args:
      make_model: builds the model, which is called as ``model(images, train=..., key=...)``.
      data: the official split.
      train_images: how many of the 50,000; each seed draws its own, as many of each class.
      batch_size: images per batch.
      epochs: passes over the images drawn.
      test_images: the first so many of the test set.
    """
    start, apply = _functions(make_model)
    steps_per_epoch = train_images // batch_size
    test = Images(*(array[:test_images] for array in data.test))

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, rest = start(key)
        return params, (rest, jnp.zeros(steps_per_epoch))

    def batches(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in few_shot_batches(data.train.labels, train_images, batch_size, epochs, seed):
            yield data.train.images[batch], data.train.labels[batch]

    def loss(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        rest, losses = state
        images, labels = batch
        augment_key, model_key = jax.random.split(key)
        x = normalized(crop_and_flip(images, augment_key))
        logits, rest = apply(params, rest, x, train=True, key=model_key)
        value = _cross_entropy(logits, labels)
        return value, (rest, _latest(losses, value[None]))

    def evaluate(params: Any, state: Any) -> dict[str, jax.Array]:
        rest, losses = state
        images, labels = _chunks(test)

        def predict(chunk: jax.Array) -> jax.Array:
            logits, _ = apply(params, rest, normalized(chunk), train=False)
            return jnp.argmax(logits, axis=-1)

        predicted = jax.lax.map(predict, jax.lax.optimization_barrier(images))
        return {"error": 100 * (predicted != labels).mean(), "train_loss": losses.mean()}

    steps = epochs * steps_per_epoch
    return sweep.Task(init=init, loss=loss, batches=batches, evaluate=evaluate, steps=steps)


def _chunks(data: Images) -> tuple[jax.Array, jax.Array]:
    """The images in parts that fit into memory, [parts, images in each, ...], and the labels.

    One part on CPU, where XLA runs a convolution in a loop about ten times slower.
    """
    on_cpu = jax.default_backend() == "cpu"
    most = 1 if on_cpu else max(1, len(data.labels) // EVALUATED_AT_ONCE)
    parts = next(n for n in range(most, 0, -1) if len(data.labels) % n == 0)
    images, labels = (jnp.asarray(x).reshape(parts, -1, *x.shape[1:]) for x in data)
    return images, labels


def _functions(make_model: MakeModel) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Pure functions: key -> (params, rest), and (params, rest, x, how...) -> (logits, rest)."""
    graphdef, _, _ = nnx.split(make_model(nnx.Rngs(0)), nnx.Param, ...)

    def start(key: jax.Array) -> tuple[Any, Any]:
        _, params, rest = nnx.split(make_model(nnx.Rngs(key)), nnx.Param, ...)
        return params, rest

    def apply(params: Any, rest: Any, x: jax.Array, **how: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(x, **how)
        _, _, rest = nnx.split(model, nnx.Param, ...)
        return logits, rest

    return start, apply


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _latest(kept: jax.Array, new: jax.Array) -> jax.Array:
    """The last so many values, after some more."""
    return jnp.concatenate([kept[len(new) :], new])
