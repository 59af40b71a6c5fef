"""Which numbers do the README and docs print? Writes them from the committed JSON results.

Usage: python benchmarks/report.py [--check]

A part of a Markdown file between `<!-- generated:NAME -->` and `<!-- end -->` is written by the
function of that name below. `--check` changes nothing and fails if a part is out of date.
"""

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _docs_parts
import _step_parts
import jax.numpy as jnp
import optax

import optax_decoupled as od

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def figure2_digits() -> str:
    record = _load("figure2_digits")
    budget, device = record["budget"], record["device"]
    parts = [
        "![Test error over learning rate and decay, eight landscapes]"
        "(benchmarks/results/figure2_digits.png)\n",
        f"MLP {'-'.join(map(str, record['layers']))} on {record['train_images']} of scikit-learn's "
        f"digits, {budget['epochs']} epochs of batches of {budget['batch_size']}, cosine "
        f"annealing, decay on kernels only, {budget['seeds']} seeds that each draw their own "
        f"training images; all others are held out. {record['seconds']:.0f} s on "
        f"{device['cores']} cores ({device['kind']}). The same network with batch norm, as in "
        "the paper, and without normalization:\n",
    ]
    for network, result in record["networks"].items():
        parts += [_network(network, result)]
    parts += ["\n".join(f"- {sentence}" for sentence in record["conclusion"])]
    return "\n".join(parts) + "\n"


def _network(network: str, result: dict[str, Any]) -> str:
    """One table: a row per optimizer."""
    rows = [
        f"| {network} | test error % | best rate | best decay | within 10 % of best "
        "| valley slope [95 % interval] |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, x in result["optimizers"].items():
        best, slope = x["best"], x["valley_slope"]
        total = len(x["learning_rates"]) * len(x["weight_decays"])
        valley = (
            f"{slope['slope']:+.2f} [{slope['low']:+.1f}, {slope['high']:+.1f}]"
            if slope
            else "not located"
        )
        rows.append(
            f"| {name} | {best['mean']:.2f} ± {best['spread']:.2f} | {best['learning_rate']:.3g} "
            f"| {best['weight_decay']:.2g} | {x['cells_within_10_percent']} of {total} | {valley} |"
        )
    return "\n".join(rows) + "\n"


HEALTHY = """\
params = {"embed": {"embedding": jnp.ones((100, 32))}}
for i in range(3):
    params[f"layer_{i}"] = {
        "attention": {"kernel": jnp.ones((32, 32)), "bias": jnp.zeros(32)},
        "norm": {"scale": jnp.ones(32)},
    }

rules = od.decay_rules((".*/kernel", 1.0), ("embed/.*", 0.5), (".*", 0.0))
report = od.explain_weight_decay(od.adamw(1e-3, 1e-4, mask=rules), params)
print(report)
report.check()  # raises if there is any warning: pin it in a test of your own
"""
BROKEN = """\
tx = optax.chain(optax.adam(1e-3), optax.add_decayed_weights(1e-4))
print(od.explain_weight_decay(tx, params))
"""


def explained() -> str:
    """Two snippets and what they print."""
    namespace: dict[str, Any] = {"jnp": jnp, "optax": optax, "od": od}
    return (
        "A healthy optimizer:\n\n"
        + _run(HEALTHY, namespace)
        + "\nA broken one, which trains without complaint in Optax:\n\n"
        + _run(BROKEN, namespace)
    )


def _run(code: str, namespace: dict[str, Any]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    return f"```python\n{code}```\n\n```text\n{output.getvalue()}```\n"


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


SECTIONS: dict[str, Callable[[], str]] = {
    "figure2_digits": figure2_digits,
    "explained": explained,
    **_docs_parts.SECTIONS,
    **_step_parts.SECTIONS,
}


def rendered(text: str) -> str:
    """The text with every generated part written anew."""
    return PART.sub(lambda part: part[1] + SECTIONS[part[2]]() + part[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        text = path.read_text()
        if rendered(text) != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(rendered(text))
    print(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
