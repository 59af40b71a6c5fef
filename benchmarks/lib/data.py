"""Data for the benchmarks: scikit-learn's digits, MNIST-1D, and CIFAR-10 from a directory."""

import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Images(NamedTuple):
    """Images [N, ...] and their labels [N], int32.

    Digits are float32 in [0, 1], MNIST-1D float32 [N, 40, 1] of zero mean and unit variance,
    CIFAR-10 uint8 [N, 32, 32, 3] as it is stored.
    """

    images: np.ndarray
    labels: np.ndarray


class Cifar10(NamedTuple):
    """The official split, and the SHA-256 of the six files it was read from."""

    train: Images
    test: Images
    sha256: str


CIFAR10_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "test_batch.bin"
CIFAR10_RECORDS = 10_000  # in each file: a label, then 32×32 pixels of red, of green, of blue
CIFAR10_RECORD_BYTES = 1 + 3 * 32 * 32
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def digits() -> Images:
    """Scikit-learn's 1797 scanned digits, 8×8 and flattened; pixels (0 to 16) divided by 16."""
    from sklearn.datasets import load_digits  # a second of import that only this data needs

    images, labels = load_digits(return_X_y=True)
    return Images((images / 16).astype(np.float32), labels.astype(np.int32))


@functools.cache  # a figure asks for them once for each of its parts
def mnist1d() -> Images:
    """The default MNIST-1D (arXiv:2011.14439): 5000 curves of 40 numbers in ten classes.

    The package `mnist1d` computes them in a second, from its own seed and without a download.
    Its split into 4000 and 1000 is not used: all examples have the same distribution. The first
    call seeds the global random generators of NumPy and of Python. The arrays are read-only.
    """
    from mnist1d.data import get_dataset_args, make_dataset  # imports requests and pyplot

    made = make_dataset(get_dataset_args())
    curves = np.concatenate([made["x"], made["x_test"]])[..., None]
    labels = np.concatenate([made["y"], made["y_test"]])
    images = Images(curves.astype(np.float32), labels.astype(np.int32))
    for array in images:
        array.flags.writeable = False
    return images


def cifar10(directory: Path) -> Cifar10:
    """CIFAR-10 in its official binary layout.

    Args:
      directory: holds `cifar-10-batches-bin/` with the five training files and the test file
        of the "binary version" at https://www.cs.toronto.edu/~kriz/cifar.html.

    Raises:
      ValueError: naming the file that is missing, truncated or no such file.
    """
    digest = hashlib.sha256()
    parts = [_cifar10_file(directory, name, digest) for name in (*CIFAR10_TRAIN, CIFAR10_TEST)]
    train = Images(*(np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)))
    return Cifar10(train, parts[-1], digest.hexdigest())


def _cifar10_file(directory: Path, name: str, digest: "hashlib._Hash") -> Images:
    path = directory / "cifar-10-batches-bin" / name
    way_out = (
        "Unpack the binary version of https://www.cs.toronto.edu/~kriz/cifar.html and pass the "
        "directory that holds cifar-10-batches-bin as --data."
    )
    if not path.is_file():
        raise ValueError(f"directory={str(directory)!r} has no {path}. {way_out}")
    raw, size = path.read_bytes(), CIFAR10_RECORDS * CIFAR10_RECORD_BYTES
    if len(raw) != size:
        raise ValueError(f"{path} has {len(raw)} bytes; whole it has {size}. {way_out}")
    records = np.frombuffer(raw, np.uint8).reshape(CIFAR10_RECORDS, CIFAR10_RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() > 9:
        raise ValueError(f"{path} has the label {labels.max()}; CIFAR-10's are 0 to 9. {way_out}")
    digest.update(raw)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return Images(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int32))


def crop_and_flip(images: jax.Array, key: jax.Array, pad: int = 4) -> jax.Array:
    """The usual augmentation: random crops of the zero-padded images, half of them mirrored.

    Args:
      images: [N, height, width, channels] of any dtype.
      key: of the draws, which are independent for each image.
      pad: pixels on each side.

    Returns:
      Images of the same shape and dtype.
    """
    crop_key, flip_key = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

    cropped = jax.vmap(crop)(padded, corners)
    flip = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, cropped[:, :, ::-1], cropped)


def normalized(images: jax.Array) -> jax.Array:
    """CIFAR-10's uint8 pixels as float32 of zero mean and unit variance in each channel."""
    mean, std = (255 * jnp.array(x) for x in (CIFAR10_MEAN, CIFAR10_STD))
    return (images.astype(jnp.float32) - mean[None, None, None]) / std[None, None, None]


def few_shot_batches(
    labels: np.ndarray, train_images: int, batch_size: int, epochs: int, seed: int
) -> np.ndarray:
    """Batches of a few images drawn from many, the same number of each class.

    The draw depends on the seed, so the spread over seeds contains the luck of the draw. All
    other images are held out.

    Args:
      labels: of all the images.
      train_images: how many to draw; a multiple of the number of classes.
      batch_size: images per batch; what an epoch has left over is skipped.
      epochs: passes over the drawn images, each in a new order. A longer run begins with
        the batches of a shorter one.
      seed: of draw and order.

    Returns:
      Indices into ``labels``, int32 [steps, batch_size].
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    each = train_images // len(classes)
    fewest = min(int(np.sum(labels == c)) for c in classes)
    if train_images % len(classes) or not 0 < each <= fewest:
        raise ValueError(
            f"train_images={train_images} must be a multiple of the {len(classes)} classes, and at "
            f"most {len(classes) * fewest}: the rarest class has {fewest} images."
        )
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes]
    train = np.concatenate(drawn).astype(np.int32)
    whole = len(train) - len(train) % batch_size
    orders = [rng.permutation(train)[:whole] for _ in range(epochs)]
    return np.concatenate(orders).reshape(-1, batch_size)
