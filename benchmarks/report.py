"""Which numbers do the README and docs print? Writes them from the committed JSON results.

Usage: python benchmarks/report.py [--check]

A part of a Markdown file between `<!-- generated:NAME -->` and `<!-- end -->` is written by the
function of that name below or in the modules of parts, or by the figure's script of that name.
`--check` changes nothing and fails if a part is out of date.
"""

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by its path, not with -m

from benchmarks.cost import growth
from benchmarks.figures import landing, verdicts
from benchmarks.lib import docs_parts, snippets, step_parts
from benchmarks.lib.harness import RESULTS, ROOT
from benchmarks.lib.progress import tracked
from benchmarks.study import (
    held_by,
    hyperball,
    language_model,
    modular_addition,
    weight_history,
    where_to,
)

PART = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


FIGURES = (
    *("figure1", "figure2_cifar10", "figure2_digits", "figure2_mnist1d", "figure3", "figure4"),
    "normalized_decay",
)


def figure(name: str) -> str:
    """What a figure's script says of its results; `figure1_resnet` is `figure1` at that size."""
    script = next(x for x in FIGURES if name == x or name.startswith(f"{x}_"))
    record = json.loads((RESULTS / f"{name}.json").read_text())
    return importlib.import_module(f"benchmarks.figures.{script}").report({**record, "name": name})


def study(name: str, report: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """What a study's script says of its results."""
    return lambda: report(json.loads((RESULTS / f"{name}.json").read_text()))


SECTIONS = {
    "where_to": study("where_to", where_to.report),
    "growth": study("growth", growth.report),
    "held_by": study("held_by", held_by.report),
    "hyperball": study("hyperball", hyperball.report),
    "language_model": study("language_model", language_model.report),
    "modular_addition": study("modular_addition", modular_addition.report),
    "weight_history": study("weight_history", weight_history.report),
    "range_of_edges": study("modular_addition", modular_addition.range_of_edges),
    "landing": landing.report,
    "landing_limits": landing.limits,
    "verdicts": verdicts.report,
    "all_verdicts": verdicts.whole_report,
    **docs_parts.SECTIONS,
    **snippets.SECTIONS,
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
    paths = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
    for path in tracked(paths, "pages"):
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
