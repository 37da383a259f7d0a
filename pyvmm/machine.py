"""A machine: VM, memory, vCPUs and run loops put together; ``run()`` gives a report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import NoReturn, SupportsIndex

from pyvmm.closing import Closing
from pyvmm.devices import in_kernel
from pyvmm.devices.bus import Bus
from pyvmm.errors import (
    ConfigurationError,
    UnsupportedError,
    WrongTypeError,
)
from pyvmm.guest.image import Image, flat_image
from pyvmm.guest.platform import Platform
from pyvmm.guest.platforms import protocol_platform
from pyvmm.kvm.arguments import integer, need, number, shown
from pyvmm.kvm.cpuid import physical_address_bits
from pyvmm.kvm.exits import Exit, io_data
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.loop.vcpu_loop import VcpuLoop, create_protocol
from pyvmm.memory.backends import choose_backend
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.memory.slots import GpaRange
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, Policy
from pyvmm.report import RunReport, console_of, report_of
from pyvmm.running import Closeable, LogFunction, PolicyFunction, Running, close_all
from pyvmm.verdict import Judge

# Three pages and one that Intel CPUs without unrestricted guest need, far from everything.
TSS_GPA = 0xFFFB_D000
IDENTITY_MAP_GPA = 0xFFFB_C000
_PAGES_OF_KVM = (GpaRange(IDENTITY_MAP_GPA, 4 * PAGE_SIZE, "KVM's page table and TSS"),)
_WINDOWS_OF_KVM = tuple(GpaRange(gpa, size, name) for name, gpa, size in in_kernel.WINDOWS)

_DEFAULT_LOG = 1024

#: What a page holds after a conversion: nothing, or what it held before.
CONTENTS = ("zero", "keep")


def _views(platform: Platform, views: int | None) -> int:
    """How many views the regions have; a ConfigurationError where none could have so many."""
    if views is None:
        return 2
    if integer("views", views) not in (1, 2):
        raise ConfigurationError(f"{views} views", "a region has one or two")
    _need_regions(platform, views, f"{views} view{'s' * (views > 1)}")
    return views


def _keeps(platform: Platform, views: int, contents: str) -> bool:
    """Whether pages keep their contents; a ConfigurationError where none could."""
    if contents not in CONTENTS:
        raise ConfigurationError(f"contents {shown(contents)}", f"use {' or '.join(CONTENTS)}")
    if contents == "keep":
        _need_regions(platform, views, "contents kept")
    return contents == "keep"


def _need_regions(platform: Platform, views: int, thing: str) -> None:
    if not platform.regions(views):
        raise ConfigurationError(
            thing, f"the platform {platform.name} has no regions: all of its memory is RAM"
        )


class Machine(Closing):
    """A VM with a platform's memory and vCPUs, and a guest loaded into it.

    ``guest`` is an :class:`Image` or the bytes of a flat binary, which run as they are,
    whatever they look like: a file is for :func:`load_guest`. ``platform`` is the world that it
    is born into; by default the guest protocol in the image's mode, for bytes in real mode.
    ``policy`` says what happens when the guest touches a page through the wrong view: a
    :class:`Policy`, or a function that is given the :class:`MemoryErrorExit` and the vCPU's
    index and returns whether to convert. Policy.ASK itself asks whoever iterates over
    :meth:`exits`.
    ``views`` is how many GPAs a page of a region has: two, if nothing is said, or one. A platform
    without regions takes none.
    ``contents`` is "zero" for pages that read zero after a conversion, "keep" for pages that
    keep what is in them, which the backend must be able to do.
    ``recording`` keeps latencies and the last ``log_capacity`` exits of each vCPU (a power
    of two).

    Raises :class:`ConfigurationError`, :class:`UnsupportedError`, :class:`KvmError`.
    A context manager. Two machines in one process, or in threads, do not disturb each
    other.

    Synchronization: :meth:`kick` may be called from any thread, and ``memory`` as
    :class:`GuestMemory` says; everything else belongs to one thread.
    """

    def __init__(
        self,
        guest: Image | bytes,
        *,
        platform: Platform | None = None,
        backend: str = "auto",
        views: int | None = None,
        vcpus: int = 1,
        irqchip: bool = False,
        policy: Policy | PolicyFunction = Policy.CONVERT,
        contents: str = "zero",
        recording: bool = True,
        log_capacity: int = _DEFAULT_LOG,
        kvm: Kvm | None = None,
    ) -> None:
        if not isinstance(guest, (Image, bytes)):
            raise WrongTypeError(
                "guest",
                f"{type(guest).__name__} is neither Image nor bytes",
                "load_guest() and assemble() make an Image",
            )
        if platform is None:
            platform = protocol_platform(None if isinstance(guest, bytes) else guest.mode)
        else:
            need("platform", platform, Platform)
        self.platform = platform
        image = flat_image("guest", guest, platform.layout) if isinstance(guest, bytes) else guest
        most = platform.max_vcpus
        if not 1 <= integer("vcpus", vcpus) <= most:
            world = "guest" if platform.has_protocol else "platform"
            raise ConfigurationError(
                f"{vcpus} vCPUs", f"the {world} {platform.name} has room for 1 to {most}"
            )
        if kvm is not None:
            need("kvm", kvm, Kvm)
        if not (isinstance(policy, Policy) or callable(policy)):
            raise ConfigurationError(f"policy {shown(policy)}", "it is no Policy and no function")
        asked, ask = (policy, None) if isinstance(policy, Policy) else (Policy.ASK, policy)
        self.vcpus: list[Vcpu] = []
        self.loops: list[VcpuLoop] = []
        self._resources: list[Closeable] = []
        self._backend, self._views = backend, _views(platform, views)
        self._irqchip = irqchip or platform.has_irqchip
        self._keep_contents = _keeps(platform, self._views, contents)
        self._vcpu_count = vcpus
        self._log_capacity = log_capacity if recording else 0
        try:
            self._create_vm(kvm, asked)
            self._add_memory()
            self._add_vcpus()
            platform.add_devices(self)
            self._running = Running(self.loops, self.bus, self.memory, ask, self._resources)
            self._load(image)
        except BaseException:
            close_all(self._resources)
            raise

    # ---- the steps of a machine's making, which `bench lifecycle` times ----

    def _create_vm(self, kvm: Kvm | None, policy: Policy) -> None:
        """/dev/kvm, and a VM of the backend's type."""
        if kvm is None:
            kvm = Kvm()
            self._resources.append(kvm)
        self._kvm = kvm
        self._policy = policy
        # Without regions any VM will do, and the default type is what other VMMs have.
        is_plain = self._backend == "auto" and not self.platform.regions(self._views)
        backend = "emulated" if is_plain else self._backend
        self._chosen, self._mechanism = choose_backend(kvm, backend)
        self._check_views(self._views)
        if self._keep_contents and not self._chosen.keeps_contents:
            raise UnsupportedError(
                "contents kept",
                f"on the {self._chosen.name} backend a page reads zero after a conversion",
                "use the in_place backend, on a kernel that has it",
            )
        # Closed last to first: the loops, the vCPUs, the memory, the VM.
        self.vm = kvm.create_vm(self._chosen.vm_type)
        self._resources.append(self.vm)

    def _check_views(self, views: int) -> None:
        if views not in self._chosen.views:
            raise UnsupportedError(
                f"{views} view",
                f"the {self._chosen.name} backend has no such regions",
                "use 2 views",
            )

    def _add_memory(self) -> None:
        """The platform's RAM and regions, and where KVM keeps pages of its own."""
        if self._mechanism is Mechanism.SLOTS and (
            self.vm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2) & lib.KVM_X86_QUIRK_SLOT_ZAP_ALL
        ):
            # A deleted slot then takes its own mappings along, not all of the VM's.
            self.vm.enable_cap(lib.KVM_CAP_DISABLE_QUIRKS2, lib.KVM_X86_QUIRK_SLOT_ZAP_ALL)
        self.memory = GuestMemory(
            self.vm,
            self._chosen,
            self._mechanism,
            self._policy,
            keep_contents=self._keep_contents,
            taken=_PAGES_OF_KVM + _WINDOWS_OF_KVM if self._irqchip else _PAGES_OF_KVM,
        )
        self._resources.append(self.memory)
        if self.platform.has_protocol and self.vm.has(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            # Otherwise KVM also queues #UD, and a repeated fetch would be met by that.
            self.vm.enable_cap(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        self.vm.set_identity_map_addr(IDENTITY_MAP_GPA)
        self.vm.set_tss_addr(TSS_GPA)
        if self._irqchip:
            self.vm.create_irqchip()
            # With port 0x61, by which kernels measure the TSC against channel 2.
            self.vm.create_pit2(lib.KVM_PIT_SPEAKER_DUMMY)
        for gpa, size in self.platform.ram:
            self.memory.add_ram(gpa, size)
        for place in self.platform.regions(self._views):
            if (views := 1 if place.shared_gpa is None else 2) != self._views:
                self._check_views(views)
            self.memory.add_region(place.gpa, place.size, place.shared_gpa)

    def _add_vcpus(self) -> None:
        """The protocol's ports, the bus, and vCPUs with their run loops."""
        self._protocol = protocol = create_protocol()
        protocol.enabled = self.platform.has_protocol
        protocol.is_foreign = not self.platform.has_protocol
        protocol.is_wide = self.platform.is_wide
        protocol.vector_stubs = self.platform.vector_stubs or 0
        if self._views == 2:
            protocol.features |= lib.FEATURE_TWO_VIEWS
        if self._keep_contents:
            protocol.features |= lib.FEATURE_KEEPS_CONTENTS
        if self._chosen.hypercall and self.vm.map_gpa_range_exits():
            protocol.features |= lib.FEATURE_HYPERCALL
        sync = self.vm.check_extension(lib.KVM_CAP_SYNC_REGS)
        cpuid = self._kvm.get_supported_cpuid()
        self._add_bus(partial(physical_address_bits, cpuid))
        for index in range(self._vcpu_count):
            vcpu = self.vm.create_vcpu(index)
            self._resources.append(vcpu)
            self.vcpus.append(vcpu)
            vcpu.set_cpuid2(cpuid)
            if self._irqchip and index > 0 and not self.platform.waits_for_sipi:
                # Behind a LAPIC a secondary vCPU waits for a start-up interrupt.
                vcpu.set_mp_state(lib.KVM_MP_STATE_RUNNABLE)
            loop = VcpuLoop(
                vcpu,
                self.memory.raw,
                protocol,
                sync_registers=sync,
                log_capacity=self._log_capacity,
            )
            self._resources.append(loop)
            self.loops.append(loop)

    def load(self, image: Image) -> None:
        """Put a guest into RAM and its vCPUs at its start; not after the first run.

        Raises :class:`ConfigurationError` for a guest that cannot be one of the platform.
        """
        self._running.check_open()
        need("image", image, Image)
        if self._running.has_run:
            raise ConfigurationError("load()", "the machine has run already", "make a new one")
        self._load(image)

    def _load(self, image: Image) -> None:
        self._running.judge = Judge(
            self.memory,
            image,
            self._irqchip,
            self.platform.hlt_passes,
            # Another vCPU could still send it an INIT or an NMI.
            self.platform.sees_hlt_in_kernel and len(self.vcpus) == 1,
        )
        self.platform.load(image, self.memory, len(self.vcpus))
        for vcpu in self.vcpus:
            self.platform.boot(vcpu, len(self.vcpus), image)

    def _add_bus(self, address_bits: Callable[[], int]) -> None:
        """The bus, and what is no device's: the protocol's ports and what KVM has itself."""
        self.bus = Bus(self._protocol, self.memory.keep_free, address_bits)
        self._resources.append(self.bus)
        self.bus.reserve_ports(f"the guest {self.platform.name}", *self.platform.ports)
        if self._irqchip:
            for name, ports in in_kernel.PORTS:
                self.bus.reserve_ports(name, ports)

    # ---- running ----

    def run(self, deadline_s: float = 30.0) -> RunReport:
        """Run all vCPUs until they have ended or ``deadline_s`` seconds are over.

        After a deadline or a kick it may be called again, and goes on where the vCPUs stand;
        the report is of all runs together.

        vCPU 0 runs in the calling thread, each other one in a thread of its own.
        A KeyboardInterrupt (or any exception of a device or policy) stops all vCPUs and
        is raised again; :meth:`report` then has what happened so far.
        """
        self._running.all_vcpus(deadline_s)
        return self.report()

    def exits(self, deadline_s: float = 30.0) -> Generator[Exit, None, None]:
        """Run a machine of one vCPU; yield every exit that nothing answers.

        Devices, a policy that is a function, :meth:`log_exits` and :attr:`on_tick` are asked
        first, as in :meth:`run`. Answer a read with :meth:`answer` or in
        ``machine.vcpus[0].kvm_run``, then go on; one that is not answered reads all ones. With
        Policy.ASK a :class:`MemoryErrorExit` is yielded, too: to go on converts, unless
        :meth:`deny` is called. What is yielded does not count as unclaimed in the report, and
        what ends the run is not yielded: see :meth:`report`.
        """
        return self._running.one_vcpu(deadline_s)

    @property
    def on_tick(self) -> Callable[[], None] | None:
        """Called by vCPU 0 some times a second while it runs."""
        return self._running.on_tick

    @on_tick.setter
    def on_tick(self, call: Callable[[], None] | None) -> None:
        if call is not None and not callable(call):
            raise WrongTypeError("on_tick", f"wants a function, was given {type(call).__name__}")
        self._running.on_tick = call

    def deny(self) -> None:
        """Refuse the conversion that :meth:`exits` has yielded last: to go on then ends the run.

        Raises :class:`ConfigurationError` when it has yielded something else.
        """
        if self._running.question is None:
            raise ConfigurationError(
                "deny()",
                "exits() has not asked for a conversion",
                "call it after a MemoryErrorExit",
            )
        self._running.denied = True

    def answer(self, value: int, index: int = 0) -> None:
        """Complete the read that vCPU ``index`` waits for: an IN or an MMIO read.

        ``value`` fits the access's width; for a string IN each element gets it. Raises
        :class:`ConfigurationError` when it does not, or when the last exit was no read.
        """
        run = self.vcpus[number("vCPU", index, 0, len(self.vcpus) - 1)].kvm_run
        if self._running.question is not None:
            raise ConfigurationError(
                "answer",
                f"vCPU {index} waits for a conversion, not for a value",
                "go on to convert, or call deny()",
            )
        if run.exit_reason == lib.KVM_EXIT_IO and run.io.direction == lib.KVM_EXIT_IO_IN:
            size, buffer = run.io.size, io_data(run)
        elif run.exit_reason == lib.KVM_EXIT_MMIO and not run.mmio.is_write:
            size, buffer = run.mmio.len, ffi.buffer(run.mmio.data, run.mmio.len)
        else:
            raise ConfigurationError("answer", f"vCPU {index} does not wait for a value")
        element = number("answer", value, 0, (1 << 8 * size) - 1).to_bytes(size, "little")
        buffer[:] = element * (len(buffer) // size)

    def calling_vcpu(self) -> Vcpu:
        """For a device that is called: the vCPU whose access it is.

        Raises :class:`ConfigurationError` in a thread that runs no vCPU of this machine.
        """
        here = threading.get_native_id()
        for loop in self.loops:
            if loop.raw.thread == here:
                return loop.vcpu
        raise ConfigurationError(
            "calling_vcpu()",
            "this thread runs no vCPU of the machine",
            "ask while a device is called",
        )

    def kick(self) -> None:
        """End the run, from any thread; the result is then "interrupted"."""
        self._running.kick()

    def log_exits(self, take: LogFunction) -> None:
        """Give every exit to ``take(vcpu_index, record)``, in order for each vCPU.

        Called from the vCPU's thread whenever its log is full, and at the end. Raises
        :class:`ConfigurationError` for a machine that does not record.
        """
        if not callable(take):
            raise WrongTypeError(
                "log_exits()", f"wants a function, was given {type(take).__name__}"
            )
        if not all(loop.raw.recording for loop in self.loops):
            raise ConfigurationError("log_exits()", "the machine does not record", "recording=True")
        self._running.take_record = take
        for loop in self.loops:
            loop.raw.stop_on_full_log = True

    def report(self) -> RunReport:
        """What happened until now."""
        self._running.check_open()
        return report_of(
            self.platform, self._running.verdict(), self.memory, self.loops, self._protocol
        )

    def console(self) -> bytes:
        """The console's bytes until now; at most 1 MiB is kept."""
        self._running.check_open()
        return console_of(self._protocol)

    def serial(self) -> bytes:
        """What the guest sent to COM1 until now, where the platform has one."""
        return self.platform.serial()

    def close(self) -> None:
        """Give everything back. A run that is under way ends first, and does it then."""
        self._running.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a machine cannot be copied or pickled")
