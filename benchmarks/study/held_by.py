"""Does the ratio of the recorder tell what holds a weight, and does it predict the best decay?

Plan, fixed before the first run.

Rule. The verdict of `recorded_weight_dynamics`: the ratio over the last half of a run is between
1/1.4 and 1.4 for "noise", otherwise "the loss". It was set from other people's single checkpoints
of digits MLPs (0.85 to 1.21 behind a norm, 1.60 to 6.79 elsewhere), not from these runs.

Part 1, which weights does noise hold? Six networks (`benchmarks.lib.held_networks`): MLPs on the
digits with batch norm, layer norm and no norm, a small ResNet on the digits, transformers with
norms before and behind their parts on Python source. AdamW, SGDW and Lion, 5 seeds, 3,000 updates
at a constant rate, every weight decays by 1e-3 an update (relaxation in 500). The truth is that of
the mathematics: the loss does not depend on the length of a weight with a norm behind it. Reported
is the confusion table of every network and optimizer, and the median ratio of both groups.

Three cases in which the ratio should mislead, AdamW: a batch of 1,024 instead of 64 (signal in the
gradients), 100 images learned by heart (gradients that vanish), and a transformer whose head is its
embedding (added after the other runs).

Part 2, does it predict the valley? MLPs on 150 images of the digits, AdamW with cosine annealing,
1,500 updates of batches of 50; decay on all weights, on the hidden ones alone, or on the head
alone, with batch norm, layer norm and no norm: nine groups. Rates 2**-11 to 2**-7 (5), decays
2**-16 to 2**-4 (13), 8 seeds; the slope of log2 of the best decay over log2 of the rate, by
`Landscape.valley_slope`, with its 90 % interval. The ratio of a group is that of its summed
alignment and injection over the last half of runs at the middle rate and the best decay there, 3
seeds. Prediction: slope 0 if the group is held by noise, 1 if by the loss; it is supported if the
interval lies within 0.5 of it, contradicted if it lies outside, otherwise undecided. If fewer than
half of the decided groups support it, the ratio is a diagnosis of length alone.

Usage: python -m benchmarks.study.held_by [--out DIR] [--quick] [--part 1|2]
"""

import argparse
import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_decoupled as od
from benchmarks.lib import held_networks as nets
from benchmarks.lib.data import digits
from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.tables import markdown
from optax_decoupled import sweep
from optax_decoupled._common.extras import COLOURS

DECAY, STEPS, SEEDS = 1e-3, 3_000, 5
OPTIMIZERS = {
    "AdamW": (lambda: od.adamw(1e-3, DECAY), 0.9),
    "SGDW": (lambda: od.sgdw(0.02, DECAY, momentum=0.9), 0.9),
    "Lion": (lambda: od.decouple(optax.lion(1e-4, weight_decay=0.0), DECAY), (0.9, 0.99)),
}
NOISE = 1.4
GROUPS = {"all": None, "hidden": ("hidden_1", "hidden_2", "hidden_3"), "head": ("head",)}
RATES, DECAYS, VALLEY_SEEDS = 2.0 ** np.arange(-11, -6), 2.0 ** np.arange(-16, -3), 8
VALLEY_STEPS, IMAGES = 1_500, 150


