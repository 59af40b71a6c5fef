"""Bytes per parameter of weights, gradients and state, from the committed measurement."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

PARTS = {"weights": "C0", "gradients": "0.75", "state": "C1"}
record = json.loads(Path("../../benchmarks/results/state_bytes.json").read_text())["per_choice"]
choices = list(record)
figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
start = [0.0] * len(choices)
for part, color in PARTS.items():
    sizes = [record[x][part] / record[x]["parameters"] for x in choices]
    bars = ax.barh(choices, sizes, left=start, color=color, label=part)
    ax.bar_label(bars, fmt="%.0f", label_type="center")
    start = [a + b for a, b in zip(start, sizes, strict=True)]
ax.invert_yaxis()
ax.set_xlabel("bytes per parameter")
ax.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside upper center", ncols=len(PARTS), frameon=False)
