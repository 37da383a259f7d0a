"""The guest protocol in real mode: where it has memory, and how a guest begins."""

from __future__ import annotations

from typing import ClassVar

from pyvmm.errors import ConfigurationError
from pyvmm.guest.boot import MAX_VCPUS, RAM_SIZE, low_memory, set_boot_state
from pyvmm.guest.image import Image
from pyvmm.guest.layout import REAL
from pyvmm.guest.platform import Platform, Ram, RegionPlace
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import lib

REGION_GPA = 0x40000
REGION_SIZE = 0x40000
SHARED_VIEW_GPA = 0xC0000
# By the number of views.
_REGIONS = {
    1: (RegionPlace(REGION_GPA, REGION_SIZE, None),),
    2: (RegionPlace(REGION_GPA, REGION_SIZE, SHARED_VIEW_GPA),),
}


class RealMode(Platform):
    """``docs/protocol.md`` is the contract."""

    name = "protocol"
    mode = "real"
    max_vcpus = MAX_VCPUS
    layout = REAL
    ram = ((0, RAM_SIZE),)
    # C answers each in one width and direction only; in others they are still the protocol's.
    ports: tuple[range, ...] = (
        range(lib.PORT_CONSOLE, lib.PORT_CONSOLE + 1),
        range(lib.PORT_EXIT, lib.PORT_EXIT + 1),
        range(lib.PORT_DOORBELL_GPA, lib.PORT_FEATURES + 4),
    )
    options: ClassVar[frozenset[str]] = frozenset({"mode"})
    has_protocol = True
    vector_stubs = lib.VECTOR_STUBS

    def regions(self, views: int) -> tuple[RegionPlace, ...]:
        return _REGIONS[views]

    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        ram.write_ram(0, low_memory())
        self.place(image, ram, [(0, len(low_memory()))])
        if not 0 <= image.entry <= 0xFFFF:
            raise ConfigurationError(
                image.name,
                f"its entry {image.entry:#x} is beyond what real mode reaches with CS 0",
            )

    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        set_boot_state(vcpu, vcpus, image.entry)
