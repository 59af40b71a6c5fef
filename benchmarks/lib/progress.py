"""How far is a script? A bar on stderr, in a terminal alone: nothing in a pipe."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from optax_decoupled._common.progress import in_terminal

T = TypeVar("T")


def bar() -> Progress:
    """To be entered; what is printed meanwhile stands above it."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(
        *columns,
        "left",
        speed_estimate_period=60,
        refresh_per_second=2,  # drawing takes time from what is measured
        console=Console(stderr=True),
        transient=True,
        disable=not in_terminal(),
    )


def tracked(items: Iterable[T], title: str) -> Iterator[T]:
    """The items, under a bar that says how many are done. Bars do not nest."""
    every: Sequence[T] = list(items)
    with bar() as shown:
        yield from shown.track(every, description=title)
