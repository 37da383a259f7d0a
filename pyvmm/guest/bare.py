"""Bare: what the first programs on the KVM API give their guests, and little else.

RAM from 0, one vCPU, COM1, a keyboard controller and a power register to end by; a HLT is an end,
too. Where the guest is loaded and what its registers hold is said by whoever runs it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from pyvmm.devices.debug_console import DEBUG_CONSOLE, DebugConsole
from pyvmm.devices.debug_exit import DebugExit
from pyvmm.errors import ConfigurationError, GuestError
from pyvmm.guest.boot import set_real_mode
from pyvmm.guest.cpu_state import check_registers, set_flat_mode, set_general, set_registers
from pyvmm.guest.descriptors import STUBS_SIZE, stub_code
from pyvmm.guest.elf import is_elf
from pyvmm.guest.elf_kind import check_code, is_of_64_bits
from pyvmm.guest.image import Image
from pyvmm.guest.layout import Layout
from pyvmm.guest.long_mode import REACH, TABLES_SIZE, page_tables, set_long_mode
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.paging_probe import check_paging
from pyvmm.guest.pc_devices import Printed, add_pc_devices
from pyvmm.guest.pc_memory import pc_ram
from pyvmm.guest.placing import extent, place_below
from pyvmm.guest.platform import Board, Platform, Ram, touches
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import lib

# Where a PC's firmware loads a boot sector, and where a stack has room.
_BOOT_SECTOR = 0x7C00
_DEFAULT_MIB = 16
_REAL_MODE_END = 1 << 16  # what IP reaches
_MIB = 1 << 20
# Real mode's table of vectors, and the stubs that they lead to, in the segment of a PC's BIOS.
_VECTORS_SIZE, _STUBS = lib.VECTORS * 4, 0xFFE00
_BIOS_SEGMENT = 0xF000


class Bare(Platform):
    """``options`` are those of the command line.

    ``show(data)`` is called with what the guest prints, as it prints it.
    """

    name = "bare"
    max_vcpus = 1
    sees_hlt_in_kernel = True
    options: ClassVar[frozenset[str]] = frozenset(
        {"mode", "memory", "load", "entry", "registers", "hlt", "exit_port"}
    )

    def __init__(
        self, options: PlatformOptions, *, show: Callable[[bytes], object] | None = None
    ) -> None:
        self._printed = Printed(show)
        self.mode = options.mode or "real"
        self.ram = pc_ram(_DEFAULT_MIB if options.memory is None else options.memory)
        load = _BOOT_SECTOR if options.load is None else options.load
        self.layout = Layout(self.mode, load)
        self.hlt_passes = options.hlt != "fail"
        self._is_placed = options.load is not None
        self._is_mode_asked = options.mode is not None
        self._entry = options.entry
        self._registers = options.registers
        self._exit_port = options.exit_port
        self._tables = 0
        self.vector_stubs = _STUBS if self.mode == "real" else None
        check_registers(self._registers)

    def image(self, name: str, data: bytes) -> Image:
        if is_elf(data):
            check_code(name, data, self.mode)
            if not self._is_mode_asked and is_of_64_bits(data):
                raise GuestError(
                    name,
                    "it is a 64-bit ELF file, and a guest begins in real mode here unless another "
                    "is said",
                    "--mode long is for such code; --mode real runs it all the same",
                )
        return super().image(name, data)

    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        first = next(segment.gpa for segment in image.segments if not segment.is_notes)
        if self._is_placed and first != self.layout.origin:
            raise ConfigurationError(
                "--load",
                f"the guest says itself where it lies, {first:#x}",
                "drop it",
            )
        self.place(image, ram, self._lead_vectors(image, ram))
        if self.mode == "long":
            self._tables = place_below(
                "the page tables of long mode", TABLES_SIZE, extent(image.segments)
            )
            ram.write_ram(self._tables, page_tables(self._tables))

    def _lead_vectors(self, image: Image, ram: Ram) -> list[tuple[int, int]]:
        """In real mode let each vector end the run, as nothing here answers it; what was stored.

        A guest that lies there itself has its own. Without them an INT would go to 0:0 and run
        through zeros into the guest's beginning, as if nothing had been amiss.
        """
        pieces = [(0, _VECTORS_SIZE), (_STUBS, _STUBS + STUBS_SIZE)]
        own = [segment for segment in image.segments if not segment.is_notes]
        if self.mode != "real" or any(touches(segment, pieces) for segment in own):
            return []
        offsets = range(_STUBS & 0xFFFF, (_STUBS & 0xFFFF) + lib.VECTORS)
        ram.write_ram(0, b"".join(struct.pack("<HH", at, _BIOS_SEGMENT) for at in offsets))
        ram.write_ram(_STUBS, stub_code())
        return pieces

    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        entry = image.entry if self._entry is None else self._entry
        stack = min(sum(self.ram[0]), REACH)
        if self.mode == "real":
            set_real_mode(vcpu, 0)
            stack = _BOOT_SECTOR
        elif self.mode == "protected":
            set_flat_mode(vcpu)
        else:
            set_long_mode(vcpu, self._tables)
        set_general(vcpu, rsp=stack)
        set_registers(vcpu, self._registers, is_real=self.mode == "real")
        if self.mode != "long":
            check_paging(self._registers)
        if not any(name.lstrip("re") == "ip" for name, _ in self._registers):
            ip = entry - int(vcpu.get_sregs().cs.base)
            if self.mode == "real" and not 0 <= ip < _REAL_MODE_END:
                raise ConfigurationError(
                    image.name,
                    f"its entry {entry:#x} is beyond what real mode reaches with this CS",
                    f"--set cs={entry >> 4 & 0xF000:#x}, or another --mode"
                    if entry < _MIB
                    else "use --mode protected or long",
                )
            if self.mode == "protected" and ip >> 32:
                raise ConfigurationError(
                    image.name,
                    f"its entry {entry:#x} is no address of 32 bits",
                    "use --mode long",
                )
            set_registers(vcpu, [("rip", ip)], is_real=False)

    def add_devices(self, board: Board) -> None:
        # A guest prints on one or the other: both are one text, in the order of their bytes.
        add_pc_devices(board, self._printed.take)
        board.bus.add_ports(
            range(DEBUG_CONSOLE, DEBUG_CONSOLE + 1), DebugConsole(self._printed.take)
        )
        if self._exit_port is not None:
            board.bus.add_ports(range(self._exit_port, self._exit_port + 1), DebugExit())

    def serial(self) -> bytes:
        return self._printed.output

    def serial_dropped(self) -> int:
        return self._printed.dropped
