"""What does one decay cost at other learning rates? The first page's picture, from results.

Adam on the digits with batch norm. Each convention's decay is tuned at the middle rate and held
over all rates: Adam+L2 with its λ′, AdamW with λ/α as in Optax and PyTorch, AdamW with λ. Half of
the seeds choose the decay and the other half measure the errors, averaged over many splits; bands
are 90 % intervals over seeds. Where λ/α leads beyond the grid, its last decay is taken.

Usage: python -m benchmarks.figures.landing [--out DIR]
"""

import argparse
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.lib.drawing import save
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.readings import interval_of
from benchmarks.lib.rules import PERCENT, Interval
from optax_decoupled.sweep._landscape.crossfit import cross_fitted


class Line(NamedTuple):
    """A convention: its optimizer, whether λ/α is held, and how it is drawn and named."""

    optimizer: str
    keep_ratio: bool
    color: str  # of Okabe and Ito's palette, for colour-blind readers too
    style: str
    words: str


LINES = {
    "Adam+L2, λ′ held": Line("Adam+L2", False, "#D55E00", "s-", "Adam+L2"),
    "optax.adamw, λ/α held": Line("AdamW", True, "#E69F00", "^-", "the AdamW of Optax"),
    "od.adamw, λ held": Line("AdamW", False, "#0072B2", "o-", "`od.adamw`"),
}
Errors = dict[str, list[Interval]]  # of each line, a number for each rate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    draw(_recorded("figure2_digits"), parser.parse_args().out / "landing.png")
    print(report())


def held(optimizer: dict[str, Any], keep_ratio: bool) -> list[Interval]:
    """The error at each rate under the decay that is tuned at the middle one."""
    values = np.array(optimizer["error_percent"], float)
    count, decays = values.shape[:2]
    middle = count // 2
    moves = np.arange(count) - middle if keep_ratio else np.zeros(count, int)

    def errors(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
        chosen = choose[:, middle].argmin(1)
        places = (chosen[:, None] + moves).clip(0, decays - 1)
        return np.take_along_axis(measure, places[..., None], 2)[..., 0]

    found = cross_fitted(values, np.array(optimizer["seeds"]), errors)
    return [interval_of(x) for x in found]


def lines(record: dict[str, Any], network: str) -> Errors:
    optimizers = record["networks"][network]["optimizers"]
    return {name: held(optimizers[x.optimizer], x.keep_ratio) for name, x in LINES.items()}


def draw(record: dict[str, Any], path: Path) -> None:
    rates = np.array(record["networks"]["batch norm"]["optimizers"]["AdamW"]["learning_rates"])
    with plt.rc_context({"font.size": 12}):
        figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
        for name, errors in lines(record, "batch norm").items():
            color, (value, low, high) = LINES[name].color, np.array(errors).T
            ax.plot(rates, value, LINES[name].style, color=color, label=name, lw=2.5, ms=7)
            ax.fill_between(rates, low, high, color=color, alpha=0.2, lw=0)
        middle = rates[len(rates) // 2]
        ax.axvline(middle, color="0.6", ls=":", zorder=0)
        ax.text(1.1 * middle, 0.6, "the decay is tuned here", color="0.35")
        ax.set_xscale("log", base=2)
        ax.set_xticks(rates, [f"{rate:.6g}" for rate in rates], fontsize=11)
        ax.set(xlabel="learning rate", ylabel="test error (%)", ylim=(0, None))
        ax.set_title("One decay, tuned at one learning rate and used at nine", loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="upper right")
        save(figure, path)


def report() -> str:
    """The picture and its caption, with its limits."""
    record = _recorded("figure2_digits")
    normalized, plain = (lines(record, x) for x in ("batch norm", "no normalization"))
    return (
        f"![{ALT}](benchmarks/results/landing.png)\n\n"
        "One decay, tuned at the middle of nine learning rates: a small network with batch norm on "
        f"scikit-learn's digits, {record['budget']['seeds']} seeds, {PERCENT} intervals. The worst "
        f"errors of {_enumerated([x.words for x in LINES.values()])} are "
        f"{_in_order(normalized, max)}; above the tuned rate the last two differ by at most "
        f"{_apart(normalized):.1f} points. This does not hold everywhere: without normalization "
        f"the worst errors are {_in_order(plain, max)}, and on MNIST-1D with batch norm those at "
        f"the lowest rate are {_in_order(_on_mnist1d(), FIRST)}.\n"
    )


def limits() -> str:
    """What the caption leaves out."""
    return (
        "Where the first page's decay is held on MNIST-1D, with batch norm, the errors of "
        f"{_enumerated([x.words for x in LINES.values()])} are {_in_order(_on_mnist1d(), FIRST)} "
        "at the lowest rate, which is far too low, and "
        f"{_in_order(_on_mnist1d(), LAST)} at the highest. On the digits without normalization "
        "all three rise alike at low rates.\n"
    )


FIRST, LAST = operator.itemgetter(0), operator.itemgetter(-1)
ALT = "Test error over nine learning rates with one decay: flat with od.adamw alone"


def _apart(found: Errors) -> float:
    """How far λ and λ/α are apart from the tuned rate on."""
    ratio, ours = (found[x] for x in list(LINES)[1:])
    return max(
        abs(x.value - y.value) for x, y in list(zip(ratio, ours, strict=True))[len(ours) // 2 :]
    )


def _in_order(found: Errors, choose: Callable[[list[Interval]], Interval]) -> str:
    """One error of each line."""
    return _enumerated([f"{choose(found[name]).value:.1f}" for name in LINES]) + " %"


def _enumerated(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _on_mnist1d() -> Errors:
    return lines(_recorded("figure2_mnist1d"), "batch norm")


def _recorded(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
