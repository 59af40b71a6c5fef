"""What does training in bfloat16 lose, rounded to nearest and stochastically?

Runs the training of `examples/bfloat16.py` for every way to store parameters and moments,
and keeps its loss curves.

Usage: python -m benchmarks.study.bfloat16 [--out DIR]
"""

import argparse
import functools
import runpy
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.lib.harness import RESULTS, ROOT, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.storage import STORAGE

EVERY = 10  # steps between the points of a curve that are kept
DRAWN = ("float32", "bfloat16, to nearest", "bfloat16, stochastic")


def draw(modes: dict[str, Any], path: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for mode, style in zip(DRAWN, ("-", "--", ":"), strict=True):
        loss = np.mean(modes[mode]["loss"], axis=0)
        ax.semilogy(EVERY * np.arange(len(loss)), loss, style, label=mode)
    ax.set(xlabel="step", ylabel="training loss, mean over seeds")
    ax.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    example = runpy.run_path(str(ROOT / "examples" / "bfloat16.py"))
    start = time.perf_counter()
    modes = {}
    for mode, x in tracked(STORAGE.items(), "storage"):
        train = functools.partial(example["train"], adamw=x.adamw)
        runs = [train(seed, x.dtype, x.stochastic) for seed in range(example["SEEDS"])]
        modes[mode] = {
            "final_loss": [round(float(curve[-1]), 5) for curve, _ in runs],
            "test_error_percent": [round(error, 3) for _, error in runs],
            "loss": [[round(float(x), 5) for x in curve[::EVERY]] for curve, _ in runs],
        }
    record = {
        "question": (__doc__ or "").partition("\n")[0],
        **environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "budget": {"steps": example["STEPS"], "batch_size": example["BATCH"], "every": EVERY},
        "modes": modes,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "bfloat16.json", record)
    draw(modes, out / "bfloat16.png")
    print(f"written: {out / 'bfloat16.json'}")


if __name__ == "__main__":
    main()
