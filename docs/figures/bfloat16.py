"""Loss curves of the committed bfloat16 runs."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

record = json.loads(Path("../../benchmarks/results/bfloat16.json").read_text())
styles = ("-", "--", ":")
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (mode, run), style in zip(record["modes"].items(), styles, strict=True):
    loss = np.mean(run["loss"], axis=0)
    ax.semilogy(record["budget"]["every"] * np.arange(len(loss)), loss, style, label=mode)
ax.set(xlabel="step", ylabel="training loss")
ax.legend()