def recorded_runs(
    tx: optax.GradientTransformation, network: nets.Network, seeds: int, steps: int
) -> list[Any]:
    """The state of the recorder after a run of each seed."""
    tx = optax.chain(tx, od.record_weight_dynamics())

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        grads = jax.grad(network.loss)(params, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(seed: jax.Array) -> Any:
        params = network.init(jax.random.key(seed))
        keys = jax.random.split(jax.random.key(1_000 + seed), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][1]

    return [run(jnp.uint32(seed)) for seed in range(seeds)]


def ratios(state: Any, b1: Any, decay: Any = DECAY, **known: Any) -> dict[str, float]:
    """Each weight's ratio over the last half."""
    history = od.recorded_weight_dynamics(state, weight_decay=decay, b1=b1, **known)
    found = {}
    for row in history.rows:
        half = slice(len(row.rms) // 2, None)
        weights = (row.rms**2 * row.injected)[half]
        found[row.path] = float(np.sum(row.ratio[half] * weights) / np.sum(weights))
    return found


def confusion(steps: int, seeds: int) -> list[dict[str, Any]]:
    rows = []
    every = itertools.product(nets.NETWORKS.items(), OPTIMIZERS.items())
    for (name, make), (optimizer, (tx, b1)) in tracked(every, "networks and optimizers"):
        network = make()
        runs = [ratios(x, b1) for x in recorded_runs(tx(), network, seeds, steps)]
        rows.append(counted(name, optimizer, runs, network.invariant))
        print(rows[-1]["text"], flush=True)
    return rows


def counted(name: str, optimizer: str, runs: list[dict[str, float]], invariant: Any) -> Any:
    """How many weights of both groups are said to be held by noise."""
    groups = {
        group: [r for run in runs for path, r in run.items() if (path in invariant) == inside]
        for group, inside in (("behind a norm", True), ("others", False))
    }
    held = {k: sum(1 / NOISE < r < NOISE for r in found) for k, found in groups.items()}
    sizes = {k: len(found) for k, found in groups.items()}
    medians = {k: round(float(np.median(x)), 2) for k, x in groups.items() if x}
    text = f"{name:24}{optimizer:7}" + "; ".join(
        f"{k}: noise {held[k]} of {sizes[k]}, median ratio {medians[k]}" for k in medians
    )
    by_weight = {path: [round(run[path], 3) for run in runs] for path in runs[0]}
    return {
        "network": name,
        "optimizer": optimizer,
        "held_by_noise": held,
        "weights": sizes,
        "median_ratio": medians,
        "ratios": by_weight,
        "text": text,
    }


def misleading(steps: int, seeds: int) -> list[dict[str, Any]]:
    data = digits()
    images, labels = jnp.asarray(data.images.reshape(-1, 64)), jnp.asarray(data.labels)
    network = nets.mlp("batch norm")

    def loss_of(size: int, most: int) -> Any:
        def loss(params: Any, key: jax.Array) -> jax.Array:
            batch = jax.random.randint(key, (size,), 0, most)
            return nets.cross_entropy(
                nets.mlp_logits(params, images[batch], "batch norm"), labels[batch]
            )

        return loss

    cases = {"a batch of 1,024": (1024, len(labels)), "100 images by heart": (64, 100)}
    rows = []
    for name, case in tracked(cases.items(), "misleading cases"):
        other = network._replace(loss=loss_of(*case))
        states = recorded_runs(od.adamw(1e-3, DECAY), other, seeds, steps)
        runs = [ratios(x, 0.9) for x in states]
        rows.append(counted(f"MLP, {name}", "AdamW", runs, network.invariant))
        print(rows[-1]["text"], flush=True)
    rows.append(tied_head(steps, seeds))
    return rows


def tied_head(steps: int, seeds: int) -> dict[str, Any]:
    network = nets.transformer(pre_norm=True, tied=True)
    states = recorded_runs(od.adamw(1e-3, DECAY), network, seeds, steps)
    row = counted("transformer, tied", "AdamW", [ratios(x, 0.9) for x in states], network.invariant)
    print(row["text"], flush=True)
    return row


def few_images(norm: str, steps: int) -> sweep.Task:
    """An MLP on 150 images, drawn by the seed; all others are held out."""
    data = digits()
    images, labels = jnp.asarray(data.images.reshape(-1, 64)), jnp.asarray(data.labels)

    def init(key: jax.Array) -> Any:
        order = jax.random.permutation(jax.random.fold_in(key, 1), len(labels))
        return nets.drawn(nets.SIZES)(key), {"order": order}

    def loss(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        chosen = state["order"][batch]
        logits = nets.mlp_logits(params, images[chosen], norm)
        return nets.cross_entropy(logits, labels[chosen]), state

    def batches(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return (rng.integers(0, IMAGES, 50, np.int32) for _ in range(steps))

    def evaluate(params: Any, state: Any) -> dict[str, Any]:
        chosen = state["order"][IMAGES:]
        logits = nets.mlp_logits(params, images[chosen], norm)
        return {"error": jnp.mean(logits.argmax(1) != labels[chosen])}

    return sweep.Task(init, loss, batches, evaluate, steps)


def masked(names: tuple[str, ...] | None) -> dict[str, bool]:
    return {name: names is None or name in names for name in nets.SIZES}


def valleys(steps: int, seeds: int, rates: Any, decays: Any) -> list[dict[str, Any]]:
    rows = []
    eta = optax.cosine_decay_schedule(1.0, steps)
    for norm in nets.NORMS:
        task = few_images(norm, steps)
        for group, names in GROUPS.items():
            optimizer = functools.partial(od.adamw, schedule=eta, mask=masked(names))
            x = sweep.run(
                task,
                optimizer,
                learning_rates=rates,
                weight_decays=decays,
                seeds=range(seeds),
            )
            row = {"norm": norm, "decays": group, **slope_of(x)}
            row["ratio"] = group_ratio(task, x, optimizer, names, eta)
            rows.append({**row, "error": x.mean("error").round(4).tolist()})
            print(json.dumps(row), flush=True)
    return rows


def slope_of(x: sweep.Landscape) -> dict[str, Any]:
    try:
        slope = x.valley_slope("error")
    except ValueError as error:
        return {"slope": None, "why": str(error)}
    # valley_slope gives 95 %; its normal approximation at 90 %.
    half = (slope.high - slope.low) / 2 * 1.645 / 1.960
    middle = (slope.high + slope.low) / 2
    return {
        "slope": round(slope.slope, 3),
        "interval": [round(middle - half, 3), round(middle + half, 3)],
    }


def group_ratio(
    task: sweep.Task, x: sweep.Landscape, optimizer: Any, names: Any, eta: Any
) -> dict[str, Any]:
    """The ratio of the group's sums at the middle rate and the best decay there, 3 seeds."""
    middle = len(x.learning_rates) // 2
    best = float(x.weight_decays[int(np.nanargmin(x.mean("error")[middle]))])
    rate = float(x.learning_rates[middle])
    found = []
    for seed in range(3):
        params, state = task.init(jax.random.key(seed))
        batches = jnp.asarray(np.stack(list(task.batches(seed))))
        tx = optax.chain(optimizer(rate, best), od.record_weight_dynamics())

        def step(carry: Any, batch: Any, state: Any = state, tx: Any = tx) -> Any:
            params, opt_state = carry
            grads = jax.grad(lambda p: task.loss(p, state, batch, None)[0])(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        run = jax.jit(lambda carry: jax.lax.scan(step, carry, batches)[0])  # noqa: B023
        opt_state = run((params, tx.init(params)))[1]
        history = od.recorded_weight_dynamics(opt_state, weight_decay=best, schedule=eta)
        rows = [row for row in history.rows if names is None or row.path in names]
        half = slice(len(history.steps) // 2, None)
        sizes = {row.path: np.prod(row.shape) * row.rms**2 for row in rows}
        aligned = sum((row.aligned * sizes[row.path])[half].sum() for row in rows)
        injected = sum((row.injected * sizes[row.path])[half].sum() for row in rows)
        found.append(round(float(aligned / injected / 18), 3))
    return {"rate": rate, "weight_decay": best, "seeds": found, "mean": float(np.mean(found))}


def conclusion(record: dict[str, Any]) -> list[str]:
    sentences = []
    if rows := record.get("confusion"):
        inside = [
            sum(row[k].get("behind a norm", 0) for row in rows)
            for k in ("held_by_noise", "weights")
        ]
        outside = [
            sum(row[k].get("others", 0) for row in rows) for k in ("held_by_noise", "weights")
        ]
        sentences.append(
            "In the networks that the plan names, all but the last three rows, the verdict is "
            f"noise for {inside[0]} of the {inside[1]} weights behind a norm, and "
            f"the loss for {outside[1] - outside[0]} of the {outside[1]} others."
        )
    if rows := record.get("valleys"):
        verdicts = [predicted(row) for row in rows]
        sentences.append(
            f"The slope of the best decay: predicted in {verdicts.count('supported')} of "
            f"{len(rows)} groups, contradicted in {verdicts.count('contradicted')}, undecided in "
            f"{verdicts.count('undecided')}."
        )
    return sentences


def predicted(row: dict[str, Any]) -> str:
    if row["slope"] is None:
        return "undecided"
    claim = 0 if 1 / NOISE < row["ratio"]["mean"] < NOISE else 1
    low, high = row["interval"]
    if claim - 0.5 <= low and high <= claim + 0.5:
        return "supported"
    return "contradicted" if low > claim + 0.5 or high < claim - 0.5 else "undecided"


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    rows = [_counts(row) for row in (*record["confusion"], *record["misleading"])]
    header = ["network", "optimizer", "behind a norm: noise", "ratio", "others: the loss", "ratio"]
    valleys = [_valley(row) for row in record["valleys"]]
    columns = ["network", "what decays", "ratio", "slope [90 %]", "predicted", "verdict"]
    first, second = conclusion(record)
    return (
        f"{markdown([header, *rows])}\n"
        f"Weights of {SEEDS} seeds, and their median ratio. {first}\n\n"
        "Does the ratio predict how the best decay moves with the learning rate? Noise: it stays "
        "(slope 0). The loss: it moves with the rate (slope 1).\n\n"
        f"{markdown([columns, *valleys])}\n"
        f"MLPs on {IMAGES} digits, {VALLEY_SEEDS} seeds. {second}\n\n"
        "![Slope of the best decay over the ratio](benchmarks/results/held_by.png)\n"
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """The slope of the best decay over the ratio of the weights that decay."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for row, colour in zip(record["valleys"], np.repeat(COLOURS[:3], 3), strict=True):
        if row["slope"] is None:
            continue
        low, high = row["interval"]
        x, y = row["ratio"]["mean"], row["slope"]
        ax.errorbar(x, y, [[max(y - low, 0)], [max(high - y, 0)]], fmt="o", color=colour, capsize=3)
        ax.annotate(f" {row['norm']}: {row['decays']}", (x, y), fontsize="x-small", va="bottom")
    ax.hlines([0, 1], *ax.get_xlim(), color="0.6", lw=0.8, ls="--")
    ax.set(xscale="log", xlabel="ratio", ylabel="slope of the best decay [90 %]")
    ax.set_title("predicted: 0 near a ratio of 1, 1 far from it", fontsize="medium")
    save(figure, path)


def _counts(row: dict[str, Any]) -> list[str]:
    held, sizes, medians = row["held_by_noise"], row["weights"], row["median_ratio"]
    cells = [row["network"], row["optimizer"]]
    for group, right in (("behind a norm", held), ("others", None)):
        count = held[group] if right else sizes[group] - held[group]
        there = group in medians
        cells += [f"{count} of {sizes[group]}", f"{medians[group]:.2f}"] if there else ["", ""]
    return cells


def _valley(row: dict[str, Any]) -> list[str]:
    ratio = row["ratio"]["mean"]
    slope = "no valley in the grid"
    if row["slope"] is not None:
        low, high = row["interval"]
        slope = f"{row['slope']:+.2f} [{low:+.2f}, {high:+.2f}]"
    claim = "0" if 1 / NOISE < ratio < NOISE else "1"
    return [row["norm"], row["decays"], f"{ratio:.2f}", slope, claim, predicted(row)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it works")
    parser.add_argument("--part", type=int, choices=(1, 2), help="one part; the other is kept")
    options = parser.parse_args()
    steps, seeds, valley = STEPS, SEEDS, (VALLEY_STEPS, VALLEY_SEEDS, RATES, DECAYS)
    if options.quick:
        steps, seeds, valley = 60, 1, (20, 2, RATES[::2], DECAYS[::4])
    path, start = options.out / "held_by.json", time.perf_counter()
    record = json.loads(path.read_text()) if options.part and path.exists() else {}
    record |= {"name": "held_by", **environment()}
    if options.part != 2:
        record["confusion"] = confusion(steps, seeds)
        record["misleading"] = misleading(steps, seeds)
    if options.part != 1:
        record["valleys"] = valleys(*valley)
    record["seconds"] = round(time.perf_counter() - start)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    if "valleys" in record:
        draw(record, path.with_suffix(".png"))
    print(*conclusion(record), sep="\n")


if __name__ == "__main__":
    main()
