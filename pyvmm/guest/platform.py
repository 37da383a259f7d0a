"""A platform: the world that a guest is born into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol

from pyvmm.devices.bus import Bus
from pyvmm.errors import ConfigurationError
from pyvmm.guest.elf import is_elf
from pyvmm.guest.image import Image, Segment, elf_image, flat_image
from pyvmm.guest.layout import REAL, Layout
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.kvm.vm import Vm

# Up to there RAM may reach without a gap, on every platform.
_DEVICES = 0xC000_0000


def touches(segment: Segment, pieces: Sequence[tuple[int, int]]) -> bool:
    """Whether it lies over one of the pieces, the first byte and the end of each."""
    return any(segment.gpa < end and first < segment.end for first, end in pieces)


class RegionPlace(NamedTuple):
    """Where a region's views are, in bytes; ``shared_gpa`` is None where it has one view."""

    gpa: int
    size: int
    shared_gpa: int | None


class Ram(Protocol):
    """What a guest is loaded into: the machine's plain memory."""

    def write_ram(self, gpa: int, data: bytes) -> None:
        """Store bytes. Raises :class:`ConfigurationError` unless all of them lie in RAM."""

    def flush(self, gpa: int) -> None:
        """Take a page out of KVM's page tables; its contents stay."""


class Board(Protocol):
    """What a platform's devices are connected to: the machine, once it has vCPUs."""

    @property
    def vm(self) -> Vm: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def memory(self) -> Ram: ...
    @property
    def vcpus(self) -> Sequence[Vcpu]: ...
    @property
    def kick(self) -> Callable[[], None]: ...
    @property
    def calling_vcpu(self) -> Callable[[], Vcpu]: ...


class Platform(ABC):
    """A memory map, how a guest is loaded into it, and the state that its vCPUs start in.

    A new world for guests is one class, in a file of its own beside this one, and a line in
    ``platforms.py`` where the command line is to have it. A platform belongs to one machine.
    """

    #: What a report calls it.
    name: ClassVar[str]
    mode: str
    max_vcpus: int
    #: What its guests' code is, and where a guest without an address of its own lies.
    layout: Layout
    #: GPA and bytes of each piece of plain memory.
    ram: tuple[tuple[int, int], ...]
    #: Ports that no device can have.
    ports: tuple[range, ...] = ()
    #: The fields of :class:`pyvmm.guest.options.PlatformOptions` that it has a use for.
    options: ClassVar[frozenset[str]] = frozenset()
    #: Whether C answers the guest protocol's ports; else ports are devices' or nobody's.
    has_protocol: bool = False
    #: Whether the VM gets KVM's interrupt controllers and PIT, asked for or not.
    has_irqchip: bool = False
    #: Whether a run passes when its vCPUs have ended in HLT and nobody wrote a code.
    hlt_passes: bool = False
    #: Behind a LAPIC: whether HLT with interrupts off, for which KVM has no exit, ends a vCPU that
    #: is the only one.
    sees_hlt_in_kernel: bool = False
    #: Behind a LAPIC: whether the vCPUs from 1 on wait for INIT and SIPI.
    waits_for_sipi: bool = False
    #: Whether numbers of the guest protocol have 64 bits.
    is_wide: bool = False
    #: The linear address, and the GPA, of the stubs that vectors lead to; None if none do.
    vector_stubs: int | None = None
    #: The first byte and the end of what place() has stored until now.
    _stored: tuple[int, int] = (1 << 64, 0)

    def image(self, name: str, data: bytes) -> Image:
        """The guest that a binary file is. Raises :class:`pyvmm.errors.GuestError`."""
        if is_elf(data):
            return elf_image(name, data, self.layout.mode)
        return flat_image(name, data, self.layout)

    def regions(self, views: int) -> tuple[RegionPlace, ...]:
        """The regions of a machine whose regions have so many views."""
        return ()

    @abstractmethod
    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        """Put the guest of so many vCPUs, and what it may rely on, into plain memory.

        Raises :class:`pyvmm.errors.ConfigurationError` for a guest that cannot be one here.
        """

    @abstractmethod
    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        """Give ``vcpu``, one of so many, the state that a guest starts in."""

    def add_devices(self, board: Board) -> None:  # noqa: B027 - most have none
        """Put the platform's devices on the bus; called once."""

    def serial(self) -> bytes:
        """What the guest sent to COM1 until now, as far as it is kept."""
        return b""

    def serial_dropped(self) -> int:
        """How many bytes more it sent."""
        return 0

    def place(self, image: Image, ram: Ram, under: Sequence[tuple[int, int]] = ()) -> None:
        """Store all segments of an image, each of which must lie in one piece of plain memory.

        RAM is zero at first: nothing is written for zeros, but over what was stored before: by
        this, and by the platform, which says so by ``under``, the first byte and the end of each.
        An image that says no mode, as one made by hand may, is the platform's.
        """
        if image.mode not in (REAL.mode, self.mode):
            raise ConfigurationError(
                image.name,
                f"its code is for {image.mode} mode, and the guest {self.name} begins in "
                f"{self.mode} mode",
                "give the machine the platform that the guest was read for",
            )
        for segment in image.segments:
            found = self._ram_at(segment.gpa)
            is_out = found is None or segment.end > sum(found)
            if segment.is_notes and (is_out or touches(segment, under)):
                continue  # no guest's, and not worth what the platform has there
            if is_out:
                raise self._no_place(image, segment, found)
            ram.write_ram(segment.gpa, segment.data)
            zeros = segment.gpa + len(segment.data)
            for first, end in (self._stored, *under) if segment.zeros else ():
                if (start := max(first, zeros)) < (stop := min(end, segment.end)):
                    ram.write_ram(start, bytes(stop - start))
            self._stored = (min(self._stored[0], segment.gpa), max(self._stored[1], zeros))

    def _ram_at(self, wanted: int) -> tuple[int, int] | None:
        for gpa, size in self.ram:
            if gpa <= wanted < gpa + size:
                return gpa, size
        return None

    def _no_place(
        self, image: Image, segment: Segment, found: tuple[int, int] | None
    ) -> ConfigurationError:
        """Why a segment, which begins in the RAM at ``found`` or in none, cannot be stored."""
        size = segment.end - segment.gpa
        if segment.gpa < 0:
            return ConfigurationError(image.name, f"there is no GPA {segment.gpa}")
        if found is None:
            pieces = ", ".join(f"{gpa:#x}-{gpa + size - 1:#x}" for gpa, size in self.ram)
            remedy = f"RAM of the guest {self.name} is {pieces}"
            if "memory" in self.options and sum(self.ram[-1]) <= segment.gpa < _DEVICES:
                remedy += f": --memory {-(-segment.end >> 20)} or more"
            return ConfigurationError(
                image.name, f"{size} bytes at {segment.gpa:#x} are not in RAM", remedy
            )
        end, origin = sum(found), self.layout.origin
        room = f"a guest at {origin:#x} may have {end - origin} bytes"
        if "memory" in self.options and found == self.ram[-1]:
            room = f"--memory {-(-segment.end >> 20)} or more"
        return ConfigurationError(
            image.name,
            f"{size} bytes at {segment.gpa:#x} reach past the end of RAM at {end:#x}",
            room if found[0] <= origin < end else "",
        )
