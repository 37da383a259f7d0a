"""The world of a Linux kernel: a PC without PCI, entered by the Linux boot protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from pyvmm.devices.end_of_run import EndOfRun
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.power import PowerManagement, ResetRegister
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.serial import COM1_IRQ, Serial16550
from pyvmm.errors import UnsupportedError
from pyvmm.guest.acpi import ACPI_GPA, acpi_tables
from pyvmm.guest.bzimage import BzImage, read_bzimage
from pyvmm.guest.cpu_topology import cpuid_of_vcpu
from pyvmm.guest.image import Image, flat_image
from pyvmm.guest.layout import LONG, PROTECTED
from pyvmm.guest.linux_boot import HIGH_MEMORY, LOW_MEMORY_END, enter, place
from pyvmm.guest.linux_probe import try_kernel_code
from pyvmm.guest.platform import Board, Platform, Ram
from pyvmm.kvm.arguments import number
from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import lib

#: In MiB, unless it is said otherwise.
MEMORY = 256
_MOST_MEMORY = 1 << 20
_MIB = 1 << 20

# Memory types by default write-back, and MTRRs on: a kernel without them gives up on PAT.
_MTRR_DEFAULT_TYPE, _ENABLED_WRITE_BACK = 0x2FF, 0x806


class Linux(Platform):
    """What ``docs/linux.md`` says; the guest is a bzImage's bytes.

    ``memory`` is in MiB, ``append`` the kernel's command line, ``initrd`` what its initramfs is
    unpacked from. ``show(data)`` is called with what it sends to COM1. A run passes when the
    guest powers the machine off, and fails when it resets it, as a kernel does that panics with
    ``panic=-1``.
    """

    name = "linux"
    max_vcpus = 64
    layout = LONG
    options: ClassVar[frozenset[str]] = frozenset(("memory", "append", "initrd"))
    has_irqchip = True
    waits_for_sipi = True
    sees_hlt_in_kernel = True

    def __init__(
        self,
        *,
        memory: int = MEMORY,
        append: str = "",
        initrd: bytes | None = None,
        show: Callable[[bytes], object] | None = None,
    ) -> None:
        size = number("memory in MiB", memory, 1, _MOST_MEMORY) * _MIB
        low = min(size, LOW_MEMORY_END)
        self.mode = LONG.mode
        self.ram = ((0, low),) if low == size else ((0, low), (HIGH_MEMORY, size - low))
        self._append, self._initrd = append, initrd
        self._kernel: BzImage | None = None
        self._show = show
        self._serial: Serial16550 | None = None

    def image(self, name: str, data: bytes) -> Image:
        read_bzimage(name, data)  # which says what is wrong with any other file
        return flat_image(name, data, self.layout)

    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        self._kernel = kernel = read_bzimage(image.name, image.segments[0].data)
        self.mode = LONG.mode if kernel.is_64_bit else PROTECTED.mode
        for segment in place(kernel, self.ram, self._append, self._initrd):
            ram.write_ram(segment.gpa, segment.data)
        ram.write_ram(ACPI_GPA, acpi_tables(vcpus))

    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        assert self._kernel is not None
        if vcpu.index == 0:  # the others wait for it
            _check_kvm()
            enter(vcpu, self._kernel)
        vcpu.set_msrs({_MTRR_DEFAULT_TYPE: _ENABLED_WRITE_BACK})

    def add_devices(self, board: Board) -> None:
        set_line = partial(board.vm.irq_line, COM1_IRQ)
        self._serial = Serial16550(set_line=set_line, show=self._show)
        low, *high = (size for _, size in self.ram)
        for device in (
            self._serial,
            Rtc(memory=low, memory_above_4g=sum(high)),
            I8042(_reset_by("its keyboard controller")),
            PowerManagement(_power_off),
            ResetRegister(_reset_by("its reset register")),
        ):
            board.bus.add_ports(device.ports, device)
        has_deadline = board.vm.has(lib.KVM_CAP_TSC_DEADLINE_TIMER)
        for vcpu in board.vcpus:
            entries = cpuid_of_vcpu(
                cpuid_entries(vcpu.get_cpuid2()),
                vcpu.index,
                len(board.vcpus),
                tsc_deadline=has_deadline,
            )
            vcpu.set_cpuid2(cpuid_table(entries))

    def serial(self) -> bytes:
        return b"" if self._serial is None else self._serial.output

    def receive(self, data: bytes) -> int:
        """Type on the serial console; how many bytes there was room for. From any thread."""
        return 0 if self._serial is None else self._serial.receive(data)


def _check_kvm() -> None:
    """Raise :class:`UnsupportedError` where no kernel would get far."""
    with Kvm() as kvm:
        works, seen = try_kernel_code(kvm)
    if not works:
        raise UnsupportedError(
            "platform linux",
            f"{seen}; this KVM runs kernels by software emulation alone",
            "use a KVM on VMX or SVM, or pyvmm lab run",
        )


def _power_off() -> None:
    raise EndOfRun(True)


def _reset_by(what: str) -> Callable[[], None]:
    def reset() -> None:
        raise EndOfRun(False, reason=f"reset the machine by {what}")

    return reset
