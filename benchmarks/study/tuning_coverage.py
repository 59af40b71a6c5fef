"""How often do the intervals of cross-fitted estimates hold the true number?

The estimates of `optax_decoupled.sweep`: costs of sequential tuning, sizes of basins, advantages,
shears. The landscapes are drawn from normal distributions with the mean and the covariance over
seeds that the eight landscapes of Figure 2 on digits have, and clipped to 0 and 100 %; optimizers
of one network share their seeds, as there. The true number is that of the landscape of the means
of these distributions, where nothing is left to chance.
For each number of seeds: how often the 90 % and the 95 % interval hold it, and the bias of the
estimate in units of its standard deviation. The package's method, the jackknife with Student's
quantile, is compared with bootstraps over seeds: percentiles, bias-corrected and accelerated
(BCa, Efron 1987), and studentized by the jackknife (bootstrap-t). In a bootstrap's resample a
seed and its copies stand in the same half, because a copy that measures what the seed chose is
not independent.
The bootstraps, which take longer, see every fourth draw.

A run of about 7 minutes.

Usage: python -m benchmarks.study.tuning_coverage [--out DIR] [--quick]
"""

import argparse
import json
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.lib.harness import RESULTS, environment, write_json
from benchmarks.lib.progress import tracked
from benchmarks.lib.readings import landscape, rounded
from benchmarks.lib.tables import plain
from optax_decoupled.sweep import Estimate, Landscape, shear
from optax_decoupled.sweep._landscape.crossfit import averaged, cross_fitted
from optax_decoupled.sweep._landscape.tuning import at_best, at_best_decay, costs_of_starts

