"""Which numbers do the README and docs print? Writes them from the committed JSON results.

Usage: python benchmarks/report.py [--check]

A part of a Markdown file between `<!-- generated:NAME -->` and `<!-- end -->` is written by the
function of that name below or in the modules of parts, or by the figure's script of that name.
`--check` changes nothing and fails if a part is out of date.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by its path, not with -m

import optax_decoupled as od
from benchmarks.figures import verdicts
from benchmarks.lib import docs_parts, step_parts
from benchmarks.lib.harness import RESULTS, ROOT
from benchmarks.study import hyperball, modular_addition, where_to

PART = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


FIGURES = ("figure1", "figure2_cifar10", "figure2_digits", "figure3", "figure4", "normalized_decay")


def figure(name: str) -> str:
    """What a figure's script says of its results; `figure1_resnet` is `figure1` at that size."""
    script = next(x for x in FIGURES if name == x or name.startswith(f"{x}_"))
    record = json.loads((RESULTS / f"{name}.json").read_text())
    return importlib.import_module(f"benchmarks.figures.{script}").report({**record, "name": name})


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


def study(name: str, report: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """What a study's script says of its results."""
    return lambda: report(json.loads((RESULTS / f"{name}.json").read_text()))


SECTIONS = {
    "explained": explained,
    "where_to": study("where_to", where_to.report),
    "hyperball": study("hyperball", hyperball.report),
    "modular_addition": study("modular_addition", modular_addition.report),
    "verdicts": verdicts.report,
    **docs_parts.SECTIONS,
    **step_parts.SECTIONS,
}


def rendered(text: str, folder: Path) -> str:
    """The text of a file in this folder with every generated part written anew."""
    to_root = os.path.relpath(ROOT, folder).replace(os.sep, "/")
    prefix = "" if to_root == "." else f"{to_root}/"

    def part(match: re.Match[str]) -> str:
        name = match[2]
        body = SECTIONS[name]() if name in SECTIONS else figure(name)
        body = body.replace("](benchmarks/", f"]({prefix}benchmarks/")
        return match[1] + body + match[3]

    return PART.sub(part, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))):
        text = path.read_text()
        new = rendered(text, path.parent)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new)
    print(f"{'out of date' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
