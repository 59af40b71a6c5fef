"""How do results read? Tables of records, in Markdown for the docs and in the terminal."""

import textwrap
from typing import Any

from benchmarks.lib.readings import slope_text
from benchmarks.lib.rules import PERCENT

# Of files that are not the official ones, by the checksum that the record has.
CIFAR10_COPIES = {
    "f92f7dac137a6595509ca53c72ccc15c9e37ad618fca469e205b031cdb1cbb2b": "from a JPEG copy of the "
    "images, with quality loss against the original pixels; ",
}
WIDTH = 80  # of a terminal
Rows = list[list[str]]  # the first is the header, the first column the names


def markdown(rows: Rows, align: str = "---:") -> str:
    """`align` is that of the columns after the first: numbers stand to the right."""
    header, *body = rows
    ruler = ["---"] + [align] * (len(header) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ruler, *body))


def plain(rows: Rows) -> str:
    """For the terminal: the first cell of the header, a title, has a line of its own."""
    (title, *header), *body = rows
    lines = [["", *header], *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in lines
    ]
    return "\n".join([title, *text, ""])


def wrapped(sentences: list[str]) -> str:
    """The same as `bullets`, for the terminal."""
    return "\n".join(
        textwrap.fill(x, WIDTH, initial_indent="- ", subsequent_indent="  ") for x in sentences
    )


def folded(parts: list[str]) -> str:
    """Markdown that unfolds at a click."""
    inside = "\n".join(parts)
    return f"<details>\n<summary>Numbers and sentences</summary>\n\n{inside}\n</details>\n"


def of_grid(axis: list[float], place: int) -> str:
    """A value of a grid's axis, and whether it is one of the ends."""
    return f"{axis[place]:.2g}{' (at the edge)' if place in (0, len(axis) - 1) else ''}"


def bullets(sentences: list[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def landscape_rows(title: str, result: dict[str, Any]) -> Rows:
    """A row for each optimizer of one of the groups of `readings.results`."""
    rows = [[title, "test error %", "rate", "decay", "near best", f"slope [{PERCENT}]"]]
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
        "MNIST-1D": f"{record['train_images']:,} examples of MNIST-1D "
        f"({record['test_images']:,} others held out)",
        "CIFAR-10": f"{record['train_images']:,} images of CIFAR-10 ({copy}random crops and "
        f"mirror images; {record['test_images']:,} test images)",
    }[record["data"]]
    return (
        f"{record['network']} on {data}, {budget['epochs']} epochs of batches of "
        f"{budget['batch_size']}, {budget['seeds']} seeds{draw}"
    )
