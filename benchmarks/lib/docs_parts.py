"""Generated parts of the site's pages: tables and sentences made of committed results."""

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.lib import questions
from benchmarks.lib.answers import tells_nothing, with_control
from benchmarks.lib.harness import RESULTS
from benchmarks.lib.readings import slope_text
from benchmarks.lib.rules import CONTRADICTED, PERCENT, SUPPORTED
from benchmarks.lib.tables import markdown
from optax_decoupled import sweep

GB = 1e9
REGIMES = {  # a record of landscapes, and the groups of it that are columns
    "figure2_digits": {"batch norm": "digits, batch norm", "no normalization": "digits"},
    "figure2_mnist1d": {
        "batch norm": "MNIST-1D, batch norm",
        "layer norm": "MNIST-1D, layer norm",
        "no normalization": "MNIST-1D",
    },
    "figure2_cifar10": {"ResNet-8 of width 8 on small maps": "CIFAR-10, batch norm"},
}
ORDERS = {"decay first": "decay_first", "rate first": "rate_first"}


def tuning_costs() -> str:
    """What tuning one after the other costs, for each convention and regime, in both orders."""
    columns = {title: _of_conventions(row) for title, row in _regimes()}
    normalized = {title: costs for title, costs in columns.items() if "norm" in title}
    plain = {title: costs for title, costs in columns.items() if "norm" not in title}
    tables = [
        _costs(f"with normalization, {title}", {x: (c, order) for x, c in normalized.items()})
        for title, order in ORDERS.items()
    ]
    both = {
        f"{x}, {title}": (c, order) for x, c in plain.items() for title, order in ORDERS.items()
    }
    return "\n".join([*tables, _costs("without normalization", both)]) + (
        "\nA cost is the test error after tuning one after the other, minus that of the best "
        "cell, in points; of the language model, in nats per character. If the decay is tuned "
        "first, a start is a learning rate of the grid; if the rate is, a decay. Starts at which "
        "most runs fail are included. †: the best cell is no better than without decay, as far as "
        "its interval tells, or it is at the grid's edge. Such a cost decides nothing, and is not "
        "counted as more or less below.\n\n"
        f"{_summary(True)} {_summary(False)}\n"
    )


def _of_conventions(row: questions.Row) -> dict[str, tuple[sweep.TuningCost, str]]:
    """The cost of each convention of a row, and † where decay gains nothing."""
    marks = {name: " †" if tells_nothing(x) else "" for name, x in with_control(row).items()}
    return {name: (cost, marks[name.partition(",")[0]]) for name, cost in questions.costs(row)}


def _summary(normalized: bool) -> str:
    """How often each other convention costs more than λ, and less, over the tables' columns."""
    rows = [row for title, row in _regimes() if ("norm" in title) == normalized]
    questioned = {"λ/α": questions.cost_beside_ratio, "λ′": questions.cost_beside_l2}
    texts = []
    for kept, answer in questioned.items():
        words = [found.word for row in rows for found in answer(row)]
        more, less = words.count(SUPPORTED), words.count(CONTRADICTED)
        texts.append(
            f"{kept} costs more than λ in {more} of {len(words)} comparisons, less in {less}"
        )
    where = "With" if normalized else "Without"
    return f"{where} normalization, from the worst start, {'; '.join(texts)}."


def _costs(title: str, columns: dict[str, tuple[dict[str, Any], str]]) -> str:
    names = dict.fromkeys(name for costs, _ in columns.values() for name in costs)
    rows = [
        [name, *(_cost(costs.get(name), order) for costs, order in columns.values())]
        for name in names
    ]
    return markdown([[title, *columns], *rows])


def _regimes() -> Iterator[tuple[str, questions.Row]]:
    for name, groups in REGIMES.items():
        networks = _load(name)["networks"]
        for group in [x for x in groups if x in networks]:
            yield groups[group], networks[group]["optimizers"]
    yield "language model, layer norm", {"AdamW": _load("language_model")["landscape"]}


