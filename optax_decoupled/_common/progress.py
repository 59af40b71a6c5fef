"""How far is a call that takes longer than some seconds? A line on stderr, in a terminal alone."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

AFTER = 5.0  # seconds: a shorter call needs no line
_CLEAR = "\r\033[K"


def in_terminal() -> bool:
    """Whether stderr is a terminal; it may be None, or closed."""
    stream = sys.stderr
    return stream is not None and not getattr(stream, "closed", False) and stream.isatty()


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that sets how far the call is; the line adds the seconds taken.

    A thread writes the line, so that it goes on while XLA compiles. It is erased at the end.
    """
    if not in_terminal():
        yield lambda text: None
        return
    far, finished = [""], threading.Event()
    thread = threading.Thread(target=_show, args=(title, far, finished), daemon=True)
    thread.start()
    try:
        yield lambda text: far.__setitem__(0, text)
    finally:
        finished.set()
        thread.join()


def _show(title: str, far: list[str], finished: threading.Event) -> None:
    start, pause, erase = time.monotonic(), AFTER, ""
    while not finished.wait(pause):
        text = f"{title}: {far[0]}, {time.monotonic() - start:.0f} s"
        print(_CLEAR + text[: _width() - 1], end="", file=sys.stderr, flush=True)
        pause, erase = 0.5, _CLEAR
    print(erase, end="", file=sys.stderr, flush=True)


def _width() -> int:
    """Columns of the terminal that shows stderr; stdout may be a file."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80
