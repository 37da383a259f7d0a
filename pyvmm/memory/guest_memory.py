"""A VM's memory: plain RAM, and regions whose pages are shared or private."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyvmm.errors import ClosedError, ConfigurationError, KvmError, PyvmmError
from pyvmm.kvm.arguments import MOST_U32, integer, need, number
from pyvmm.kvm.mapping import PAGE_SIZE, Mapping
from pyvmm.kvm.vm import Vm
from pyvmm.memory.backing import Backend, Backing
from pyvmm.memory.slots import GpaRange, SlotTable
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism, PageState, Policy

#: A region with fewer memslots could keep hardly any page apart from its neighbours.
_FEWEST_SLOTS = 8
_STATES = tuple(PageState)


class PrivatePageError(PyvmmError):
    """The host asked for memory that is private now."""


@dataclass(frozen=True, slots=True)
class Conversions:
    """Pages that changed state. to_private + to_shared == implicit + explicit."""

    to_private: int = 0
    to_shared: int = 0
    implicit: int = 0
    explicit: int = 0


def _deinit(kept: list[Backing | Mapping], raw: Any) -> None:
    lib.memory_deinit(raw)
    for each in kept:
        each.close()


def _forget_vm(reference: weakref.ref[Any], process: int) -> None:
    # In a fork the locks may be held for ever, by threads that only the parent has.
    if (raw := reference()) is not None and os.getpid() == process:
        lib.memory_forget_vm(raw)


class Region:
    """``size`` bytes reached through one or two views; see :meth:`GuestMemory.add_region`.

    ``gpa`` is the private view's (the only one's), ``shared_gpa`` the shared view's.
    """

    def __init__(
        self,
        gpa: int,
        shared_gpa: int,
        size: int,
        backing: Backing,
        memory: GuestMemory,
        index: int,
    ) -> None:
        self.gpa = gpa
        self.shared_gpa = shared_gpa
        self.size = size
        self.backing = backing
        self._memory = memory
        self._index = index

    @property
    def _raw(self) -> Any:
        # Asked for each time: a reference into the structure does not keep it alive.
        return self._memory.raw.regions[self._index]

    @property
    def views(self) -> int:
        return 1 if self.shared_gpa == self.gpa else 2

    def states(self) -> bytes:
        """A byte for each page: the numbers of :class:`PageState`."""
        return bytes(ffi.buffer(self._raw.states, self.size // PAGE_SIZE))

    def private_ranges(self) -> list[tuple[int, int]]:
        """The private pages, as (GPA in the private view, bytes), joined and in order."""
        ranges: list[tuple[int, int]] = []
        states, end = self.states(), 0
        while (first := states.find(PageState.PRIVATE, end)) >= 0:
            end = states.find(PageState.SHARED, first)
            if end < 0:
                end = len(states)
            ranges.append((self.gpa + first * PAGE_SIZE, (end - first) * PAGE_SIZE))
        return ranges

    def conversions(self) -> Conversions:
        raw = self._raw
        return Conversions(raw.to_private, raw.to_shared, raw.implicit, raw.explicit_)

    def spurious_exits(self) -> int:
        """Memory exits that found the page already in the state they wanted."""
        return int(self._raw.spurious)

    def busy_refusals(self) -> int:
        """How often the kernel refused a conversion at first: somebody used a page (EAGAIN)."""
        return int(self._raw.busy)


class GuestMemory:
    """All memory of one VM, and the C structure that the run loop converts through.

    Files and mappings are given back once it is closed and no run loop uses them any more.
    ``taken`` are GPAs where something else is, so that no memory can be.

    Synchronization: :meth:`convert`, :meth:`read` and :meth:`write` may be called from
    any thread while vCPUs run.
    """

    def __init__(
        self,
        vm: Vm,
        backend: Backend,
        mechanism: Mechanism,
        policy: Policy,
        *,
        keep_contents: bool = False,
        taken: Iterable[GpaRange] = (),
    ) -> None:
        need("vm", vm, Vm)
        self.backend = backend
        self.keep_contents = keep_contents
        self.mechanism = mechanism
        self._vm = vm
        # A fork shares the files of memory: what it converted, its parent would lose.
        self._process = os.getpid()
        self._ram: list[tuple[GpaRange, Mapping]] = []
        self.regions: list[Region] = []
        limit = vm.check_extension(lib.KVM_CAP_NR_MEMSLOTS)
        self._slots = SlotTable(limit or 32, taken)
        raw = ffi.new("struct memory *")
        try:
            result = lib.memory_init(raw, vm.fileno(), backend.name.encode(), policy)
        except (OverflowError, TypeError):
            number("policy", policy, 0, MOST_U32)
            raise
        if result < 0:
            raise ConfigurationError(
                f"backend {backend.name}", "it has no file in csrc/backends/", "compile one in"
            )
        # C uses these for as long as anybody, a run loop too, has the structure.
        self._kept: list[Backing | Mapping] = []
        self._raw = ffi.gc(raw, partial(_deinit, self._kept))
        vm.before_close(partial(_forget_vm, weakref.ref(self._raw), self._process))

    @property
    def raw(self) -> Any:
        """The ``struct memory *``. Raises :class:`ClosedError` after :meth:`close`."""
        if self._raw is None:
            raise ClosedError("guest memory")
        return self._raw

    def add_ram(self, gpa: int, size: int) -> Mapping:
        """Plain memory, always shared. Returns the host's mapping of it."""
        before = self._slots.claimed()
        try:
            claimed = self._slots.claim_range("RAM", gpa, size)
            slot = self._slots.claim_slots(1, claimed)
            mapping = Mapping(size, for_gpa=gpa)
            self._vm.set_user_memory_region(slot, gpa, size, mapping.address)
        except BaseException:
            self._slots.give_back(before)
            raise
        self._ram.append((claimed, mapping))
        self._kept.append(mapping)
        lib.memory_add_ram(self.raw, gpa, size, mapping.pointer)
        return mapping

    def add_region(self, gpa: int, size: int, shared_gpa: int | None = None) -> Region:
        """A region of ``size`` bytes, all pages shared.

        With ``shared_gpa`` it has two views: the private one at ``gpa``, the shared one
        there. Raises :class:`ConfigurationError` for ranges that overlap or are not
        aligned, :class:`KvmError` when the kernel refuses.
        """
        before = self._slots.claimed()
        try:
            return self._add_region(gpa, size, shared_gpa)
        except BaseException:
            self._slots.give_back(before)
            raise

    def _add_region(self, gpa: int, size: int, shared_gpa: int | None) -> Region:
        views = 1 if shared_gpa is None else 2
        integer("GPA", gpa)
        if len(self.regions) == lib.MEMORY_MAX_REGIONS:
            raise ConfigurationError(
                f"region at {gpa:#x}", f"there are {len(self.regions)} regions already"
            )
        claimed = self._slots.claim_range("region" if views == 1 else "private view", gpa, size)
        if shared_gpa is not None:
            self._slots.claim_range("shared view", shared_gpa, size)
        pages = size // PAGE_SIZE
        # Huge regions could need more than there are: half is left for others, and C joins ranges.
        count = min(self.backend.slots(pages, views), max(self._slots.free // 2, _FEWEST_SLOTS))
        slot_base = self._slots.claim_slots(count, claimed)
        backing = self.backend.back(self._vm, size, views, self.mechanism)
        wanted = ffi.new("struct region *")
        wanted.private_gpa = gpa
        wanted.shared_gpa = gpa if shared_gpa is None else shared_gpa
        wanted.pages = pages
        wanted.private_fd = backing.private_file.fileno()
        wanted.shared_fd = backing.shared_file.fileno()
        wanted.private_host = backing.private_host.pointer
        wanted.shared_host = backing.shared_host.pointer
        wanted.slot_base = slot_base
        wanted.slot_count = count
        wanted.mechanism = self.mechanism
        wanted.keep_contents = self.keep_contents
        raw = self.raw
        index = raw.region_count
        result = lib.memory_add_region(raw, wanted)
        if result < 0:
            backing.close()
            raise KvmError("memory_add_region", -result, str(claimed))
        self._kept.append(backing)
        region = Region(gpa, wanted.shared_gpa, size, backing, self, index)
        self.regions.append(region)
        return region

    def keep_free(self, name: str, gpa: int, size: int) -> None:
        """Let no memory be added at these GPAs: ``name`` is there, a device or KVM itself.

        Raises :class:`ConfigurationError` where memory, or another such, is already.
        """
        self._slots.claim_addresses(name, gpa, size)

    def convert(self, gpa: int, size: int, state: PageState) -> int:
        """Change pages on the host's behalf; returns how many changed.

        ``gpa`` may lie in either view. Raises :class:`KvmError` with EINVAL for what the
        guest's doorbell refuses too: unaligned, empty, outside, past the view's end; and
        :class:`ConfigurationError` for what is no number or no :class:`PageState`.
        """
        integer("GPA", gpa)
        integer("size", size)
        if integer("state", state) not in _STATES:
            raise ConfigurationError(f"state {state}", "it is no PageState")
        about = f"GPA {gpa:#x}, {size:#x} bytes to {PageState(state).name.lower()}"
        self._vm.fileno()  # C has its number, which may be another file's once it is closed
        self._refuse_a_fork("convert", about)
        changed = ffi.new("uint64_t *")
        pages, rest = divmod(size, PAGE_SIZE)
        if rest or not 0 <= gpa < 1 << 64 or not 0 < pages < 1 << 64:
            raise KvmError("convert", errno.EINVAL, about)
        result = lib.memory_convert(self.raw, gpa, pages, state, changed)
        if result == -errno.EAGAIN:
            about += self._page_in_use(gpa, pages)
        if result == -errno.ENOTRECOVERABLE:
            cause = errno.errorcode[self.raw.regions[self._index_of(gpa)].lost]
            about += f": one has failed ({cause}) and could not be undone"
        if result < 0:
            raise KvmError("convert", -result, about)
        return int(changed[0])

    def _page_in_use(self, gpa: int, pages: int) -> str:
        """The page that the kernel refused; "" if it named none of these."""
        region = self.regions[self._index_of(gpa)]
        raw = self.raw.regions[self._index_of(gpa)]
        view = region.gpa if 0 <= gpa - region.gpa < region.size else region.shared_gpa
        # Of a conversion by another thread meanwhile, or of a kernel that says nonsense.
        is_another = not 0 <= raw.busy_page - (gpa - view) // PAGE_SIZE < pages
        if not raw.busy or is_another:
            return ""
        return f", the page at GPA {region.gpa + raw.busy_page * PAGE_SIZE:#x} is in use"

    def _index_of(self, gpa: int) -> int:
        """Of the region that has this GPA in one of its views."""
        return next(
            index
            for index, region in enumerate(self.regions)
            if any(0 <= gpa - view < region.size for view in (region.gpa, region.shared_gpa))
        )

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes as the host sees them: RAM, or shared pages of one view.

        Raises :class:`PrivatePageError` for a private page,
        :class:`ConfigurationError` where no memory is, and :class:`KvmError` with EFAULT where
        the kernel cannot reach a page that is shared by all that pyvmm knows.
        """
        raw = self.raw
        integer("GPA", gpa)
        integer("size", size)
        for ram, mapping in self._ram:
            if ram.gpa <= gpa and gpa + size <= ram.end and size >= 0:
                return bytes(mapping.view[gpa - ram.gpa : gpa - ram.gpa + size])
        if not 0 <= size <= max((region.size for region in self.regions), default=0):
            raise ConfigurationError(f"GPA {gpa:#x}, {size} bytes", "no memory is there")
        buffer = bytearray(size)
        self._copy(raw, gpa, buffer, False)
        return bytes(buffer)

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes as the host: into RAM, or into shared pages. Raises as :meth:`read`."""
        raw = self.raw
        integer("GPA", gpa)
        need("data", data, bytes, bytearray, memoryview)
        data = bytes(data)
        for ram, mapping in self._ram:
            if ram.gpa <= gpa and gpa + len(data) <= ram.end:
                mapping.view[gpa - ram.gpa : gpa - ram.gpa + len(data)] = data
                return
        self._copy(raw, gpa, bytearray(data), True)

    def write_ram(self, gpa: int, data: bytes) -> None:
        """Store bytes into plain memory alone; :class:`ConfigurationError` where there is none."""
        try:
            end = gpa + len(data)
            for (start, size, _), mapping in self._ram:
                if start <= gpa and end <= start + size:
                    ffi.buffer(mapping.pointer, size)[gpa - start : end - start] = data
                    return
        except (TypeError, ValueError):
            need("data", data, bytes, bytearray, memoryview)
            integer("GPA", gpa)
            raise
        integer("GPA", gpa)  # what is too long to be shown is said by this
        raise ConfigurationError(f"GPA {gpa:#x}, {len(data)} bytes", "they are not in RAM")

    def flush(self, gpa: int) -> None:
        """Take the page of ``gpa`` out of KVM's page tables; its contents stay.

        The next touch by a guest is then a fault that the kernel resolves. Nothing happens
        where no plain memory is.
        """
        integer("GPA", gpa)
        for ram, mapping in self._ram:
            if ram.gpa <= gpa < ram.end:
                at = (gpa - ram.gpa) & -PAGE_SIZE
                lib.host_flush(PAGE_SIZE, ffi.cast("char *", mapping.pointer) + at)

    def _refuse_a_fork(self, call: str, about: str) -> None:
        if os.getpid() != self._process:
            raise KvmError(call, errno.EIO, about)

    def _copy(self, raw: Any, gpa: int, data: bytearray, is_write: bool) -> None:
        what = f"GPA {gpa:#x}, {len(data)} bytes"
        if not 0 <= gpa < 1 << 64:
            raise ConfigurationError(what, "no memory is there")
        self._refuse_a_fork("write" if is_write else "read", what)
        result = lib.memory_copy(raw, gpa, ffi.from_buffer(data), len(data), is_write)
        if result == -errno.EACCES:
            raise PrivatePageError(what, "a page of it is private", "convert it to shared first")
        if result == -errno.EINVAL:
            raise ConfigurationError(
                what, "no memory is there, or not under all of it in one RAM or view"
            )
        if result < 0:
            raise KvmError("write" if is_write else "read", -result, what)

    def ram_ranges(self) -> list[GpaRange]:
        """The plain memory, in the order in which it was added. Deprecated: add_ram() says it."""
        return [claimed for claimed, _ in self._ram]

    def conversions(self) -> Conversions:
        """The sum over all regions."""
        if len(self.regions) == 1:
            return self.regions[0].conversions()
        parts = [region.conversions() for region in self.regions]
        return Conversions(
            sum(part.to_private for part in parts),
            sum(part.to_shared for part in parts),
            sum(part.implicit for part in parts),
            sum(part.explicit for part in parts),
        )

    def close(self) -> None:
        """Give files and mappings back; a run loop that is still under way, when it ends.

        The VM keeps its memslots, which then show whatever is mapped there next: close its
        vCPUs first, as :class:`Machine` does.
        """
        self._raw = None
