"""Modules that have another name now: the old one works for one release, and says so."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_BINDINGS = ("clock", "coalesced", "cpuid", "dirty_log", "dirty_ring", "eventfd", "exits", "fd") + (
    "guest_memfd",
    "ioctls",
    "irq_routing",
    "mapping",
    "memfd",
    "msrs",
    "stats",
    "vcpu",
    "vm",
)
_WINGS = {
    "kit": (
        "capabilities",
        "case",
        "check",
        "guest",
        "memory",
        "routines",
        "toolbox",
        "userfault",
        "watch",
    ),
    "run": ("catalogue", "runner", "stuck", "worker"),
    "results": ("baseline", "ktap", "lines", "report", "result"),
    "kernels": ("lab_run", "two_kernels"),
}
#: Old names and new ones, below ``pyvmm``; the first of several new ones that has a name gives it.
MOVED: dict[str, tuple[str, ...]] = {
    **{name: (f"kvm.{name}",) for name in _BINDINGS},
    "uapi": ("kvm.uapi", "page_states", "loop.vcpu_loop"),
    "vcpu_loop": ("loop.vcpu_loop",),
    "vcpu_thread": ("loop.vcpu_thread",),
    "timeline": ("trace.timeline",),
    "tracefs": ("trace.tracefs",),
    "validate.model.guest_memfd": ("validate.model.abis.guest_memfd",),
    "validate.model.memory_error": ("validate.model.abis.memory_error",),
    "validate.model.memslots": ("validate.model.abis.memslots",),
    **{
        f"validate.{name}": (f"validate.{wing}.{name}",)
        for wing, names in _WINGS.items()
        for name in names
    },
}


class _Alias:
    """Makes a module whose names are those of other modules."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = tuple(f"pyvmm.{target}" for target in targets)

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual one."""

    def exec_module(self, module: ModuleType) -> None:
        import warnings

        targets = self._targets
        warnings.warn(f"{module.__name__} is {targets[0]} now", DeprecationWarning, stacklevel=2)

        def find(name: str) -> Any:
            for target in targets:
                try:
                    return getattr(importlib.import_module(target), name)
                except AttributeError:
                    continue
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__doc__ = f"The old name of :mod:`{targets[0]}`."
        module.__getattr__ = find  # type: ignore[method-assign]


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != "pyvmm" or rest not in MOVED:
            return None
        loader: Any = _Alias(MOVED[rest])  # importlib.abc would cost every import of pyvmm 2 ms
        return ModuleSpec(name, loader)


def install() -> None:
    """Let ``import`` find the old names, after everything that is really there."""
    sys.meta_path.append(_Finder())
