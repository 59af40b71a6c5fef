"""Where the best decay of each learning rate lies, from the committed landscapes."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

record = json.loads(Path("../../benchmarks/results/figure2_digits.json").read_text())
figure, axes = plt.subplots(1, 2, sharex=True, figsize=(9, 4), layout="constrained")
for ax, (network, result) in zip(axes, record["networks"].items(), strict=True):
    for name, optimizer in result["optimizers"].items():
        valley = optimizer["valley_slope"]
        if valley:
            label = f"{name}: slope {valley['slope']:+.2f}"
            rates, decays = valley["learning_rates"], valley["weight_decays"]
            style = "o--" if "L2" in name else "o-"
            ax.loglog(rates, decays, style, base=2, label=label, color=f"C{'Adam' in name:d}")
    ax.set(title=network, xlabel="learning rate")
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
axes[0].set_ylabel("best λ (solid), best λ′ (dashed)")
