"""Multiboot: a 32-bit guest that a boot loader such as GRUB would start, on a small PC.

RAM from 0, in-kernel interrupt controllers and timer, ACPI tables, COM1, RTC, HPET, the debug exit
port, QEMU's firmware configuration, VMware's port and kvm-unit-tests' test device; no PCI. vCPU 0
starts in flat protected mode; the others wait for INIT and a start-up interrupt, as behind every
LAPIC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pyvmm.devices import hpet, vmware_port
from pyvmm.devices.bus import PORTS
from pyvmm.devices.debug_console import DEBUG_CONSOLE, DebugConsole
from pyvmm.devices.debug_exit import DEBUG_EXIT, DebugExit
from pyvmm.devices.fw_cfg import FirmwareConfiguration
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.test_device import TestDevice
from pyvmm.errors import ConfigurationError
from pyvmm.guest.acpi import ACPI_GPA, acpi_tables
from pyvmm.guest.cpu_features import MOST_VCPUS, CpuModel
from pyvmm.guest.cpu_state import check_registers, set_flat_mode, set_general, set_registers
from pyvmm.guest.cpu_topology import cpuid_of_vcpu
from pyvmm.guest.descriptors import GDT_SIZE, gdt
from pyvmm.guest.image import Image
from pyvmm.guest.initrd import read_initrd, split_modules
from pyvmm.guest.layout import PROTECTED
from pyvmm.guest.multiboot_header import multiboot_image
from pyvmm.guest.multiboot_info import LOADER_MAGIC, Module, boot_information
from pyvmm.guest.options import PlatformOptions
from pyvmm.guest.paging_probe import check_paging
from pyvmm.guest.pc_devices import Printed, add_pc_devices
from pyvmm.guest.pc_memory import DEVICES, pc_ram
from pyvmm.guest.placing import HIGH_START, LOW_END, extent, place_below
from pyvmm.guest.platform import Board, Platform, Ram
from pyvmm.kvm.cpuid import cpuid_entries, cpuid_table
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import lib

_DEFAULT_MIB = 256  # what kvm-unit-tests need
_PAGE = 0x1000
_STACK_SIZE = _PAGE
_LONGEST_COMMAND_LINE = 1 << 16
_GDT_ROOM = GDT_SIZE + 7  # to lie where 8 divides
# Where firmware puts the PIC's vectors, and its lines that are triggered by level.
_PICS = ((lib.KVM_IRQCHIP_PIC_MASTER, 0x08, 0xF8), (lib.KVM_IRQCHIP_PIC_SLAVE, 0x70, 0xDE))


class Multiboot(Platform):
    """``options`` are those of the command line.

    ``cpu`` is which of KVM's features the guest is told of, by default all. ``show(data)`` is
    called with what the guest prints, as it prints it. A guest that finds VMware's port takes
    the machine for one of VMware's, so it can be left out.
    """

    name = "multiboot"
    mode = PROTECTED.mode
    layout = PROTECTED
    max_vcpus = MOST_VCPUS
    options: ClassVar[frozenset[str]] = frozenset(
        {"memory", "append", "initrd", "registers", "hlt", "exit_port"}
    )
    has_irqchip = True
    waits_for_sipi = True
    sees_hlt_in_kernel = True

    def __init__(
        self,
        options: PlatformOptions,
        *,
        cpu: CpuModel | None = None,
        show: Callable[[bytes], object] | None = None,
        has_vmware_port: bool = True,
    ) -> None:
        self._cpu, self._printed = cpu or CpuModel(), Printed(show)
        self._has_vmware_port = has_vmware_port
        self.ram = pc_ram(_DEFAULT_MIB if options.memory is None else options.memory)
        self.hlt_passes = options.hlt == "pass"
        self._append = (options.append or "").encode(errors="surrogateescape")
        if b"\0" in self._append or len(self._append) > _LONGEST_COMMAND_LINE:
            raise ConfigurationError(
                "--append", f"it has a zero byte, or more than {_LONGEST_COMMAND_LINE} bytes"
            )
        self._modules = read_modules(options.initrd or "", self.ram[0][1])
        self._registers = options.registers
        self._exit_port = DEBUG_EXIT if options.exit_port is None else options.exit_port
        self._information = self._gdt = 0
        check_registers(self._registers)

    def image(self, name: str, data: bytes) -> Image:
        return multiboot_image(name, data, self.ram[0][1])

    def load(self, image: Image, ram: Ram, vcpus: int) -> None:
        tables = acpi_tables(vcpus)
        ram.write_ram(ACPI_GPA, tables)
        self.place(image, ram, [(ACPI_GPA, ACPI_GPA + len(tables))])
        taken = extent(image.segments)
        line = image.name.encode(errors="surrogateescape") + b" " + self._append
        size = len(boot_information(0, line, [(0, each) for each in self._modules], self.ram))
        room = _STACK_SIZE + size + _GDT_ROOM
        self._information = place_below("what the guest is told", room, taken) + _STACK_SIZE
        modules = self._place_modules(max(end for _, end in taken), ram)
        told = boot_information(self._information, line, modules, self.ram)
        ram.write_ram(self._information, told)
        self._gdt = self._information + size + 7 & -8
        ram.write_ram(self._gdt, gdt(32))

    def _place_modules(self, at: int, ram: Ram) -> list[tuple[int, Module]]:
        """Store the modules from ``at`` on, each on a page of its own; the GPA of each."""
        modules: list[tuple[int, Module]] = []
        stack = self._information - _STACK_SIZE
        low_end = stack if at <= stack else LOW_END
        for module in self._modules:
            at = at + _PAGE - 1 & -_PAGE
            if at < HIGH_START and at + len(module.data) > low_end:
                at = HIGH_START  # up to there a PC has no memory
            if at + len(module.data) > self.ram[0][1]:
                raise ConfigurationError(
                    f"--initrd {_shown(module.string)}",
                    f"its {len(module.data)} bytes at {at:#x}, behind the guest, reach past the "
                    f"end of RAM at {self.ram[0][1]:#x}",
                    "give it more --memory",
                )
            ram.write_ram(at, module.data)
            modules.append((at, module))
            at += len(module.data)
        return modules

    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        if vcpu.index > 0:
            return  # it waits to be started
        set_flat_mode(vcpu)
        # The specification leaves both open. QEMU has a GDT, and GRUB and QEMU have a stack: guests
        # that bring none rely on them.
        sregs = vcpu.get_sregs()
        sregs.gdt.base, sregs.gdt.limit = self._gdt, GDT_SIZE - 1
        vcpu.set_sregs(sregs)
        told = self._information
        set_general(vcpu, rax=LOADER_MAGIC, rbx=told, rip=image.entry, rsp=told)
        set_registers(vcpu, self._registers, is_real=False)
        check_paging(self._registers)

    def add_devices(self, board: Board) -> None:
        # A guest prints on one or the other, as on the platform bare: both are one text.
        add_pc_devices(board, self._printed.take)
        board.bus.add_ports(
            range(DEBUG_CONSOLE, DEBUG_CONSOLE + 1), DebugConsole(self._printed.take)
        )
        low = self.ram[0][1]
        high = sum(size for gpa, size in self.ram if gpa > DEVICES)
        rtc = Rtc(memory=low, memory_above_4g=high)
        board.bus.add_ports(rtc.ports, rtc)
        told = FirmwareConfiguration.of_machine(len(board.vcpus), self.max_vcpus, low + high)
        board.bus.add_ports(FirmwareConfiguration.PORTS, told)
        tests = TestDevice(board.vm.irq_line, board.memory.flush)
        for ports in TestDevice.PORTS:
            board.bus.add_ports(ports, tests)
        board.bus.add_mmio(TestDevice.WINDOW, tests)
        board.bus.add_mmio(hpet.WINDOW, hpet.Hpet())
        if self._has_vmware_port:
            board.bus.add_ports(vmware_port.PORTS, vmware_port.VmwarePort(board.calling_vcpu))
        # Last, so that it is the one that is told to be moved.
        ports = range(self._exit_port, min(self._exit_port + 4, PORTS))
        board.bus.add_ports(ports, DebugExit())
        has_deadline = board.vm.has(lib.KVM_CAP_TSC_DEADLINE_TIMER)
        for vcpu in board.vcpus:
            entries = cpuid_of_vcpu(
                cpuid_entries(vcpu.get_cpuid2()),
                vcpu.index,
                len(board.vcpus),
                tsc_deadline=has_deadline,
            )
            vcpu.set_cpuid2(cpuid_table(self._cpu.entries(entries)))
        # Ticks that nobody was there to take are lost; to make up for them keeps AVIC off.
        board.vm.reinject_control(False)
        for chip, vectors, by_level in _PICS:
            state = board.vm.get_irqchip(chip)
            pic = state.chip.pic
            pic.irq_base, pic.imr, pic.elcr_mask = vectors, 0, by_level
            board.vm.set_irqchip(state)

    def serial(self) -> bytes:
        return self._printed.output

    def serial_dropped(self) -> int:
        return self._printed.dropped


def read_modules(text: str, most: int) -> list[Module]:
    """The modules that --initrd names, as :func:`split_modules` has them.

    Each is given to the guest with all of its text. Raises :class:`GuestError`.
    """
    modules: list[Module] = []
    for part in split_modules(text):
        data = read_initrd(part.partition(" ")[0], most)
        modules.append(Module(part.encode(errors="surrogateescape"), data))
    return modules


def _shown(string: bytes) -> str:
    return string.decode(errors="replace").partition(" ")[0]