QUESTION = (__doc__ or "").partition("\n")[0]
SEEDS = (5, 10, 24, 48)
LEVELS = (0.9, 0.95)
REPEATS, RESAMPLES, SPLITS = 100, 100, 20
EVERY = 4  # the bootstraps, which take longer, see so many times fewer draws
MOMENTUM = 0.9
NUMBERS = (
    "mean cost, decay first",
    "worst cost, decay first",
    "mean cost, rate first",
    "worst cost, rate first",
    "cells within 10 %",
    "rates within 10 %",
    "error at a middling rate",
    "best error",
)
NORMAL = NormalDist()
# The landscape of the means; what the errors are before they are clipped: mean [L, W, 1], and
# residuals over the seeds [L, W, S] / √(S - 1).
Population = dict[str, tuple[Landscape, np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="a few draws, to see that it works")
    arguments = parser.parse_args()
    repeats, resamples = (2, 5) if arguments.quick else (REPEATS, RESAMPLES)
    name = "tuning_coverage" + ("_quick" if arguments.quick else "")
    start, found = time.perf_counter(), {}
    for seeds in SEEDS[: 2 if arguments.quick else None]:
        found[str(seeds)] = of_seeds(populations(), seeds, repeats, resamples)
        print(plain(rows(seeds, found[str(seeds)])), flush=True)
    record = {
        "name": name,
        "question": QUESTION,
        **environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "repeats": repeats,
        "numbers": list(NUMBERS),
        "seeds": found,
    }
    write_json(arguments.out / f"{name}.json", rounded(record))


def populations() -> dict[str, Population]:
    """Of each network on digits: what its landscapes are drawn from."""
    record = json.loads((RESULTS / "figure2_digits.json").read_text())
    return {
        network: {name: _population(landscape(x)) for name, x in result["optimizers"].items()}
        for network, result in record["networks"].items()
    }


def _population(x: Landscape) -> tuple[Landscape, np.ndarray, np.ndarray]:
    """Where a seed diverged, the cell diverges in every draw."""
    error = x.metrics["error"]
    mean = error.mean(-1, keepdims=True)
    residuals = (error - mean) / np.sqrt(error.shape[-1] - 1)
    spread = np.linalg.norm(residuals, axis=-1, keepdims=True)
    same = clipped_mean(mean, spread).repeat(4, 2)
    fixed = Landscape(x.learning_rates, x.weight_decays, np.arange(4), {"error": same})
    return fixed, mean, residuals


def clipped_mean(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Of a normal distribution clipped to 0 and 100."""
    spread = np.maximum(spread, 1e-9)
    low, high = (-mean / spread, (100 - mean) / spread)
    below, above = stats.norm.cdf(low), stats.norm.sf(high)
    inside = mean * (1 - below - above)
    return inside + spread * (stats.norm.pdf(low) - stats.norm.pdf(high)) + 100 * above


def draw(population: Population, rng: np.random.Generator, seeds: int) -> dict[str, Landscape]:
    """Landscapes of so many seeds, which all the optimizers share."""
    ((_, _, residuals), *_) = population.values()
    luck = rng.normal(size=(residuals.shape[-1], seeds))
    drawn = {}
    for name, (fixed, mean, residuals) in population.items():
        error = np.clip(mean + residuals @ luck, 0, 100)
        axes = fixed.learning_rates, fixed.weight_decays, np.arange(seeds)
        drawn[name] = Landscape(*axes, {"error": error})
    return drawn


def numbers(choose: np.ndarray, measure: np.ndarray) -> np.ndarray:
    """`NUMBERS` of each split, as `tuning_cost`, `basin` and `advantage` compute them."""
    turned = choose.swapaxes(1, 2), measure.swapaxes(1, 2)
    costs = [
        costs_of_starts(*pair, np.ones(pair[0].shape[1], bool))[:, -2:]
        for pair in ((choose, measure), turned)
    ]
    best, tuned = at_best(choose, measure)[:, None], at_best_decay(choose, measure)
    cells = (measure <= 1.1 * best[..., None]).sum((1, 2))[:, None]
    rates = (tuned <= 1.1 * best).sum(1, keepdims=True)
    return np.concatenate([*costs, cells, rates, tuned[:, tuned.shape[1] // 2, None], best], 1)


def estimates(row: dict[str, Landscape]) -> dict[str, list[Estimate]]:
    """Of each landscape, and of pairs of them: differences and shears."""
    found = {name: cross_fitted(x.metrics["error"], x.seeds, numbers) for name, x in row.items()}
    for coupled, decoupled in (("SGD+L2", "SGDW"), ("Adam+L2", "AdamW")):
        pairs = zip(found[coupled], found[decoupled], strict=True)
        found[f"{coupled} - {decoupled}"] = [a - b for a, b in pairs]
    sheared = shear(row["SGD+L2"], row["SGDW"], momentum=MOMENTUM)
    return found | {"shear": [sheared.correlation, sheared.difference, sheared.distance]}


def of_seeds(
    networks: dict[str, Population], seeds: int, repeats: int, resamples: int
) -> dict[str, Any]:
    """Coverage by method, network, landscape and number; and what the estimates were."""
    rng = np.random.default_rng(seeds)
    return {
        network: _of_network(population, rng, seeds, repeats, resamples)
        for network, population in networks.items()
    }


def _of_network(
    population: Population, rng: np.random.Generator, seeds: int, repeats: int, resamples: int
) -> dict[str, Any]:
    fixed = {name: parts[0] for name, parts in population.items()}
    truth = {name: [x.value for x in found] for name, found in estimates(fixed).items()}
    values: dict[str, list[Any]] = {name: [] for name in truth}
    hits: dict[str, dict[str, list[Any]]] = {name: {} for name in truth}
    for repeat in tracked(range(repeats), f"draws of {seeds} seeds"):
        row = draw(population, rng, seeds)
        for name, found in estimates(row).items():
            values[name].append([x.value for x in found])
            ends = {f"jackknife {x:.0%}": _ends(found, x) for x in LEVELS}
            if name in row and repeat % EVERY == 0:
                ends |= bootstraps(row[name].metrics["error"], found, rng, resamples)
            for method, (low, high) in ends.items():
                inside = (low <= truth[name]) & (truth[name] <= high)
                hits[name].setdefault(method, []).append(inside)
    return {
        name: {
            "truth": truth[name],
            "mean": np.mean(values[name], 0).tolist(),
            "spread": np.std(values[name], 0, ddof=1).tolist(),
            "coverage": {how: np.mean(x, 0).tolist() for how, x in hits[name].items()},
        }
        for name in truth
    }


def _ends(found: list[Estimate], level: float) -> np.ndarray:
    return np.array([x.interval(level) for x in found]).T


def bootstraps(
    values: np.ndarray, found: list[Estimate], rng: np.random.Generator, resamples: int
) -> dict[str, np.ndarray]:
    """The 95 % intervals [2, K] of other methods."""
    estimate = np.array([x.value for x in found])
    without = np.stack([x.without for x in found], 1)
    drawn, errors = map(np.array, zip(*_resampled(values, rng, resamples), strict=True))
    ends = np.array([0.025, 0.975])
    studentized = (drawn - estimate) / np.where(errors > 0, errors, np.inf)
    low, high = np.quantile(studentized, ends, axis=0)
    error = _standard_error(without)
    percentiles = np.quantile(drawn, ends, axis=0)
    places = _bca_places(drawn, estimate, without, ends)
    columns = zip(drawn.T, places.T, strict=True)
    return {
        "percentile 95%": percentiles,
        "BCa 95%": np.stack([np.quantile(column, place) for column, place in columns], 1),
        "bootstrap-t 95%": np.stack([estimate - high * error, estimate - low * error]),
    }


def _resampled(values: np.ndarray, rng: np.random.Generator, resamples: int) -> Any:
    """For each resample of the seeds the numbers and their standard errors by jackknife."""
    seeds = values.shape[-1]
    while resamples:
        weights = np.bincount(rng.integers(0, seeds, seeds), minlength=seeds).astype(float)
        there = np.flatnonzero(weights)
        if len(there) < 4:
            continue
        resamples -= 1
        kept, weights = values[..., there], weights[there]
        half = np.arange(len(there)) < len(there) // 2
        half = rng.permuted(np.tile(half, (SPLITS // 2, 1)), axis=1)
        halves = np.concatenate([half, ~half])
        rows = weights * (1 - np.eye(len(there)))
        without = np.stack([averaged(kept, halves, row, numbers) for row in rows])
        yield averaged(kept, halves, weights, numbers), _standard_error(without)


def _standard_error(without: np.ndarray) -> np.ndarray:
    """By jackknife, of numbers without each seed, [S, K]."""
    return np.sqrt((len(without) - 1) * without.var(0))


def _bca_places(
    drawn: np.ndarray, estimate: np.ndarray, without: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Which quantiles of the resamples BCa takes, [2, K]."""
    below = ((drawn < estimate).mean(0) + (drawn <= estimate).mean(0)) / 2
    bias = _normal(NORMAL.inv_cdf, below.clip(0.005, 0.995))[None]
    off = without.mean(0) - without
    scale = 6 * (off**2).sum(0) ** 1.5
    acceleration = (off**3).sum(0) / np.where(scale > 0, scale, np.inf)
    moved = bias + _normal(NORMAL.inv_cdf, ends)[:, None]
    return _normal(NORMAL.cdf, bias + moved / (1 - acceleration * moved))


def _normal(function: Any, x: np.ndarray) -> np.ndarray:
    return np.vectorize(function)(x)


def pooled(found: dict[str, Any]) -> dict[str, float]:
    """The coverage of each method, over all networks, landscapes and numbers."""
    kept: dict[str, list[float]] = {}
    for result in found.values():
        for x in result.values():
            for method, coverage in x["coverage"].items():
                kept.setdefault(method, []).extend(coverage)
    return {method: float(np.mean(x)) for method, x in kept.items()}


def rows(seeds: int, found: dict[str, Any]) -> list[list[str]]:
    """A table of the coverage in %."""
    methods = list(pooled(found))
    table = [[f"{seeds} seeds: coverage in %", *methods]]
    for network, result in found.items():
        for name, x in result.items():
            cells = [x["coverage"].get(method) for method in methods]
            text = ["" if c is None else f"{100 * np.mean(c):.0f}" for c in cells]
            table.append([f"{network}, {name}", *text])
    return [*table, ["all", *(f"{100 * x:.0f}" for x in pooled(found).values())]]


if __name__ == "__main__":
    main()
