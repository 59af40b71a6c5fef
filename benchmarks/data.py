"""Data for the benchmarks: real images that are on disk once scikit-learn is installed."""

from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """Images [N, ...], float32 in [0, 1], and their labels [N], int32."""

    images: np.ndarray
    labels: np.ndarray


def digits() -> Images:
    """Scikit-learn's 1797 scanned digits, 8×8 and flattened; pixels (0 to 16) divided by 16."""
    from sklearn.datasets import load_digits  # a second of import that only this data needs

    images, labels = load_digits(return_X_y=True)
    return Images((images / 16).astype(np.float32), labels.astype(np.int32))


def few_shot_batches(
    labels: np.ndarray, train_images: int, batch_size: int, epochs: int, seed: int
) -> np.ndarray:
    """Batches of a few images drawn from many, the same number of each class.

    The draw depends on the seed, so the spread over seeds contains the luck of the draw
    (on the digits, four times that of the initial weights). All other images are held out.

    Args:
      labels: of all the images.
      train_images: how many to draw; a multiple of the number of classes and of
        ``batch_size``.
      batch_size: images per batch.
      epochs: passes over the drawn images, each in a new order.
      seed: of draw and order.

    Returns:
      Indices into ``labels``, int32 [steps, batch_size].
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    each = train_images // len(classes)
    drawn = [rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes]
    train = np.concatenate(drawn).astype(np.int32)
    return np.concatenate([rng.permutation(train) for _ in range(epochs)]).reshape(-1, batch_size)
