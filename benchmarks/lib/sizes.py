"""At which sizes are the paper's figures drawn? A network, its data and a budget for each."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from benchmarks.lib.data import Cifar10, cifar10, digits, few_shot_batches, mnist1d
from benchmarks.lib.harness import RESULTS, environment
from benchmarks.lib.models import MLP, ConvNet1D, ResNet
from benchmarks.lib.shake_shake import ShakeShake
from benchmarks.lib.tasks import cifar10_task, classification_task
from optax_decoupled.sweep import Task

LAYERS = (64, 128, 128, 10)
MLP_NAME = f"MLP {'-'.join(map(str, LAYERS))}"
CONV_NAME = "three 1-d convolutions of 24 channels"
SMALL_DATA = {"digits": digits, "MNIST-1D": mnist1d}


class Size(NamedTuple):
    """A network, its data, and how much is trained.

    Attributes:
      network: as the figures name it.
      make_model: builds it.
      data: "digits", "MNIST-1D" or "CIFAR-10".
      train_images: drawn by each seed.
      batch_size: images per batch.
      epochs: of the main budget.
      seeds: how many; one half chooses cells, the other compares them.
      rate_stride: the grid takes every so many powers of two of the learning rate.
      decay_stride: and of the decay.
      decay_shift: moves the grid of decays by so many powers of two: its best decays fall
        with the root of the number of steps (normalized decay).
      test_images: of CIFAR-10's 10,000. Of other data all that are not drawn are held out.
    """

    network: str
    make_model: Callable[[nnx.Rngs], nnx.Module]
    data: str
    train_images: int
    batch_size: int
    epochs: int
    seeds: int
    rate_stride: int = 1
    decay_stride: int = 1
    decay_shift: int = 0
    test_images: int = 10_000

    @property
    def steps_per_epoch(self) -> int:
        return self.train_images // self.batch_size

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def mlp(batch_norm: bool) -> Callable[[nnx.Rngs], nnx.Module]:
    return lambda rngs: MLP(LAYERS, batch_norm=batch_norm, rngs=rngs)


def conv1d(make_norm: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    return lambda rngs: ConvNet1D(24, 10, make_norm, rngs=rngs)


def batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)


def shake_shake(width: int) -> Size:
    make = lambda rngs: ShakeShake(width, rngs=rngs)
    name = f"Shake-Shake 26 2×{width}d"
    return Size(name, make, "CIFAR-10", 50_000, 128, 100, 4, 2, 2, decay_shift=-3)


SIZES = {
    "digits": Size(f"{MLP_NAME} with batch norm", mlp(True), "digits", 150, 50, 100, 48),
    "mnist1d": Size(CONV_NAME, conv1d(batch_norm), "MNIST-1D", 1000, 50, 30, 16),
    "subset": Size(
        "ResNet-8 of width 8 on small maps",
        lambda rngs: ResNet(1, 8, small_maps=True, rngs=rngs),
        "CIFAR-10",
        train_images=2560,
        batch_size=64,
        epochs=10,
        seeds=10,
        rate_stride=2,
        decay_stride=2,
    ),
    "resnet": Size(
        "ResNet-8 of width 16",
        lambda rngs: ResNet(1, 16, rngs=rngs),
        "CIFAR-10",
        train_images=50_000,
        batch_size=128,
        epochs=15,
        seeds=4,
        rate_stride=2,
        decay_stride=2,
        decay_shift=-2,
    ),
    "shake-shake-64": shake_shake(64),
    "shake-shake-96": shake_shake(96),
}
QUICK = {  # to see that it works
    "digits": dict(epochs=5, seeds=2, rate_stride=4, decay_stride=5),
    "MNIST-1D": dict(
        train_images=50, batch_size=25, epochs=2, seeds=4, rate_stride=4, decay_stride=6
    ),
    "CIFAR-10": dict(
        train_images=20,
        batch_size=10,
        epochs=4,
        seeds=2,
        rate_stride=4,
        decay_stride=6,
        test_images=100,
    ),
}


class Run(NamedTuple):
    """What the command line asked for.

    Attributes:
      name: of the results, without folder and suffix.
      out: their folder.
      size: what is trained.
      cifar: the data, if the size needs them.
      cells: where finished cells are kept, so that a killed run goes on; None for the digits,
        which take minutes.
      resumed: whether there were any.
      parts: which of the script's parts to make; all of them, unless it lets one choose.
    """

    name: str
    out: Path
    size: Size
    cifar: Cifar10 | None
    cells: Path | None
    resumed: bool
    parts: tuple[str, ...] = ()


def run_from_arguments(
    name: str, question: str, default: str, sizes: bool = True, parts: tuple[str, ...] = ()
) -> Run:
    """Parses ``--out``, ``--seeds``, ``--stride``, ``--quick``, unless there is one size also
    ``--size`` and ``--data``, and, if there are parts to choose from, ``--parts``.
    """
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny grid, to see that it works")
    parser.add_argument("--seeds", type=int, help="instead of the size's own number")
    parser.add_argument("--stride", type=int, help="train every so many rates and decays")
    parser.set_defaults(size=default, data=None, parts=parts)
    if parts:
        parser.add_argument("--parts", nargs="+", choices=parts, help="default: all")
    if sizes:
        parser.add_argument("--size", choices=SIZES, help=f"default: {default}")
        parser.add_argument("--data", type=Path, help="holds cifar-10-batches-bin/")
    arguments = parser.parse_args()
    size, cifar = SIZES[arguments.size], None
    if size.data == "CIFAR-10":
        if arguments.data is None:
            parser.error(
                f"--size {arguments.size} trains on CIFAR-10: name the directory that holds "
                "cifar-10-batches-bin/ with --data."
            )
        cifar = cifar10(arguments.data)
    if arguments.quick:
        size = size._replace(**QUICK[size.data])
    if arguments.seeds is not None:
        size = size._replace(seeds=arguments.seeds)
    if arguments.stride is not None:
        size = size._replace(rate_stride=arguments.stride, decay_stride=arguments.stride)
    if arguments.size != default:
        name = f"{name}_{arguments.size}"
    if arguments.quick:
        name = f"{name}_quick"
    arguments.out.mkdir(parents=True, exist_ok=True)
    cells = None if size.data == "digits" else arguments.out / "cells" / name
    resumed = cells is not None and cells.exists()
    return Run(name, arguments.out, size, cifar, cells, resumed, tuple(arguments.parts))


def task_of(size: Size, cifar: Cifar10 | None) -> Task:
    """The sweep task of a size; its budget is ``size.epochs``."""
    if cifar is not None:
        budget = {name: getattr(size, name) for name in CIFAR_BUDGET}
        return cifar10_task(size.make_model, cifar, **budget)
    data = SMALL_DATA[size.data]()

    def batches(seed: int) -> Any:
        return few_shot_batches(data.labels, size.train_images, size.batch_size, size.epochs, seed)

    return classification_task(size.make_model, data, batches, size.steps, size.train_images)


CIFAR_BUDGET = ("train_images", "batch_size", "epochs", "test_images")


def header(question: str, run: Run, seconds: float) -> dict[str, Any]:
    """What every figure's record begins with."""
    size = run.size
    budget = ("epochs", "seeds", "rate_stride", "decay_stride", "steps", "batch_size")
    return {
        "name": run.name,
        "question": question,
        **environment(),
        "seconds": None if run.resumed else round(seconds, 1),
        "network": size.network,
        "data": size.data,
        **_data(run),
        "budget": {name: getattr(size, name) for name in budget},
    }


def _data(run: Run) -> dict[str, Any]:
    """The checksum of the data, and how many images train and measure."""
    train_images = run.size.train_images
    if run.cifar:
        checksum, test_images = run.cifar.sha256, run.size.test_images
    else:
        data = SMALL_DATA[run.size.data]()
        checksum = hashlib.sha256(b"".join(x.tobytes() for x in data)).hexdigest()
        test_images = len(data.labels) - train_images
    return {"data_sha256": checksum, "train_images": train_images, "test_images": test_images}
