"""The one place where the compiled module comes in.

``ffi`` and ``lib`` are cffi's, in API mode: every call releases the GIL, every
constant and structure layout is what the C compiler saw.
"""

from __future__ import annotations

try:
    from pyvmm._native import ffi, lib
except ImportError as error:  # an unbuilt checkout, or another Python's build
    raise ImportError(
        f"pyvmm._native is not there ({error}): the run loop is not compiled; "
        "run `pip install .` (or `pip install -e .`) in the project's folder"
    ) from error

__all__ = ["ffi", "lib"]
