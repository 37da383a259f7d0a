"""The old name of :mod:`pyvmm.kvm.exits`, for one release."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    found = getattr(importlib.import_module("pyvmm.kvm.exits"), name)
    warnings.warn("pyvmm.exits is pyvmm.kvm.exits now", DeprecationWarning, stacklevel=2)
    return found
