"""Writes libraries.json: trajectories of optimizers of PyTorch's ecosystem.

Run `python tests/ecosystem/golden/make_libraries.py` where PyTorch, torch-optimi, pytorch_optimizer
and timm are installed. The problem and the cosine are those of make_pytorch.py, in float64.
"""

import importlib.metadata
import json
import pathlib
import warnings

import optimi  # pyright: ignore[reportMissingImports]  # none of these is among the extras
import pytorch_optimizer  # pyright: ignore[reportMissingImports]
from make_pytorch import train
from timm.optim import create_optimizer_v2  # pyright: ignore[reportMissingImports]

warnings.filterwarnings("ignore", message="You are using weight_decay up to", module="optimi")


def timm(name):
    return lambda params, **options: create_optimizer_v2(params, opt=name, **options)


def adamc(params, **options):
    return pytorch_optimizer.AdamC([{"params": params, "normalized": True}], **options)


OPTIMI = dict(weight_decay=1e-3, decouple_lr=True)
FIXED = dict(weight_decay=1e-3, fixed_decay=True)
LIBRARIES = {  # the optimizer, two learning rates, its other options
    "optimi.AdamW": (optimi.AdamW, (0.02, 0.005), OPTIMI),
    "optimi.SGD": (optimi.SGD, (0.02, 0.005), OPTIMI | dict(momentum=0.9)),
    "optimi.Lion": (optimi.Lion, (0.01, 0.002), OPTIMI),
    "pytorch_optimizer.Lion": (pytorch_optimizer.Lion, (0.01, 0.002), FIXED),
    "pytorch_optimizer.AdamC": (pytorch_optimizer.AdamC, (0.02, 0.005), FIXED),
    "pytorch_optimizer.SGDW": (
        pytorch_optimizer.SGDW,
        (0.02, 0.005),
        dict(weight_decay=0.1, momentum=0.9, fixed_decay=True),
    ),
    "pytorch_optimizer.AdamC, normalized": (adamc, (0.02, 0.005), dict(weight_decay=0.1)),
    "pytorch_optimizer.QHAdam": (
        pytorch_optimizer.QHAdam,
        (0.02, 0.005),
        dict(weight_decay=0.1, weight_decouple=True),
    ),
    "timm's adamw": (timm("adamw"), (0.02, 0.005), dict(weight_decay=0.1)),
    "timm's adamc": (timm("adamc"), (0.02, 0.005), dict(weight_decay=0.1)),
}


def record():
    packages = ("torch", "torch-optimi", "pytorch_optimizer", "timm")
    cases = {}
    for name, (optimizer, rates, options) in LIBRARIES.items():
        for lr in rates:
            theta = train(optimizer, dict(lr=lr, **options))
            cases[f"{name} at {lr}"] = {"library": name, "lr": lr, **options, "theta": theta}
    return {"versions": {x: importlib.metadata.version(x) for x in packages}, "cases": cases}


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("libraries.json")
    path.write_text(json.dumps(record()) + "\n")
