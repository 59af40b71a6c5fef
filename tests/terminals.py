"""A terminal that is none: what is written to it can be read."""

import contextlib
import os
import pty
import threading
from collections.abc import Callable, Iterator
from typing import TextIO


@contextlib.contextmanager
def terminal() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """Yields a stream that is a terminal, and a function for its text, to be called afterwards."""
    ours, theirs = pty.openpty()
    parts: list[bytes] = []

    def collect() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                parts.append(part)

    reader = threading.Thread(target=collect)
    reader.start()
    with open(theirs, "w") as stream:
        yield stream, lambda: b"".join(parts).decode()
    reader.join()
    os.close(ours)
