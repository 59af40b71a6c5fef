"""The benchmarks' networks: Shake-Shake as Gastaldi defines it, ResNets, and their tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_decoupled as od
from benchmarks.lib import data
from benchmarks.lib.models import MLP, ResNet
from benchmarks.lib.shake_shake import ShakeBlock, ShakeShake, Skip, shake
from benchmarks.lib.tasks import cifar10_task, classification_task

IMAGES = 128


def _parameters(make):
    return nnx.split(nnx.eval_shape(make), nnx.Param, ...)[1]


def _count(width):
    """Parameters of Shake-Shake 26 2×width d, from the layers' shapes."""
    norm = lambda n: 2 * n
    total, inputs = 9 * 3 * 16 + norm(16), 16
    for outputs in (width, 2 * width, 4 * width):
        skip = inputs * outputs + norm(outputs)
        first = 2 * (9 * inputs * outputs + 9 * outputs**2 + 2 * norm(outputs))
        others = 3 * 2 * (2 * 9 * outputs**2 + 2 * norm(outputs))
        total, inputs = total + skip + first + others, outputs
    return total + inputs * 10 + 10


# The paper prints 11.6 M and 25.6 M; the layers that it cites have 11.65 M and 26.19 M.
@pytest.mark.parametrize(("width", "millions"), [(64, 11.6), (96, 25.6)])
def test_shake_shake_has_the_papers_parameters(width, millions):
    params = _parameters(lambda: ShakeShake(width, rngs=nnx.Rngs(0)))
    count = sum(p.size for p in jax.tree.leaves(params))
    assert count == _count(width)
    assert abs(count / 1e6 - millions) < 0.025 * millions


def test_shake_shake_has_26_layers_of_which_kernels_decay():
    params = _parameters(lambda: ShakeShake(64, rngs=nnx.Rngs(0)))
    decays = jax.tree.leaves(od.decay_mask(params))
    kernels = [p for p in jax.tree.leaves(params) if p.ndim > 1]
    assert sum(map(bool, decays)) == len(kernels)
    widths = [p.shape for p in kernels if p.shape[:2] == (3, 3)]
    assert len(widths) == 1 + 2 * 24  # stem, two branches of 24; with the head 26 layers deep
    assert {shape[-1] for shape in widths} == {16, 64, 128, 256}


def test_shake_mixes_forward_and_backward_with_different_coefficients():
    rng = np.random.default_rng(0)
    a, b, gradient = (jnp.asarray(rng.normal(size=(5, 2, 2, 3)), jnp.float32) for _ in range(3))
    forward, backward = (jnp.asarray(rng.random((5, 1, 1, 1)), jnp.float32) for _ in range(2))
    mixed, vjp = jax.vjp(shake, a, b, forward, backward)
    np.testing.assert_allclose(mixed, forward * a + (1 - forward) * b, rtol=1e-6)
    to_a, to_b, *to_coefficients = vjp(gradient)
    np.testing.assert_allclose(to_a, backward * gradient, rtol=1e-6)
    np.testing.assert_allclose(to_b, (1 - backward) * gradient, rtol=1e-6)
    assert all(jnp.all(x == 0) for x in to_coefficients)
    assert jnp.abs(to_a - forward * gradient).max() > 0.1


@pytest.fixture(scope="module")
def block():
    model = ShakeBlock(3, 4, 1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (IMAGES, 4, 4, 3))
    return model, x


@pytest.fixture(scope="module")
def coefficients(block):
    """(α, β) of each image, drawn with two keys."""
    return [_coefficients(*block, jax.random.key(k)) for k in (2, 3)]


