"""Memory is given back, whatever happens meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from pyvmm.kvm.memfd import Memfd


def _interrupt(frame: FrameType, event: str, argument: Any) -> None:
    if event == "call":  # where Python runs a signal's handler, too
        raise KeyboardInterrupt


def test_a_ctrl_c_while_memory_is_given_back_keeps_none() -> None:
    # A file's, because the kernel joins anonymous mappings with their neighbours.
    with Memfd("given-back", 3 * 4096) as file:
        mapping = file.map()
    pointer = mapping.pointer
    mapping.close()
    assert "memfd:given-back" in Path("/proc/self/maps").read_text()
    sys.setprofile(_interrupt)
    del pointer
    sys.setprofile(None)
    assert "memfd:given-back" not in Path("/proc/self/maps").read_text()
