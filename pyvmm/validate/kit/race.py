"""Calls of several threads, and which of them went on at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyvmm.validate.kit.toolbox import Toolbox

Result = TypeVar("Result")


class Overlaps:
    """Makes calls of several threads; those that begin while another goes on are races."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._lock = threading.Lock()
        self._under_way = 0

    def __call__(self, call: Callable[..., Result], *arguments: object) -> Result:
        with self._lock:
            self._tools.tried(self._under_way > 0, "calls began while another went on")
            self._under_way += 1
        try:
            return call(*arguments)
        finally:
            with self._lock:
                self._under_way -= 1


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Call ``work(index)`` in ``count`` threads; the first error is raised here."""
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def again_and_again(*calls: Callable[[], None]) -> Iterator[None]:
    """Make these calls by turns in another thread; what fails there fails here."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                for call in calls:
                    call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
