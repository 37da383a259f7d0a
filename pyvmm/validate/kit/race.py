"""Calls of several threads, and which of them went on at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