def _coefficients(model, x, key):
    """α of each image from the block's value, β from its gradients."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def call(params):
        return nnx.merge(graphdef, params, rest, copy=True)(x, train=True, key=key)

    fresh = nnx.merge(graphdef, params, rest, copy=True)
    a, b = (branch(x, train=True) for branch in fresh.branches)
    skip = fresh.skip(x, train=True)
    value, vjp = jax.vjp(call, params)
    mixed = value - skip - b
    over = (1, 2, 3)
    forward = jnp.sum(mixed * (a - b), over) / jnp.sum((a - b) ** 2, over)
    error = jnp.abs(mixed - forward[:, None, None, None] * (a - b)).max()
    assert error < 1e-4  # one coefficient for all the pixels of an image

    def one_image(n):  # the gradient of a branch's last bias, of this image alone
        (gradients,) = vjp(jnp.zeros_like(value).at[n].set(1.0))
        biases = [branch["second"]["norm"]["bias"] for branch in gradients["branches"].values()]
        return jnp.stack([jnp.asarray(bias[...]).mean() / 16 for bias in biases])

    backward = jax.jit(jax.vmap(one_image))(jnp.arange(IMAGES))
    np.testing.assert_allclose(backward.sum(1), 1.0, atol=1e-4)
    return np.asarray(forward), np.asarray(backward[:, 0])


def test_training_draws_independent_uniform_coefficients_for_each_image(coefficients):
    forward, backward = coefficients[0]
    for coefficients in (forward, backward):
        assert coefficients.min() >= -1e-4
        assert coefficients.max() <= 1 + 1e-4
        distance = np.abs(np.sort(coefficients) - (np.arange(IMAGES) + 0.5) / IMAGES).max()
        assert distance < 1.63 / IMAGES**0.5  # Kolmogorov and Smirnov, 1 %
        assert len(np.unique(coefficients.round(6))) > 0.9 * IMAGES
    assert abs(np.corrcoef(forward, backward)[0, 1]) < 3 / IMAGES**0.5


def test_another_key_draws_other_coefficients(coefficients):
    first, second = coefficients
    assert np.abs(first[0] - second[0]).mean() > 0.2
    assert np.abs(first[1] - second[1]).mean() > 0.2


def test_evaluation_takes_the_mean_of_the_branches(block):
    model, x = block
    a, b = (branch(x, train=False) for branch in model.branches)
    expected = model.skip(x, train=False) + (a + b) / 2
    np.testing.assert_allclose(model(x, train=False, key=None), expected, atol=1e-5)


def test_training_without_a_key_is_refused(block):
    model, x = block
    with pytest.raises(ValueError, match="key=None with train=True"):
        model(x, train=True, key=None)


@nnx.jit(static_argnames="train")
def _call(model, x, key=None, *, train):
    return model(x, train=train, key=key)


def test_a_network_draws_by_its_key():
    model = nnx.jit(lambda: ShakeShake(4, blocks=1, rngs=nnx.Rngs(0)))()
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    outputs = [_call(model, x, jax.random.key(k), train=True) for k in (0, 0, 1)]
    assert outputs[0].shape == (4, 10)
    assert jnp.array_equal(outputs[0], outputs[1])
    assert jnp.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_the_two_paths_of_a_skip_connection_see_different_pixels():
    skip = Skip(2, 4, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 6, 6, 2))
    positive = np.maximum(np.asarray(x), 0)
    first, second = (np.asarray(path.kernel[...])[0, 0] for path in skip.paths)
    shifted = np.zeros((3, 3, 3, 2), np.float32)
    shifted[:, 1:, 1:] = positive[:, 1:-1:2, 1:-1:2]
    halves = [positive[:, ::2, ::2] @ first, shifted @ second]
    expected = np.concatenate(halves, -1) / np.sqrt(1 + skip.norm.epsilon)
    np.testing.assert_allclose(skip(x, train=False), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("small_maps", [False, True])
def test_resnets_classify_and_keep_statistics(small_maps):
    model = nnx.jit(lambda: ResNet(1, 4, small_maps=small_maps, rngs=nnx.Rngs(0)))()
    x = 3 + jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    before = jnp.array(model.stem.norm.mean[...])
    assert _call(model, x, train=False).shape == (8, 10)
    assert jnp.array_equal(model.stem.norm.mean[...], before)
    _call(model, x, train=True)
    assert jnp.abs(model.stem.norm.mean[...] - before).max() > 1e-3
    kernels = [p for p in jax.tree.leaves(nnx.state(model, nnx.Param)) if p.ndim == 4]
    assert len(kernels) == 7 + 3 - 1  # stem, two in each block, two skips


def _last_epochs_loss(task, epoch):
    params, state = jax.jit(task.init)(jax.random.key(0))
    losses, step = [], jax.jit(task.loss)
    for batch in task.batches(0):
        value, state = step(params, state, batch, jax.random.key(0))
        losses.append(float(value))
    metrics = jax.jit(task.evaluate)(params, state)
    return float(metrics["train_loss"]), np.mean(losses[-epoch:]), np.mean(losses)


def test_tasks_report_the_loss_of_the_last_epoch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    part = data.Images(images, np.arange(60, dtype=np.int32) % 10)
    cifar = data.Cifar10(part, part, "")
    make = lambda rngs: ResNet(1, 2, small_maps=True, rngs=rngs)
    budget = dict(train_images=20, batch_size=10, epochs=3, test_images=30)
    task = cifar10_task(make, cifar, **budget)
    reported, last, every = _last_epochs_loss(task, 2)
    assert task.steps == 6
    np.testing.assert_allclose(reported, last, rtol=1e-6)
    assert abs(last - every) > 1e-4


def test_the_digits_task_holds_out_what_it_did_not_train_on():
    digits = data.digits()
    batches = lambda seed: data.few_shot_batches(digits.labels, 20, 10, 2, seed)
    make = lambda rngs: MLP((64, 8, 10), batch_norm=True, rngs=rngs)
    task = classification_task(make, digits, batches, 4, 20)
    (params, state), step = task.init(jax.random.key(0)), jax.jit(task.loss)
    for batch in task.batches(0):
        _, state = step(params, state, batch, jax.random.key(0))
    assert set(np.asarray(state[2]).tolist()) == set(batches(0).ravel().tolist())
