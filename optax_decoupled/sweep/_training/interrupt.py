"""Ctrl-C during a sweep."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from optax_decoupled.sweep.grid import Results
from optax_decoupled.sweep.store import Directory


@contextlib.contextmanager
def keyboard_interrupts(results: Results, directory: Directory | None) -> Iterator[list[int]]:
    """Makes a KeyboardInterrupt say how many cells are kept, and yields a list of interrupts.

    Python drops an exception that is raised in a callback, such as those that JAX runs at
    each garbage collection. An interrupt that is lost in this way is still in the list.
    """
    interrupts: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    main = threading.current_thread() is threading.main_thread()
    replaces = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if replaces:
            signal.signal(signal.SIGINT, handle)
        yield interrupts
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_message(results, directory)) from None
    finally:
        if replaces:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _message(results: Results, directory: Directory | None) -> str:
    if directory is None:
        way_out = "Pass directory= to keep them and to go on later"
        return f"stopped after {results.count()}; none is kept. {way_out}."
    way_out = "Run the same sweep again to go on"
    if not results.loaded:
        return f"stopped before training; {str(directory)!r} keeps its cells. {way_out}."
    return f"stopped; {results.count()} are kept in {str(directory)!r}. {way_out}."
