"""MNIST-1D: its data, its network, its plan's grids, and a tiny part of its figure."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_decoupled as od
from benchmarks.figures import figure2_mnist1d
from benchmarks.figures.figure2_mnist1d import CONTESTANTS, CONTROLS, PARTS, PLAIN
from benchmarks.lib import data
from benchmarks.lib.landscapes import train
from benchmarks.lib.models import ConvNet1D, patches
from benchmarks.lib.sizes import SIZES, Run, batch_norm


@pytest.fixture(scope="module")
def curves():
    return data.mnist1d()


def test_the_data_are_five_thousand_curves_of_ten_classes(curves):
    assert curves.images.shape == (5000, 40, 1)
    assert curves.images.dtype == np.float32
    assert curves.labels.dtype == np.int32
    assert np.bincount(curves.labels).tolist() == [500] * 10
    assert abs(curves.images.mean()) < 1e-5
    assert abs(curves.images.std() - 1) < 1e-5
    assert len(np.unique(curves.images[:, :, 0], axis=0)) == 5000


def test_the_data_are_the_same_in_every_call(curves):
    again = data.mnist1d.__wrapped__()
    assert np.array_equal(again.images, curves.images)
    assert np.array_equal(again.labels, curves.labels)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("length", [40, 7])
def test_products_of_patches_are_convolutions(size, length):
    x = jax.random.normal(jax.random.key(0), (2, length, 3))
    layer = nnx.Conv(3, 4, size, strides=2, padding=size // 2, use_bias=False, rngs=nnx.Rngs(0))
    flat = layer.kernel[...].reshape(size * 3, 4)
    product = patches(x, size, 2) @ flat
    assert product.shape == (2, -(-length // 2), 4)
    np.testing.assert_allclose(product, layer(x), atol=1e-5)
    assert jnp.abs(patches(x, size, 2) @ flat[::-1] - layer(x)).max() > 0.1


@pytest.mark.parametrize("make_norm", [None, batch_norm, nnx.LayerNorm])
def test_kernels_decay_and_only_batch_norm_keeps_statistics(make_norm):
    model = ConvNet1D(6, 10, make_norm, rngs=nnx.Rngs(0))
    x = 3 + jax.random.normal(jax.random.key(0), (8, 40, 1))
    decays = jax.tree.leaves(od.decay_mask(nnx.state(model, nnx.Param)))
    assert sum(map(bool, decays)) == 4  # three convolutions and the head
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert model(x, train=True).shape == (8, 10)
    after = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert len(before) == (6 if make_norm is batch_norm else 0)
    moved = [float(jnp.abs(a - b).max()) for a, b in zip(after, before, strict=True)]
    assert all(change > 1e-3 for change in moved)


def _run(out, **changes):
    size = SIZES["mnist1d"]._replace(**changes)
    return Run("figure2_mnist1d", out, size, None, None, False, tuple(PARTS))


def test_the_grids_shear_into_each_other_and_no_decay_is_no_decay(tmp_path):
    """λ = αλ′/(1 - momentum) leads from cells of SGD+L2 to cells of SGDW."""
    jobs = figure2_mnist1d.jobs(_run(tmp_path))
    assert len(jobs) == 3 * 6 + 2 * 3
    l2, decoupled = (jobs["batch norm", name] for name in ("SGD+L2", "SGDW"))
    mapped = np.outer(l2.learning_rates, l2.weight_decays) / (1 - 0.9)
    nearest = np.abs(np.log2(mapped[..., None] / decoupled.weight_decays)).min(-1)
    assert (nearest < 1e-9).sum() >= 60
    assert 0.001 in jobs["batch norm", "AdamW"].learning_rates
    (zero,) = jobs["batch norm", "Adam"].weight_decays
    assert jnp.float32(1) - jnp.float32(zero) == 1
    lower = jobs[PLAIN, "AdamW"].weight_decays[0] / jobs["batch norm", "AdamW"].weight_decays[0]
    assert lower == 2.0**-4


def test_a_tiny_part_trains_and_reads_as_a_record(tmp_path, capsys):
    tiny = dict(train_images=50, batch_size=25, epochs=1, seeds=2, rate_stride=4, decay_stride=8)
    jobs = figure2_mnist1d.jobs(_run(tmp_path, **tiny))
    name = ("batch norm", "AdamW")
    job = jobs[name]
    assert len(job.learning_rates) == len(job.weight_decays) == 2
    row = train({name: job}, tmp_path / "cells")["batch norm"]
    error = row["AdamW"].metrics["error"]
    assert error.shape == (2, 2, 2)
    assert np.all((error > 0) & (error <= 100))
    assert len(list(tmp_path.glob("cells/*/cell-*"))) == 8
    assert "".join(capsys.readouterr()) == ""  # no bar in a pipe


def test_every_contestant_has_a_control():
    for name, contestant in CONTESTANTS.items():
        control = CONTROLS[name.removesuffix("W").removesuffix("+L2")]
        assert (control.peak, control.rates) == (contestant.peak, contestant.rates)


@pytest.mark.slow
def test_the_script_makes_the_parts_it_is_asked_for(tmp_path, monkeypatch):
    part = "batch norm, step drops"
    arguments = ["figure2_mnist1d", "--quick", "--out", str(tmp_path), "--parts", part]
    monkeypatch.setattr(sys, "argv", arguments)
    figure2_mnist1d.main()
    record = json.loads((tmp_path / "figure2_mnist1d_quick.json").read_text())
    assert list(record["networks"]) == [part]
    assert list(record["networks"][part]["optimizers"]) == ["Adam+L2", "AdamW", "Adam"]
    assert record["test_images"] == 4950
    assert all(x in figure2_mnist1d.report(record) for x in figure2_mnist1d.conclusion(record))
