"""The ABIs that the model knows."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis import guest_memfd, in_place, memory_error, memslots
from pyvmm.validate.model.script import Layout, Rules
from pyvmm.validate.model.state import State
from pyvmm.validate.model.system import System

# An ABI: its rules, its model, and the same on KVM.
ABIS: dict[str, tuple[Rules, type[State], Callable[[Toolbox, Layout], System]]] = {
    guest_memfd.RULES.abi: (
        guest_memfd.RULES,
        guest_memfd.GuestMemfdState,
        guest_memfd.GuestMemfdSystem,
    ),
    in_place.RULES.abi: (in_place.RULES, in_place.InPlaceState, in_place.InPlaceSystem),
    memory_error.RULES.abi: (
        memory_error.RULES,
        memory_error.MemoryErrorState,
        memory_error.MemoryErrorSystem,
    ),
    memslots.RULES.abi: (memslots.RULES, memslots.MemslotsState, memslots.MemslotsSystem),
}


def rules_of(abi: str) -> Rules | None:
    return ABIS[abi][0] if abi in ABIS else None
