"""Threads that end as soon as their results are no longer needed.

A pool of `concurrent.futures` hangs if it is interrupted while it starts a thread.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[_Item], _Result], items: Sequence[_Item], workers: int, stop: threading.Event
) -> Iterator[_Result]:
    """Yields the results of `work` in the order in which they finish, or raises the first error.

    `stop` is set when the iterator ends or is closed; `work` may check it to end early.
    """
    todo: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put(work(item))
            except BaseException as error:
                done.put(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        for thread in threads:
            if thread.is_alive():
                thread.join()


def same_settings() -> bool:
    """Whether new threads have the settings of this one: not in `with jax.enable_x64(True)`."""
    theirs = next(in_threads(lambda _: _settings(), [None], 1, threading.Event()))
    return theirs == _settings()


def _settings() -> tuple[object, ...]:
    values = tuple(getattr(jax.config, name, None) for name in jax.config.values)
    return (*values, jax.sharding.get_abstract_mesh())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
