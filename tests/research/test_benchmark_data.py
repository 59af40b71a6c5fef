"""The benchmarks' data: CIFAR-10's layout, augmentation, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lib import data

RECORDS = 20


def _write(directory, rng, records=RECORDS):
    """All six files in the official layout; returns the pixels as planes, and the labels."""
    folder = directory / "cifar-10-batches-bin"
    folder.mkdir()
    planes, labels = {}, {}
    for name in (*data.CIFAR10_TRAIN, data.CIFAR10_TEST):
        planes[name] = rng.integers(0, 256, (records, 3, 32, 32), np.uint8)
        labels[name] = rng.integers(0, 10, (records, 1), np.uint8)
        flat = planes[name].reshape(records, -1)
        (folder / name).write_bytes(np.concatenate([labels[name], flat], axis=1).tobytes())
    return planes, labels


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CIFAR10_RECORDS", RECORDS)
    return tmp_path, *_write(tmp_path, np.random.default_rng(0))


def test_cifar10_is_read_as_it_is_laid_out(layout):
    directory, planes, labels = layout
    read = data.cifar10(directory)
    assert read.train.images.shape == (5 * RECORDS, 32, 32, 3)
    assert read.train.images.dtype == read.test.images.dtype == np.uint8
    assert read.train.labels.dtype == np.int32
    first, test = planes["data_batch_1.bin"], planes["test_batch.bin"]
    assert np.array_equal(read.train.images[7, 3, 5], first[7, :, 3, 5])
    assert np.array_equal(read.test.images, test.transpose(0, 2, 3, 1))
    assert np.array_equal(read.train.labels[:RECORDS], labels["data_batch_1.bin"][:, 0])


def test_the_checksum_knows_every_byte(layout):
    directory, _, _ = layout
    before = data.cifar10(directory).sha256
    path = directory / "cifar-10-batches-bin" / "test_batch.bin"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert data.cifar10(directory).sha256 != before


def test_a_missing_file_is_named(layout):
    directory, _, _ = layout
    (directory / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"has no .*data_batch_4\.bin\. Unpack .* --data"):
        data.cifar10(directory)


def test_a_truncated_file_is_named(layout):
    directory, _, _ = layout
    path = directory / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[: -data.CIFAR10_RECORD_BYTES])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin has 58387 bytes; whole it has 61460"):
        data.cifar10(directory)


def test_a_file_with_other_labels_is_refused(layout):
    directory, _, _ = layout
    path = directory / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"test_batch\.bin has the label 10; .* 0 to 9"):
        data.cifar10(directory)


def test_augmentation_takes_every_crop_and_mirror_image_equally_often():
    image = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1)
    count, pad = 20_000, 2
    batch = jnp.broadcast_to(jnp.asarray(image)[None], (count, 8, 8, 1))
    made = np.asarray(data.crop_and_flip(batch, jax.random.key(0), pad))
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    crops = [padded[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
    views = np.stack([*crops, *(crop[:, ::-1] for crop in crops)])
    found = (made[:, None] == views[None]).all(axis=(2, 3, 4))
    assert np.array_equal(found.sum(1), np.ones(count))  # each is one of the 50 views
    expected = count / 50
    assert np.abs(found.sum(0) - expected).max() < 5 * expected**0.5


def test_augmentation_depends_on_the_key():
    images = jnp.arange(4 * 32 * 32 * 3).reshape(4, 32, 32, 3)
    first, again, other = (data.crop_and_flip(images, jax.random.key(k)) for k in (0, 0, 1))
    assert jnp.array_equal(first, again)
    assert not jnp.array_equal(first, other)


def test_normalized_pixels():
    black, white = (jnp.full((1, 1, 1, 3), value, jnp.uint8) for value in (0, 255))
    mean, std = np.array(data.CIFAR10_MEAN), np.array(data.CIFAR10_STD)
    np.testing.assert_allclose(data.normalized(black)[0, 0, 0], -mean / std, rtol=1e-5)
    np.testing.assert_allclose(data.normalized(white)[0, 0, 0], (1 - mean) / std, rtol=1e-5)


def test_few_shot_batches_are_balanced_and_skip_what_is_left_over():
    labels = np.repeat(np.arange(10), 30)
    batches = data.few_shot_batches(labels, 50, 20, 3, seed=0)
    assert batches.shape == (3 * 2, 20)
    seen = np.unique(batches)
    assert len(seen) <= 50
    whole = data.few_shot_batches(labels, 50, 50, 1, seed=0)
    assert np.array_equal(np.bincount(labels[whole[0]]), np.full(10, 5))
    assert set(seen) <= set(whole[0].tolist())


def test_a_longer_run_begins_with_the_batches_of_a_shorter_one():
    labels = np.repeat(np.arange(10), 30)
    short, long = (data.few_shot_batches(labels, 50, 10, epochs, seed=1) for epochs in (2, 5))
    assert np.array_equal(long[: len(short)], short)
    assert not np.array_equal(long[len(short) : 2 * len(short)], short)


@pytest.mark.parametrize("train_images", [0, 5, 40])
def test_a_draw_takes_as_many_of_each_class(train_images):
    labels = np.arange(30) % 3
    assert (np.bincount(labels[data.few_shot_batches(labels, 6, 6, 1, 0)[0]]) == 2).all()
    with pytest.raises(ValueError, match=f"={train_images} must be a multiple of the 3 classes"):
        data.few_shot_batches(labels, train_images, 2, 1, 0)