def _cost(found: tuple[sweep.TuningCost, str] | None, order: str) -> str:
    if found is None:
        return "-"
    cost = getattr(found[0], order)
    return f"{questions.worst(cost)}; {cost.mean.value:.2f}{found[1]}"


def regimes() -> str:
    """Where the best decay goes as the rate doubles, with and without normalization."""
    record = _load("figure2_digits")
    networks, budget = record["networks"], record["budget"]
    optimizers = next(iter(networks.values()))["optimizers"]

    def table(title: str, cell: Callable[[dict[str, Any]], str]) -> str:
        rows = [
            [name, *(cell(network["optimizers"][name]) for network in networks.values())]
            for name in optimizers
        ]
        return markdown([[title, *networks], *rows])

    rates, decays = (len(optimizers["SGDW"][axis]) for axis in ("learning_rates", "weight_decays"))
    return (
        table("as the rate doubles, log₂ of the best decay moves by", slope_text)
        + "\n"
        + table("lowest test error, %", _best)
        + f"\n{record['network']} on {record['train_images']} of "
        f"scikit-learn's digits, {budget['epochs']} epochs, cosine annealing, decay on kernels, "
        f"{rates} rates by {decays} decays, {budget['seeds']} seeds; {PERCENT} intervals by "
        "bootstrap over seeds. The decay is $\\lambda$ for SGDW and AdamW, $\\lambda'$ for the two "
        "with L2.\n"
    )


def _best(optimizer: dict[str, Any]) -> str:
    return f"{optimizer['best']['mean']:.2f} ± {optimizer['best']['spread']:.2f}"


def sweep_speed() -> str:
    record = _load("sweep_speed")
    sweep, loop = (record["cells_per_minute"][key]["median"] for key in ("sweep", "loop"))
    return (
        f"For the digits task of `make run`, on {record['device']['cores']} cores "
        f"({record['device']['kind']}): {sweep:.0f} cells a minute, {record['ratio']:.0f} times as "
        f"many as a loop that jits a step for each cell ({loop:.0f}).\n"
    )


def sweep_memory() -> str:
    """The vectorize curve, and the peak of memory for two tasks."""
    record = _load("sweep_speed")
    tasks = {
        "digits": "MLP on the digits",
        "cifar": "small ConvNet, 5,000 images of CIFAR-10's shape",
    }
    rows = [
        [tasks[x["task"]], *(f"{x[key]:,}" for key in ("cells", "vectorize", "peak_mib"))]
        for x in record["peak_memory"]
    ]
    curve = [[str(x["cells"]), f"{x['median']:.0f}"] for x in record["vectorize"]]
    return (
        markdown([["cells at a time (`vectorize`)", "cells a minute, once compiled"], *curve])
        + "\nThe memory of the process depends on the number of cells that are trained at a time, "
        "not on the size of the grid:\n\n"
        + markdown([["task", "cells", "at a time", "peak, MiB"], *rows])
    )


def explain_speed() -> str:
    record = _load("explain_speed")
    rows = [
        [
            name,
            *(
                f"{statistics.median(result[key]):.1f}"
                for key in ("seconds", "trace_seconds", "copies")
            ),
        ]
        for name, result in record["results"].items()
    ]
    first = next(iter(record["results"].values()))
    size = f"{first['leaves']} parameters of {first['weights'] / 1e6:.0f} million weights in all"
    memory = "extra memory, copies of the weights"
    header = ["optimizer", "seconds", "seconds of one trace", memory]
    return (
        f"For {size}, on {record['device']['cores']} cores ({record['device']['kind']}), beside "
        "the seconds that JAX takes to trace `tx.update` once:\n\n" + markdown([header, *rows])
    )


