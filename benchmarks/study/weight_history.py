"""What does the history of a run look like?

An MLP 64-64-64-64-10 with batch norm on scikit-learn's digits, AdamW at a constant rate of 1e-3 and
a decay of 1e-3 an update, 6,000 updates of batches of 64, one seed: the printed history and its
plot for the page "Watch the weights".

Usage: python -m benchmarks.study.weight_history [--out DIR] [--quick]
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import optax

import optax_decoupled as od
from benchmarks.lib import held_networks
from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked

RATE, DECAY, STEPS = 1e-3, 1e-3, 6_000
PARTS = 20  # for the progress bar


def history(steps: int) -> od.types.WeightHistory:
    network = held_networks.mlp("batch norm")
    tx = optax.chain(od.adamw(RATE, DECAY), od.record_weight_dynamics())
    params = network.init(jax.random.key(0))

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(network.loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    run, carry = jax.jit(lambda *c: jax.lax.scan(step, *c)[0]), (params, tx.init(params))
    for part in tracked(keys.reshape(PARTS, -1), "updates"):
        carry = jax.block_until_ready(run(carry, part))
    return od.recorded_weight_dynamics(carry[1], weight_decay=DECAY, learning_rate=RATE)


def report(record: dict[str, Any]) -> str:
    """The Markdown of the generated part."""
    text = "\n".join(record["text"])
    picture = "benchmarks/results/weight_history.png"
    return f"```text\n{text}\n```\n\n![rms, rotation and ratio over the run]({picture})\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a tiny run, to see that it works")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = history(60 if options.quick else STEPS)
    print(found)
    record = {"name": "weight_history", **environment(), "text": str(found).splitlines()}
    write_json(options.out / "weight_history.json", record)
    axes = found.plot()
    axes[0].figure.set_size_inches(11, 3.6)
    save(axes[0].figure, options.out / "weight_history.png")


if __name__ == "__main__":
    main()
