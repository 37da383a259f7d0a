"""What a case is given: VMs and memory that are closed when it ends, and random numbers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, TypeVar

from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.system import Kvm
from pyvmm.native import lib
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import Case
from pyvmm.validate.kit.check import Missing
from pyvmm.validate.kit.guest import GuestVm
from pyvmm.validate.kit.memory import Memory, SharedSide

Closable = TypeVar("Closable", bound=Any)


class Toolbox:
    """A context manager; everything it made is closed in reverse order.

    ``random`` is seeded from the run's seed and the case's name. A case that needs two CPUs, or
    that has told of races, ``is_race``: it passes only when there were ``races``. ``beat`` is to be
    called with each part of its work that a long case has done: its deadline is counted from it.
    ``scripts`` is for a case of the model to say how many it has played.
    """

    def __init__(
        self, seed: str, case: Case | None = None, beat: Callable[[], object] = lambda: None
    ) -> None:
        self.case = case
        self.beat = beat
        self.random = random.Random(seed)
        self.is_race = case is not None and "two_cpus" in case.needs
        self.races = 0
        self.scripts = 0
        self._said = ""
        self._provoked: list[str] = []
        self._tried: dict[str, list[bool]] = {}
        self._resources = ExitStack()

    @cached_property
    def kvm(self) -> Kvm:
        return self.keep(Kvm())

    def keep(self, thing: Closable) -> Closable:
        """Close ``thing`` when the case ends."""
        self._resources.callback(thing.close)
        return thing

    def on_close(self, call: Callable[[], object]) -> None:
        self._resources.callback(call)

    def vm(self, vm_type: int = lib.KVM_X86_DEFAULT_VM, cpus: int = 1) -> GuestVm:
        return self.keep(GuestVm(self.kvm, vm_type, cpus))

    def private_vm(self, cpus: int = 1) -> GuestVm:
        """A software-protected VM: its pages can be private."""
        return self.vm(lib.KVM_X86_SW_PROTECTED_VM, cpus)

    def say(self, what: str) -> None:
        """How much the case did, for the detail of its result."""
        self._said = what

    # ---- races ----

    def provoked(self, count: int, what: str) -> None:
        """So many races came about: "5 lost races in 100 flips"."""
        self.beat()
        self.is_race = True
        self.races += count
        self._provoked.append(f"{count:,} {what}")

    def tried(self, was_race: bool, what: str) -> None:
        """One try, and whether it became a race: "5 of 8 calls began while another went on"."""
        self.beat()
        self.is_race = True
        self.races += was_race
        self._tried.setdefault(what, []).append(was_race)

    def enough(self, least: int, limit_s: float = 5.0) -> Iterator[int]:
        """Count ``least`` rounds, and more as long as there was no race; no longer than this."""
        until = time.monotonic() + limit_s
        for number in itertools.count():
            if (number >= least and self.races) or time.monotonic() >= until:
                return
            self.beat()
            yield number

    @property
    def told(self) -> str:
        """What :meth:`say`, :meth:`provoked` and :meth:`tried` were told, for the detail of a
        result."""
        tried = (f"{sum(each):,} of {len(each):,} {what}" for what, each in self._tried.items())
        return ", ".join(filter(None, [self._said, *self._provoked, *tried]))

    def need(self, name: str) -> None:
        """Skip the case unless the host has this capability; for what a parameter needs."""
        if lack := missing(name):
            raise Missing(f"{name}: {lack}")

    @property
    def has_private_vm(self) -> bool:
        return not missing("private_memory")

    @property
    def emulated_guests(self) -> bool:
        """Whether guests run in KVM's emulator, where each instruction takes long."""
        return bool(missing("native_guests"))

    def memory(
        self,
        vm: GuestVm,
        gpa: int,
        size: int,
        *,
        backing: str = "anonymous",
        slots: int = 1,
        file_offset: int = 0,
        file_size: int = 0,
        file: GuestMemfd | None = None,
        first_slot: int | None = None,
    ) -> Memory:
        return self.keep(
            Memory(
                vm,
                gpa,
                size,
                backing=backing,
                slots=slots,
                file_offset=file_offset,
                file_size=file_size,
                file=file,
                first_slot=first_slot,
            )
        )

    def shared_side(self, gpa: int, size: int, backing: str = "anonymous") -> SharedSide:
        return self.keep(SharedSide(gpa, size, backing))

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
