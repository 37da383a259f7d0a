"""Memory is given back, whatever happens meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pyvmm.mapping import Mapping


def _interrupt(frame: FrameType, event: str, argument: Any) -> None:
    if event == "call":  # where Python runs a signal's handler, too
        raise KeyboardInterrupt


def test_a_ctrl_c_while_memory_is_given_back_keeps_none() -> None:
    mapping = Mapping(3 * 4096)
    pointer, start = mapping.pointer, f"{mapping.address:x}-"
    mapping.close()
    assert start in Path("/proc/self/maps").read_text()
    sys.setprofile(_interrupt)
    del pointer
    sys.setprofile(None)
    assert start not in Path("/proc/self/maps").read_text()
