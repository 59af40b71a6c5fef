"""How do results read? Tables of records, in Markdown for the docs and in the terminal."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.lib.readings import slope_text

# Of files that are not the official ones, by the checksum that the record has.
CIFAR10_COPIES = {
    "f92f7dac137a6595509ca53c72ccc15c9e37ad618fca469e205b031cdb1cbb2b": "from a JPEG copy of the "
    "images, with quality loss against the original pixels; ",
}
Rows = list[list[str]]  # the first is the header, the first column the names


def markdown(rows: Rows) -> str:
    header, *body = rows
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *body))


def show(rows: Rows) -> None:
    """Prints a table to the terminal."""
    header, *body = rows
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(header):
        table.add_column(column, justify="right" if i else "left")
    for row in body:
        table.add_row(*row)
    Console().print(table)


def bullets(sentences: list[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def landscape_rows(title: str, result: dict[str, Any]) -> Rows:
    """A row for each optimizer of one of the groups of `readings.results`."""
    rows = [
        [
            title,
            "test error %",
            "best rate",
            "best decay",
            "within 10 % of best",
            "valley slope [95 % interval]",
        ]
    ]
    for name, x in result["optimizers"].items():
        best = x["best"]
        cells = len(x["learning_rates"]) * len(x["weight_decays"])
        rows.append(
            [
                name,
                f"{best['mean']:.2f} ± {best['spread']:.2f}",
                f"{best['learning_rate']:.3g}",
                f"{best['weight_decay']:.2g}",
                f"{x['cells_within_10_percent']} of {cells}",
                slope_text(x),
            ]
        )
    return rows


def image(record: dict[str, Any], caption: str) -> str:
    return f"![{caption}](benchmarks/results/{record['name']}.png)\n"


def setup(record: dict[str, Any]) -> str:
    """What was trained on what, for how long, as the beginning of a sentence."""
    budget = record["budget"]
    everything = record["data"] == "CIFAR-10" and record["train_images"] == 50_000
    draw = "" if everything else " that each draw their own training images"
    copy = CIFAR10_COPIES.get(record["data_sha256"], "")
    data = {
        "digits": f"{record['train_images']} of scikit-learn's digits",
        "CIFAR-10": f"{record['train_images']:,} images of CIFAR-10 ({copy}random crops and "
        f"mirror images; {record['test_images']:,} test images)",
    }[record["data"]]
    return (
        f"{record['network']} on {data}, {budget['epochs']} epochs of batches of "
        f"{budget['batch_size']}, {budget['seeds']} seeds{draw}"
    )
