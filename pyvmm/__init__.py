"""pyvmm: a userspace VMM over /dev/kvm for test guests with private memory.

    from pyvmm import Machine, load_guest

    with Machine(load_guest("guests/convert.S")) as machine:
        report = machine.run(deadline_s=10)
    print(report.result, report.conversions)

Names are imported when they are first used, so that ``pyvmm.lab`` works without the
compiled module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyvmm import moved

if TYPE_CHECKING:
    from pyvmm.errors import (
        ClosedError,
        ConfigurationError,
        GuestError,
        KvmError,
        PyvmmError,
        UnsupportedError,
        WrongTypeError,
    )
    from pyvmm.guest.assembler import assemble, load_guest
    from pyvmm.guest.image import Image
    from pyvmm.kvm.memfd import Memfd
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.uapi import ExitReason
    from pyvmm.machine import Machine
    from pyvmm.page_states import PageState, Policy
    from pyvmm.report import Result, RunReport

__version__ = "0.1.0"

_HOMES = {
    "ClosedError": "errors",
    "ConfigurationError": "errors",
    "GuestError": "errors",
    "KvmError": "errors",
    "PyvmmError": "errors",
    "UnsupportedError": "errors",
    "WrongTypeError": "errors",
    "assemble": "guest.assembler",
    "load_guest": "guest.assembler",
    "Image": "guest.image",
    "Kvm": "kvm.system",
    "Machine": "machine",
    "Memfd": "kvm.memfd",
    "Result": "report",
    "RunReport": "report",
    "ExitReason": "kvm.uapi",
    "PageState": "page_states",
    "Policy": "page_states",
}

__all__ = [
    "ClosedError",
    "ConfigurationError",
    "ExitReason",
    "GuestError",
    "Image",
    "Kvm",
    "KvmError",
    "Machine",
    "Memfd",
    "PageState",
    "Policy",
    "PyvmmError",
    "Result",
    "RunReport",
    "UnsupportedError",
    "WrongTypeError",
    "assemble",
    "load_guest",
]


moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyvmm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pyvmm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
