"""A machine: VM, memory, vCPUs and run loops put together; ``run()`` gives a report."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from types import GeneratorType, TracebackType
from typing import ClassVar, NoReturn, Protocol, Self, SupportsIndex

from pyvmm.devices import in_kernel
from pyvmm.devices.bus import Bus
from pyvmm.errors import (
    ClosedError,
    ConfigurationError,
    UnsupportedError,
    WrongTypeError,
)
from pyvmm.guest.image import Image, flat_image
from pyvmm.guest.platform import Platform
from pyvmm.guest.real_mode import RealMode
from pyvmm.kvm.arguments import integer, need, number, shown
from pyvmm.kvm.cpuid import physical_address_bits
from pyvmm.kvm.exits import Exit, MemoryErrorExit, io_data
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.system import Kvm
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.loop.vcpu_loop import ExitRecord, VcpuLoop, create_protocol
from pyvmm.loop.vcpu_thread import VcpuThread
from pyvmm.memory.backends import choose_backend
from pyvmm.memory.guest_memory import GuestMemory
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, Policy
from pyvmm.report import RegionReport, Result, RunReport, latency_of, statistics_of
from pyvmm.unclaimed import unclaimed_accesses
from pyvmm.verdict import Judge, VcpuEnd, verdict

# Three pages and one that Intel CPUs without unrestricted guest need, far from everything.
TSS_GPA = 0xFFFB_D000
IDENTITY_MAP_GPA = 0xFFFB_C000
_PAGES_OF_KVM = (
    ("KVM's TSS", TSS_GPA, 3 * PAGE_SIZE),
    ("KVM's page table", IDENTITY_MAP_GPA, PAGE_SIZE),
)

_DEFAULT_LOG = 1024
_LONGEST_S = 1_000_000

_STOP_EXIT: int = lib.STOP_EXIT
_STOP_KICK: int = lib.STOP_KICK
# Exits after which there is nothing to go on with.
_FATAL = frozenset((lib.KVM_EXIT_SHUTDOWN, lib.KVM_EXIT_INTERNAL_ERROR, lib.KVM_EXIT_FAIL_ENTRY))

# Where a guest says that it has come to its end; KVM_RUN would begin behind it.
_ENDS_OF_A_GUEST = frozenset((lib.STOP_GUEST_EXIT, lib.STOP_ASSERT, lib.STOP_HLT))

PolicyFunction = Callable[[MemoryErrorExit, int], bool]
LogFunction = Callable[[int, ExitRecord], None]


class Closeable(Protocol):
    def close(self) -> None: ...


class Machine:
    """A VM with a platform's memory and vCPUs, and a guest loaded into it.

    ``guest`` is an :class:`Image` or the bytes of a flat binary, which run as they are,
    whatever they look like: a file is for :func:`load_guest`. ``platform`` is the world that it
    is born into; by default the guest protocol in real mode. ``policy`` says what happens
    when the guest touches a page through the wrong view: a :class:`Policy`, or a function
    that is given the :class:`MemoryErrorExit` and the vCPU's index and returns whether to
    convert. Policy.ASK itself asks whoever iterates over :meth:`exits`.
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
        views: int = 2,
        vcpus: int = 1,
        irqchip: bool = False,
        policy: Policy | PolicyFunction = Policy.CONVERT,
        recording: bool = True,
        log_capacity: int = _DEFAULT_LOG,
        kvm: Kvm | None = None,
    ) -> None:
        if not isinstance(guest, (Image, bytes)):
            raise TypeError(
                f"guest: {type(guest).__name__} is neither Image nor bytes; "
                "load_guest() and assemble() make an Image"
            )
        self.platform = RealMode() if platform is None else platform
        need("platform", self.platform, Platform)
        most = self.platform.max_vcpus
        if not 1 <= integer("vcpus", vcpus) <= most:
            raise ConfigurationError(
                f"{vcpus} vCPUs", f"the guest {self.platform.name} has room for 1 to {most}"
            )
        if integer("views", views) not in (1, 2):
            raise ConfigurationError(f"{views} views", "a region has one or two")
        if kvm is not None:
            need("kvm", kvm, Kvm)
        if not (isinstance(policy, Policy) or callable(policy)):
            raise ConfigurationError(f"policy {shown(policy)}", "it is no Policy and no function")
        self._image = flat_image("guest", guest) if isinstance(guest, bytes) else guest
        asked = policy if isinstance(policy, Policy) else Policy.ASK
        self._ask = None if isinstance(policy, Policy) else policy
        self._ends: list[VcpuEnd] = []
        # A plain flag: an Event's lock would deadlock a signal handler that kicks.
        self._ending = False
        self._kicked = False
        self.vcpus: list[Vcpu] = []
        self.loops: list[VcpuLoop] = []
        self.on_exit_record: LogFunction | None = None
        self.on_tick: Callable[[], None] | None = None
        self._closed = False
        self._ran = False
        self._ended: set[int] = set()  # vCPUs whose guest has come to its end
        self._running = False
        self._iteration: weakref.ref[Generator[Exit, None, None]] | None = None
        self._finished = False
        # What exits() has yielded and the caller may deny; whether it did.
        self._question: MemoryErrorExit | None = None
        self._denied = False
        # vCPUs that wait for a conversion which nobody has answered: asked again by the next run.
        self._unanswered: set[int] = set()
        self._resources: list[Closeable] = []
        self._backend, self._views, self._irqchip = backend, views, irqchip
        self._vcpu_count = vcpus
        self._log_capacity = log_capacity if recording else 0
        try:
            self._create_vm(kvm, asked)
            self._add_memory()
            self._add_vcpus()
            self.load(self._image)
        except BaseException:
            self.close()
            raise

    # ---- the steps of a machine's making, which `bench lifecycle` times ----

    def _create_vm(self, kvm: Kvm | None, policy: Policy) -> None:
        """/dev/kvm, and a VM of the backend's type."""
        if kvm is None:
            kvm = Kvm()
            self._resources.append(kvm)
        self._kvm = kvm
        self._policy = policy
        self._chosen, self._mechanism = choose_backend(kvm, self._backend)
        if self._views not in self._chosen.views:
            raise UnsupportedError(
                f"{self._views} view",
                f"the {self._chosen.name} backend has no such regions",
                "use 2 views",
            )
        # Closed last to first: the loops, the vCPUs, the memory, the VM.
        self.vm = kvm.create_vm(self._chosen.vm_type)
        self._resources.append(self.vm)

    def _add_memory(self) -> None:
        """The platform's RAM and regions, and where KVM keeps pages of its own."""
        if self._mechanism is Mechanism.SLOTS and (
            self.vm.check_extension(lib.KVM_CAP_DISABLE_QUIRKS2) & lib.KVM_X86_QUIRK_SLOT_ZAP_ALL
        ):
            # A deleted slot then takes its own mappings along, not all of the VM's.
            self.vm.enable_cap(lib.KVM_CAP_DISABLE_QUIRKS2, lib.KVM_X86_QUIRK_SLOT_ZAP_ALL)
        self.memory = GuestMemory(self.vm, self._chosen, self._mechanism, self._policy)
        self._resources.append(self.memory)
        if self.vm.has(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            # Otherwise KVM also queues #UD, and a repeated fetch would be met by that.
            self.vm.enable_cap(lib.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
        self.vm.set_identity_map_addr(IDENTITY_MAP_GPA)
        self.vm.set_tss_addr(TSS_GPA)
        if self._irqchip:
            self.vm.create_irqchip()
            self.vm.create_pit2()
        self._ram = [self.memory.add_ram(gpa, size) for gpa, size in self.platform.ram]
        for place in self.platform.regions(self._views):
            self.memory.add_region(place.gpa, place.size, place.shared_gpa)

    def _add_vcpus(self) -> None:
        """The protocol's ports, the bus, and vCPUs with their run loops."""
        self._protocol = create_protocol()
        if self._views == 2:
            self._protocol.features |= lib.FEATURE_TWO_VIEWS
        if self._chosen.hypercall and self.vm.map_gpa_range_exits():
            self._protocol.features |= lib.FEATURE_HYPERCALL
        sync = self.vm.check_extension(lib.KVM_CAP_SYNC_REGS)
        cpuid = self._kvm.get_supported_cpuid()
        self._add_bus(physical_address_bits(cpuid))
        for index in range(self._vcpu_count):
            vcpu = self.vm.create_vcpu(index)
            self._resources.append(vcpu)
            self.vcpus.append(vcpu)
            vcpu.set_cpuid2(cpuid)
            if self._irqchip and index > 0:
                # Behind a LAPIC a secondary vCPU waits for a start-up interrupt.
                vcpu.set_mp_state(lib.KVM_MP_STATE_RUNNABLE)
            loop = VcpuLoop(
                vcpu,
                self.memory.raw,
                self._protocol,
                sync_registers=sync,
                log_capacity=self._log_capacity,
            )
            self._resources.append(loop)
            self.loops.append(loop)

    def load(self, image: Image) -> None:
        """Put a guest into RAM and its vCPUs at its start; not after the first run.

        Raises :class:`ConfigurationError` for a guest that cannot be one of the platform.
        """
        self._check_open()
        need("image", image, Image)
        if self._ran:
            raise ConfigurationError("load()", "the machine has run already", "make a new one")
        self._image = image
        self._judge = Judge(self.memory, image, self._irqchip)
        self.platform.load(image, self._ram[0].view)
        for vcpu in self.vcpus:
            self.platform.boot(vcpu, len(self.vcpus), image)

    def _add_bus(self, address_bits: int) -> None:
        """The bus, and what is no device's: the protocol's ports and what KVM has itself."""
        self.bus = Bus(self._protocol, self.memory.keep_free, address_bits)
        self._resources.append(self.bus)
        for ports in self.platform.ports:
            self.bus.reserve_ports(f"the guest {self.platform.name}", ports)
        for name, gpa, size in _PAGES_OF_KVM:
            self.memory.keep_free(name, gpa, size)
        if not self._irqchip:
            return
        for name, ports in in_kernel.PORTS:
            self.bus.reserve_ports(name, ports)
        for name, gpa, size in in_kernel.WINDOWS:
            self.memory.keep_free(name, gpa, size)

    # ---- running ----

    def run(self, deadline_s: float = 30.0) -> RunReport:
        """Run all vCPUs until they have ended or ``deadline_s`` seconds are over.

        After a deadline or a kick it may be called again, and goes on where the vCPUs stand;
        the report is of all runs together.

        vCPU 0 runs in the calling thread, each other one in a thread of its own.
        A KeyboardInterrupt (or any exception of a device or policy) stops all vCPUs and
        is raised again; :meth:`report` then has what happened so far.
        """
        self._check_open()
        if self._ask is None and self.memory.raw.policy == Policy.ASK:
            raise ConfigurationError(
                "run()",
                "the policy is to ask, and there is nobody to ask",
                "give a function as the policy, or use exits()",
            )
        deadline = self._start(deadline_s)
        self._protocol.unclaimed_to_python = False
        self._running = True
        threads: list[VcpuThread] = []
        errors: list[BaseException] = []

        def run_in_thread(index: int) -> None:
            try:
                _exhaust(self._run_vcpu(index, deadline, for_caller=False))
            except BaseException as error:
                self._end_all()
                errors.append(error)

        try:
            for index in range(1, len(self.loops)):
                if index not in self._ended:
                    threads.append(VcpuThread(index, run_in_thread))
                    threads[-1].start()
            if 0 not in self._ended:
                _exhaust(self._run_vcpu(0, deadline, for_caller=False))
        except BaseException:
            self._end_all()
            raise
        finally:
            try:
                _join(threads, self._end_all)
            finally:
                self._running = False
                self._finish_or_close()
        errors.extend(thread.error for thread in threads if thread.error is not None)
        if errors:
            raise errors[0]
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
        if len(self.loops) != 1:
            raise ConfigurationError("exits()", f"the machine has {len(self.loops)} vCPUs, not 1")
        deadline = self._start(deadline_s)
        self._protocol.unclaimed_to_python = True
        iteration = self._run_vcpu(0, deadline, for_caller=True)
        self._iteration = weakref.ref(iteration)
        return iteration

    def _asks_the_caller(self) -> bool:
        return self._ask is None and bool(self.memory.raw.policy == Policy.ASK)

    def deny(self) -> None:
        """Refuse the conversion that :meth:`exits` has yielded last: to go on then ends the run.

        Raises :class:`ConfigurationError` when it has yielded something else.
        """
        if self._question is None:
            raise ConfigurationError(
                "deny()",
                "exits() has not asked for a conversion",
                "call it after a MemoryErrorExit",
            )
        self._denied = True

    def answer(self, value: int, index: int = 0) -> None:
        """Complete the read that vCPU ``index`` waits for: an IN or an MMIO read.

        ``value`` fits the access's width; for a string IN each element gets it. Raises
        :class:`ConfigurationError` when it does not, or when the last exit was no read.
        """
        run = self.vcpus[number("vCPU", index, 0, len(self.vcpus) - 1)].kvm_run
        if self._question is not None:
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

    def kick(self) -> None:
        """End the run, from any thread; the result is then "interrupted"."""
        self._kicked = True
        self._end_all()

    def _is_running(self) -> bool:
        iteration = None if self._iteration is None else self._iteration()
        return self._running or (
            isinstance(iteration, GeneratorType) and iteration.gi_frame is not None
        )

    def _start(self, deadline_s: float) -> int:
        """The deadline on CLOCK_MONOTONIC, in nanoseconds."""
        self._check_open()
        if self._is_running():
            raise ConfigurationError("machine", "it runs already", "wait for the end of that run")
        if self._ran:
            result = self.report().result
            if result not in (Result.DEADLINE, Result.INTERRUPTED):
                raise ConfigurationError(
                    "machine", f"its run has ended ({result.value})", "make a new one"
                )
        need("deadline_s", deadline_s, int, float)
        if not -_LONGEST_S <= deadline_s <= _LONGEST_S:  # nor NaN; what is past ends the run
            shown = deadline_s if isinstance(deadline_s, float) else f"{deadline_s:#x}"[:20]
            raise ConfigurationError(
                f"a deadline of {shown} s", f"it must be a number of at most {_LONGEST_S}"
            )
        self._ran, self._finished = True, False
        self._ends = [end for end in self._ends if end.index in self._ended]
        return max(1, time.monotonic_ns() + int(deadline_s * 1e9))  # 0 would be none

    def _run_vcpu(self, index: int, deadline: int, for_caller: bool) -> Generator[Exit, None, None]:
        """Run a vCPU until it ends; what nothing answers is yielded, or ends it."""
        loop = self.loops[index]
        loop.limit(deadline)
        run, decode = loop.vcpu.kvm_run, loop.vcpu.exit
        devices, answer = self.bus.devices, self.bus.answer
        asks_again = index in self._unanswered
        try:
            while True:
                try:
                    stop = lib.STOP_MEMORY_ERROR if asks_again else loop.run()
                    asks_again = False
                    if stop == _STOP_EXIT:
                        if devices and answer(run):
                            continue
                    elif (goes_on := self._handlers.get(stop)) is not None and goes_on(self, index):
                        continue
                except Exception as error:
                    self._ends.append(self._judge.raised(loop, index, error))
                    raise
                if for_caller and stop == _STOP_EXIT and run.exit_reason not in _FATAL:
                    yield decode()
                    continue
                if for_caller and stop == lib.STOP_MEMORY_ERROR and self._asks_the_caller():
                    self._question, self._denied = loop.memory_error(), False
                    self._unanswered.add(index)
                    yield self._question
                    self._question = None
                    self._unanswered.discard(index)
                    if not self._denied:
                        loop.answer_convert()
                        continue
                break
            if stop == _STOP_KICK and self._ending and not self._kicked:
                end = VcpuEnd(index, None)  # another vCPU has ended the run
            else:
                end = self._judge.stopped(
                    loop, index, stop, "deny()" if self._denied else "the policy"
                )
            self._ends.append(end)
            if stop in _ENDS_OF_A_GUEST:
                self._ended.add(index)
            if end.ends_the_run and not self._ending:
                self._end_all()
        finally:
            if for_caller:
                self._question = None
                self._finish_or_close()
        if for_caller:
            self._check_open()

    def _tick(self, index: int) -> bool:
        if self.on_tick is not None and index == 0:
            self.on_tick()
        return True

    def _converts(self, index: int) -> bool:
        """Ask the policy, if it is a function, and let the loop convert if it says so."""
        if self._ask is None:
            return False
        loop = self.loops[index]
        exit = loop.memory_error()
        self._unanswered.add(index)
        try:
            converts = self._ask(exit, index)
        except Exception as error:
            error.add_note(f"policy, asked for GPA {exit.gpa:#x}")
            raise
        if converts is None:
            raise ConfigurationError(
                f"policy, asked for GPA {exit.gpa:#x}",
                "it returned None",
                "return True to convert or False to deny",
            )
        self._unanswered.discard(index)
        if converts:
            loop.answer_convert()
        return bool(converts)

    def _end_all(self) -> None:
        self._ending = True
        for loop in self.loops:
            loop.kick()

    def _finish_or_close(self) -> None:
        if self._closed:  # while it ran
            self._close_parts()
        else:
            self._finish()

    def _finish(self) -> None:
        """Stop the ticks and give out the rest of the log; once."""
        if self._closed or self._finished:
            return
        self._finished = True
        for index, loop in enumerate(self.loops):
            loop.disarm()
            loop.forget_kick()
            lib.loop_finish_record(loop.raw)
            if self.on_exit_record is not None:
                self._drain(index)
        self._ending = self._kicked = False

    def _drain(self, index: int) -> bool:
        if self.on_exit_record is not None:
            for record in self.loops[index].drain_log():
                self.on_exit_record(index, record)
        return True

    # What a vCPU's stop asks of the machine; False if the vCPU does not go on by that.
    _handlers: ClassVar[dict[int, Callable[[Machine, int], bool]]] = {
        lib.STOP_SIGNAL: _tick,
        lib.STOP_LOG_FULL: _drain,
        lib.STOP_MEMORY_ERROR: _converts,
    }

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
        self.on_exit_record = take
        for loop in self.loops:
            loop.raw.stop_on_full_log = True

    def report(self) -> RunReport:
        """What happened until now."""
        self._check_open()
        result, exit_code, reason, where = verdict(self._ends, len(self.loops), self._image)
        protocol = self._protocol
        kept = min(protocol.console_written, lib.CONSOLE_SIZE)
        measures = min(protocol.measures_written, lib.MEASURES_SIZE)
        exits, by_reason = statistics_of(self.loops)
        unclaimed, unclaimed_ports, unclaimed_mmio = unclaimed_accesses(protocol)
        return RunReport(
            platform=self.platform.name,
            mode=self.platform.mode,
            result=result,
            exit_code=exit_code,
            reason=reason,
            backend=self.memory.backend.name,
            mechanism=self.memory.mechanism.name.lower(),
            console_bytes=bytes(ffi.buffer(protocol.console, kept)),
            console_dropped=protocol.console_written - kept,
            exits=exits,
            conversions=self.memory.conversions(),
            exit_latency=latency_of(self.loops, "exit_latency"),
            conversion_latency=latency_of(self.loops, "conversion_latency"),
            measures=tuple(protocol.measures[0:measures]),
            measures_dropped=protocol.measures_written - measures,
            memory=tuple(
                RegionReport(region.gpa, region.size, tuple(region.private_ranges()))
                for region in self.memory.regions
            ),
            by_reason=by_reason,
            spurious_exits=sum(region.spurious_exits() for region in self.memory.regions),
            unclaimed=unclaimed,
            unclaimed_ports=unclaimed_ports,
            unclaimed_mmio=unclaimed_mmio,
            where=where,
        )

    def console(self) -> bytes:
        """The console's bytes until now; at most 1 MiB is kept."""
        self._check_open()
        kept = min(self._protocol.console_written, lib.CONSOLE_SIZE)
        return bytes(ffi.buffer(self._protocol.console, kept))

    # ---- end ----

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("machine")

    def close(self) -> None:
        """Give everything back. A run that is under way ends first, and does it then."""
        iteration = None if self._iteration is None else self._iteration()
        if self._running or (isinstance(iteration, GeneratorType) and iteration.gi_running):
            self._closed = True
            self._end_all()
            return
        try:
            with suppress(ClosedError):  # of a part
                self._finish()  # exits() may have been left in the middle
        finally:
            self._closed = True
            self._close_parts()

    def _close_parts(self) -> None:
        while self._resources:
            self._resources.pop().close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a machine cannot be copied or pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _exhaust(exits: Iterator[Exit]) -> None:
    for exit in exits:
        raise AssertionError(f"nobody wants {exit}")


def _join(threads: list[VcpuThread], end_all: Callable[[], None]) -> None:
    """Wait for the vCPUs' threads; a Ctrl-C meanwhile ends the run instead of the waiting."""
    interrupted: BaseException | None = None
    for thread in threads:
        while not thread.is_over:
            try:
                if interrupted is not None:
                    end_all()
                thread.join()
            except BaseException as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