def additions() -> str:
    """What is new beside a plain AdamW step: time, bytes moved and kept."""
    record = _load("additions")
    tables = [markdown(_steps(name, tree["results"])) for name, tree in record["trees"].items()]
    calls = {name: statistics.median(x) for name, x in record["calls"]["seconds"].items()}
    taken = ", ".join(f"`{name}` {seconds:.2g} s" for name, seconds in calls.items())
    return (
        "The optimizer's step alone, without a network, in float32, "
        f"on {record['device']['cores']} cores ({record['device']['kind']}), medians of "
        f"{record['turns']} turns:\n\n"
        + "\n".join(tables)
        + "\nBytes are per weight; the bytes kept are the optimizer's state. A call for a run of "
        f"{record['calls']['steps']:,} steps takes: {taken}.\n"
    )


def _steps(title: str, results: dict[str, Any]) -> list[list[str]]:
    rows = [[name, *(f"{x[k]:.{n}f}" for k, n in _ADDED.items())] for name, x in results.items()]
    return [[title, "ms", "x optax.adamw", "bytes moved", "bytes kept"], *rows]


_ADDED = {
    "milliseconds": 1,
    "ratio": 2,
    "bytes_per_parameter": 0,
    "state_bytes_per_parameter": 0,
}


def recorder_cost() -> str:
    """The recorder beside the step that it records."""
    record = _load("recorder")
    rows = []
    for case, found in record["results"].items():
        first, second = (run["ratio"] for run in found["runs"])
        rows.append([case, f"{first:.2f}, {second:.2f}", f"{found['compile_ratio']:.2f}"])
    return (
        markdown([["float32", "time over that without it", "compile time"], *rows])
        + "\nThe first three rows time the optimizer's step alone, so they are upper bounds; the "
        "last times a whole training step. Of each pair of times the first is from a process that "
        "compiled the step without the recorder first, the second from one that compiled it last. "
        f"Medians of {record['turns']} turns on {record['device']['cores']} cores "
        f"({record['device']['kind']}).\n"
    )


def bfloat16() -> str:
    record = _load("bfloat16")
    rows = [
        [
            mode,
            f"{statistics.mean(run['final_loss']):.4f} ± {statistics.stdev(run['final_loss']):.4f}",
            ", ".join(f"{error:.1f}" for error in run["test_error_percent"]),
        ]
        for mode, run in record["modes"].items()
    ]
    return markdown([["parameters stored in", "final training loss", "test errors, %"], *rows])


def state_bytes() -> str:
    """Bytes per parameter for each choice, and per device for two of them."""
    record = _load("state_bytes")
    per_parameter = []
    for name, x in record["per_choice"].items():
        sizes = [x["weights"], x["gradients"], x["state"]]
        moved = 2 * (x["weights"] + x["state"]) + x["gradients"]
        cells = [*sizes, sum(sizes), moved]
        per_parameter.append([name, *(f"{n / x['parameters']:.0f}" for n in cells)])
    headers = ["optimizer, parameters", "weights", "gradients", "state", "in all", "moved per step"]
    parts = ["Bytes per parameter:\n", markdown([headers, *per_parameter])]
    for name, models in record["per_device"].items():
        devices = list(next(iter(models.values())))
        rows = [
            [f"{model} parameters", *(_gigabytes(sizes[count]) for count in devices)]
            for model, sizes in models.items()
        ]
        parts += [
            f"Gigabytes per device for weights, gradients and state, all split ({name}):\n",
            markdown([["", *(f"{count} devices" for count in devices)], *rows]),
        ]
    return "\n".join(parts)


def _gigabytes(sizes: dict[str, int]) -> str:
    size = (sizes["weights"] + sizes["gradients"] + sizes["state"]) / GB
    return f"{size:,.0f}" if size >= 100 else f"{size:.2g}"


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


SECTIONS: dict[str, Callable[[], str]] = {
    "recorder_cost": recorder_cost,
    "additions": additions,
    "bfloat16": bfloat16,
    "explain_speed": explain_speed,
    "regimes": regimes,
    "state_bytes": state_bytes,
    "tuning_costs": tuning_costs,
    "sweep_memory": sweep_memory,
    "sweep_speed": sweep_speed,
}
