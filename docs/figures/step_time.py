"""The time of an AdamW step beside its rivals, from the committed measurement."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

RIVALS = {"optax.adamw": "C0", "od.adamw": "C1", "torch, fused": "0.6", "machine limit": "0.85"}
record = json.loads(Path("../../benchmarks/results/step_cost.json").read_text())["rivals"]
figure, axes = plt.subplots(1, len(record["trees"]), figsize=(10, 3.4), layout="constrained")
for ax, (tree, steps) in zip(axes, record["trees"].items(), strict=True):
    times = [1e3 * steps[name]["seconds"] for name in RIVALS]
    low, high = zip(*([1e3 * x for x in steps[name]["quartiles"]] for name in RIVALS), strict=True)
    whiskers = [
        [t - q for t, q in zip(times, low, strict=True)],
        [q - t for t, q in zip(times, high, strict=True)],
    ]
    bars = ax.bar(list(RIVALS), times, yerr=whiskers, color=list(RIVALS.values()), capsize=3)
    ax.set(title=tree, xticks=[])
    ax.title.set_fontsize("medium")
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("milliseconds a step")
figure.legend(bars, list(RIVALS), loc="outside lower center", ncols=len(RIVALS), frameon=False)
