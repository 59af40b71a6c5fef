"""Ctrl-C during a sweep: heard whenever it comes, and answered in one sentence."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from optax_decoupled.sweep.grid import Results
from optax_decoupled.sweep.store import Directory


@contextlib.contextmanager
def answered(results: Results, directory: Directory | None) -> Iterator[list[int]]:
    """Lets an interrupt say what is kept; yields a list that holds it, should it be lost.

    Python drops what is raised in callbacks, such as those of JAX at each garbage
    collection, and with it an interrupt that comes while one runs.
    """
    came: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    main = threading.current_thread() is threading.main_thread()
    ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if ours:
            signal.signal(signal.SIGINT, hear)
        yield came
    except KeyboardInterrupt:
        done, total = results.done, results.finished.size
        raise KeyboardInterrupt(
            f"stopped after {done} of {total} cells; none is kept. Pass directory= to keep them "
            "and to go on later."
            if directory is None
            else f"stopped; {done} of {total} cells are kept in {str(directory)!r}. Run the same "
            "sweep again to go on."
        ) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
