"""The printer of every report: tables and notes of at most 80 columns."""

import html
import math
import textwrap
from collections.abc import Sequence

WIDTH = 80
_GAP = "  "
_MAX_LINES = 40
_LAST_LINES = 8


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], sides: str, elastic: int | None = None
) -> list[str]:
    """The lines of a table; a first cell that is too long has a line of its own above its row.

    Args:
      header: one text for each column.
      rows: cells of the same number.
      sides: for each column ``<`` or ``>``, the side to which it is aligned.
      elastic: the column that is shortened if the header would not fit otherwise.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = WIDTH - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)
    if elastic is not None:
        widths[elastic] -= max(len(header[0]) - room, 0)
        rows = [
            [shortened(cell, widths[elastic]) if i == elastic else cell for i, cell in enumerate(r)]
            for r in rows
        ]
    widths[0] = max(len(header[0]), min(widths[0], room))
    blocks = [_block(row, widths, sides) for row in rows]
    return [*_block(header, widths, sides), *_without_middle(blocks)]


def _block(cells: Sequence[str], widths: Sequence[int], sides: str) -> list[str]:
    above = [cells[0]] if len(cells[0]) > widths[0] else []
    columns = zip(["", *cells[1:]] if above else cells, sides, widths, strict=True)
    return [*above, _GAP.join(f"{cell:{side}{width}}" for cell, side, width in columns).rstrip()]


def _without_middle(blocks: Sequence[list[str]]) -> list[str]:
    """The lines of the first and the last blocks, if there are too many."""
    height = max(map(len, blocks), default=1)
    most, last = _MAX_LINES // height, _LAST_LINES // height
    skipped = len(blocks) - most
    if skipped > 0:
        gap = [f"... {skipped} more lines ..."]
        blocks = [*blocks[: most - last], gap, *blocks[len(blocks) - last :]]
    return [line for block in blocks for line in block]


def shortened(text: str, width: int) -> str:
    """The beginning and the end of a text that is too long."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return text[:head] + ".." + text[len(text) - (width - 2 - head) :]


def filled(text: str, mark: str = "") -> str:
    """A paragraph of at most 80 columns, its later lines indented."""
    return textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent="  ")


def number_of_steps(steps: float, unknown: str) -> str:
    """Steps without decimals; `unknown` for NaN, "never" for infinity."""
    if not math.isfinite(steps):
        return unknown if math.isnan(steps) else "never"
    return f"{steps:,.0f}" if steps < 1e7 else f"{steps:.1e}"


def as_html(
    title: str,
    notes: Sequence[str],
    parts: Sequence[tuple[Sequence[str], Sequence[Sequence[str]], str]],
) -> str:
    """A report as HTML for notebooks: the title, the notes, and a table for each part.

    A part is a header, rows and sides as for :func:`table`. Colours are those of the notebook,
    dark or light; every text is escaped, for names of parameters may hold ``<``.
    """
    blocks = [f"<p><b>{html.escape(title)}</b></p>"]
    if notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
        blocks.append(f"<ul>{items}</ul>")
    return "".join([*blocks, *(_html_table(*part) for part in parts)])


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    align = ["left" if side == "<" else "right" for side in sides]

    def line(tag: str, cells: Sequence[str]) -> str:
        texts = (
            f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(cells, align, strict=True)
        )
        return f"<tr>{''.join(texts)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"
