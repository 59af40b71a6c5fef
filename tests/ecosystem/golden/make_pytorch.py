"""Writes pytorch.json: trajectories of PyTorch's optimizers that the tests compare with.

Run `python tests/ecosystem/golden/make_pytorch.py` where PyTorch is installed. The problem is the
quadratic ½Σ h θ² + Σ n_t θ with the closed-form h, n_t and θ_0 below, in float64, and the
learning rate is annealed by a cosine over all steps.
"""

import json
import math
import pathlib

import torch  # pyright: ignore[reportMissingImports]  # not among the extras

STEPS, DIM = 200, 6
KEEP = [0, 1, 2, 9, 49, 99, 149, 199]  # the steps after which parameters are stored

CURVATURE = [0.05 * 3.0**i for i in range(DIM)]
THETA = [(-1.0) ** i * (1.0 + 0.3 * i) for i in range(DIM)]


def noise(t: int) -> list[float]:
    return [math.sin(1.7 * t + i * i) * 2.0 ** (-i) for i in range(DIM)]


CASES = {
    "adamw": (torch.optim.AdamW, dict(lr=0.02, weight_decay=0.1)),
    "adamw_other_rate": (torch.optim.AdamW, dict(lr=0.005, weight_decay=0.4)),
    "sgd": (torch.optim.SGD, dict(lr=0.02, weight_decay=0.1)),
    "sgd_momentum": (torch.optim.SGD, dict(lr=0.01, weight_decay=0.1, momentum=0.9)),
    "sgd_nesterov": (
        torch.optim.SGD,
        dict(lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True),
    ),
    "adam_l2": (torch.optim.Adam, dict(lr=0.02, weight_decay=0.1)),
}


def train(optimizer, options) -> list[list[float]]:
    curvature = torch.tensor(CURVATURE, dtype=torch.float64)
    theta = torch.nn.Parameter(torch.tensor(THETA, dtype=torch.float64))
    tx = optimizer([theta], **options)
    cosine = torch.optim.lr_scheduler.LambdaLR(
        tx, lambda t: 0.5 * (1 + math.cos(math.pi * t / STEPS))
    )
    path = []
    for t in range(STEPS):
        tx.zero_grad()
        linear = torch.tensor(noise(t), dtype=torch.float64)
        (0.5 * (curvature * theta**2).sum() + (linear * theta).sum()).backward()
        tx.step()
        cosine.step()
        path.append(theta.detach().tolist())
    return [path[t] for t in KEEP]


def warmup_then_cosine(tx):
    schedules = torch.optim.lr_scheduler
    warmup = schedules.LinearLR(tx, start_factor=0.1, total_iters=20)
    cosine = schedules.CosineAnnealingLR(tx, T_max=STEPS - 20)
    return schedules.SequentialLR(tx, [warmup, cosine], milestones=[20])


def warmup_stable_decay(tx):
    """Counted from 1, as torchtitan's: 20 steps of warmup, 100 at the peak, 80 to 0."""

    def factor(t):
        if t < 20:
            return (t + 1) / 21
        return 1.0 if t < 120 else 1 - (t + 1 - 120) / 81

    return torch.optim.lr_scheduler.LambdaLR(tx, factor)


def train_groups(decays, make_schedule, **options) -> dict[str, list[list[float]]]:
    """Parameters that start alike, each with its own decay; the whole gradient is clipped."""
    curvature = torch.tensor(CURVATURE, dtype=torch.float64)
    params = {x: torch.nn.Parameter(torch.tensor(THETA, dtype=torch.float64)) for x in decays}
    groups = [{"params": [params[x]], "weight_decay": decay} for x, decay in decays.items()]
    tx = torch.optim.AdamW(groups, **options)
    schedule = make_schedule(tx)
    paths = {name: [] for name in decays}
    for t in range(STEPS):
        tx.zero_grad()
        linear = torch.tensor(noise(t), dtype=torch.float64)
        for theta in params.values():
            (0.5 * (curvature * theta**2).sum() + (linear * theta).sum()).backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        tx.step()
        schedule.step()
        for name, theta in params.items():
            paths[name].append(theta.detach().tolist())
    return {name: [path[t] for t in KEEP] for name, path in paths.items()}


LAYERS = ("embedding", "kernel", "bias", "scale")
GROUPS = {
    "groups": (dict(kernel=0.1, bias=0.0), warmup_then_cosine, dict(lr=0.002)),
    "torchtitan": (
        dict.fromkeys(LAYERS, 0.1),
        warmup_stable_decay,
        dict(lr=0.002, betas=(0.9, 0.95)),
    ),
    "olmo": (
        {**dict.fromkeys(LAYERS, 0.0), "kernel": 0.1},
        warmup_then_cosine,
        dict(lr=0.002, betas=(0.9, 0.95), eps=1e-5),
    ),
}


if __name__ == "__main__":
    record = {
        "torch": torch.__version__,
        "steps": STEPS,
        "keep": KEEP,
        "curvature": CURVATURE,
        "theta": THETA,
        "noise": [noise(t) for t in range(STEPS)],
        "cases": {
            name: {"options": options, "theta": train(optimizer, options)}
            for name, (optimizer, options) in CASES.items()
        },
    }
    for name, (decays, make_schedule, options) in GROUPS.items():
        record[name] = train_groups(decays, make_schedule, **options)
    path = pathlib.Path(__file__).with_name("pytorch.json")
    path.write_text(json.dumps(record) + "\n")
