"""guest_memfd as a file: creation, what its descriptor refuses, fallocate and mmap."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from pyvmm.kvm.guest_memfd import GuestMemfd
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.vm import Vm
from pyvmm.native import ffi, lib
from pyvmm.validate.kit.beside import CallBeside
from pyvmm.validate.kit.calls import KEEP_SIZE, PUNCH_HOLE, fallocate, vm_with_files
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.memory import touch
from pyvmm.validate.kit.policy import bind_to_node_0, node_of
from pyvmm.validate.kit.toolbox import Toolbox

MMAP: int = lib.GUEST_MEMFD_FLAG_MMAP
INIT_SHARED: int = lib.GUEST_MEMFD_FLAG_INIT_SHARED
SIZE = 16 * PAGE
SIGBUS = 7
_TYPES = (0, 1)
#: An allocation of so much takes long enough for a signal to come, and such a case several tries.
_LONG = 256 << 20
_ATTEMPTS, _IN_VAIN = 5, 4

_libc = ctypes.CDLL(None, use_errno=True)


def a_file(tools: Toolbox, vm_type: int = 0, flags: int = 0, size: int = SIZE) -> GuestMemfd:
    vm = vm_with_files(tools, vm_type)
    if flags & ~known_flags(vm):
        raise Missing(f"guest_memfd flags {flags:#x} on a VM of type {vm_type}")
    return tools.keep(vm.create_guest_memfd(size, flags))


def known_flags(vm: Vm) -> int:
    """The flags that a VM says it has; capability 244 counts them since Linux 6.18."""
    return vm.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS)


def file_flags(tools: Toolbox, vm_type: int) -> list[int]:
    flags = known_flags(vm_with_files(tools, vm_type))
    return [each for each in (0, MMAP, INIT_SHARED, MMAP | INIT_SHARED) if not each & ~flags]


@contextmanager
def mapped(tools: Toolbox, file: GuestMemfd) -> Iterator[Mapping]:
    mapping = file.map()
    try:
        yield mapping
    finally:
        mapping.close()


@case(
    "GM1",
    "each flag is accepted if the VM says it has it, else EINVAL",
    vary={"vm_type": _TYPES},
)
def flags(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    known = known_flags(vm)
    vm.create_guest_memfd(SIZE).close()
    for bit in range(64):
        flag = 1 << bit

        def create(flag: int = flag) -> None:
            vm.create_guest_memfd(SIZE, flag).close()

        expect_errno(create, 0 if flag & known else errno.EINVAL, f"guest_memfd flag bit {bit}")


@case("GM2", "several files have inodes and sizes of their own", vary={"vm_type": _TYPES})
def several(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    files = [tools.keep(vm.create_guest_memfd(pages * PAGE)) for pages in (1, 2, 512)]
    stats = [os.fstat(file.fileno()) for file in files]
    expect([each.st_size for each in stats], [PAGE, 2 * PAGE, 512 * PAGE], "st_size")
    check(len({each.st_ino for each in stats}) == 3, "two guest_memfds have the same inode")


@case("GM3", "sizes that are no pages are EINVAL", vary={"vm_type": _TYPES})
def sizes(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    vm.create_guest_memfd(PAGE).close()
    bad = [*range(PAGE), PAGE + 1, (1 << 32) + 1, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1]
    for size in bad:
        expect_errno(
            lambda size=size: vm.create_guest_memfd(size),  # type: ignore[misc]
            errno.EINVAL,
            f"a guest_memfd of {size:#x} bytes",
        )


@case("GM4", "read, write and seek fail, truncation too", vary={"vm_type": _TYPES})
def no_io(tools: Toolbox, vm_type: int) -> None:
    file = a_file(tools, vm_type)
    fd = file.fileno()
    expect_errno(lambda: os.read(fd, 16), errno.EINVAL, "read of a guest_memfd")
    expect_errno(lambda: os.write(fd, b"x" * 16), errno.EINVAL, "write to a guest_memfd")
    for name, call in (
        ("pread", lambda: os.pread(fd, 16, 0)),
        ("pwrite", lambda: os.pwrite(fd, b"x" * 16, 0)),
        ("lseek", lambda: os.lseek(fd, 0, os.SEEK_SET)),
    ):
        expect_errno(call, errno.ESPIPE, f"{name} of a guest_memfd")
    for size in (0, PAGE, 2 * SIZE):
        expect_errno(
            lambda size=size: os.ftruncate(fd, size),  # type: ignore[misc]
            errno.EINVAL,
            f"ftruncate of a guest_memfd to {size:#x} bytes",
        )
    expect(os.fstat(fd).st_size, SIZE, "st_size after calls that must fail")


@case(
    "GM5",
    "mapped: what is written is there, a punched page reads zero and can be written again",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES, "punch": (0, 3, 15)},
)
def map_and_punch(tools: Toolbox, vm_type: int, punch: int) -> None:
    file = a_file(tools, vm_type, MMAP | INIT_SHARED)
    with mapped(tools, file) as mapping:
        view = mapping.view
        view[:] = b"\xaa" * SIZE
        check(bytes(view) == b"\xaa" * SIZE, "a mapped guest_memfd does not hold what was written")
        file.punch(punch * PAGE, PAGE)
        at = punch * PAGE
        check(not any(view[at : at + PAGE]), "a punched page does not read zero")
        rest = bytes(view[:at]) + bytes(view[at + PAGE :])
        check(rest == b"\xaa" * (SIZE - PAGE), "a punch changed other pages")
        view[at : at + PAGE] = b"\xbb" * PAGE
        file.allocate(0, SIZE)
        check(bytes(view[at : at + PAGE]) == b"\xbb" * PAGE, "fallocate changed a present page")
        del view


@case(
    "GM6",
    "a touch beyond the file's end is SIGBUS",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES, "access": ("read", "write")},
)
def beyond(tools: Toolbox, vm_type: int, access: str) -> None:
    file = a_file(tools, vm_type, MMAP | INIT_SHARED)
    mapping = tools.keep(Mapping(2 * SIZE, fd=file.fileno()))
    write = access == "write"
    expect(touch(mapping.address + SIZE - 1, write), 0, "signal of a touch of the last byte")
    expect(touch(mapping.address + SIZE, write), SIGBUS, "signal of a touch beyond the file")


@case(
    "GM7",
    "without INIT_SHARED every touch by the host is SIGBUS",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES, "access": ("read", "write"), "allocated": (False, True)},
)
def not_shared(tools: Toolbox, vm_type: int, access: str, allocated: bool) -> None:
    good = a_file(tools, vm_type, MMAP | INIT_SHARED)
    with mapped(tools, good) as mapping:
        expect(touch(mapping.address, access == "write"), 0, "signal of a touch of shared memory")
    file = a_file(tools, vm_type, MMAP)
    if allocated:
        file.allocate(0, SIZE)
    with mapped(tools, file) as mapping:
        for page in (0, 7, 15):
            expect(
                touch(mapping.address + page * PAGE, access == "write"),
                SIGBUS,
                "signal of a touch of memory that is not shared",
            )


@case(
    "GM8",
    "a private mapping (MAP_PRIVATE) is refused",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES},
)
def map_private(tools: Toolbox, vm_type: int) -> None:
    file = a_file(tools, vm_type, MMAP | INIT_SHARED)
    mmap.mmap(file.fileno(), SIZE, mmap.MAP_SHARED).close()
    expect_errno(
        lambda: mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE), errno.EINVAL, "MAP_PRIVATE"
    )


@case("GM9", "without the MMAP flag mmap is ENODEV", vary={"vm_type": _TYPES})
def no_mmap(tools: Toolbox, vm_type: int) -> None:
    for flags_ in file_flags(tools, vm_type):
        if flags_ & MMAP:
            continue
        file = a_file(tools, vm_type, flags_)
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            expect_errno(
                lambda file=file, protection=protection: file.map(protection=protection),  # type: ignore[misc]
                errno.ENODEV,
                f"mmap of a guest_memfd with flags {flags_:#x}",
            )


@case(
    "GM10",
    "a memory policy is accepted for mapped guest_memfd",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES},
)
def policy(tools: Toolbox, vm_type: int) -> None:
    with mapped(tools, a_file(tools, vm_type, MMAP | INIT_SHARED)) as mapping:
        bind_to_node_0(mapping.address, mapping.size)


@case(
    "GM11",
    "its pages come from the node that the policy names",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES},
)
def placement(tools: Toolbox, vm_type: int) -> None:
    with mapped(tools, a_file(tools, vm_type, MMAP | INIT_SHARED)) as mapping:
        bind_to_node_0(mapping.address, mapping.size)
        mapping.view[:PAGE] = b"x" * PAGE
        expect(node_of(mapping.address), 0, "node of a page")


@case(
    "GM12",
    "MADV_HUGEPAGE is accepted, MADV_COLLAPSE is EINVAL",
    needs=("mappable_guest_memfd",),
    vary={"vm_type": _TYPES},
)
def advice(tools: Toolbox, vm_type: int) -> None:
    file = a_file(tools, vm_type, MMAP | INIT_SHARED, 4 << 20)
    collapse = 25
    with mmap.mmap(file.fileno(), 4 << 20) as mapping:
        mapping[:PAGE] = b"x" * PAGE
        if error := errno_of(lambda: mapping.madvise(mmap.MADV_HUGEPAGE)):
            expect(error, errno.EINVAL, "errno of MADV_HUGEPAGE without transparent huge pages")
            raise Missing("transparent huge pages")
        expect_errno(lambda: mapping.madvise(collapse), errno.EINVAL, "MADV_COLLAPSE")


@case("GM13", "fstat says the size and a page's", vary={"vm_type": _TYPES})
def fstat(tools: Toolbox, vm_type: int) -> None:
    for flags_ in file_flags(tools, vm_type):
        for pages in (1, 16, 1 << 20):
            file = a_file(tools, vm_type, flags_, pages * PAGE)
            stat = os.fstat(file.fileno())
            expect(stat.st_size, pages * PAGE, "st_size")
            expect(stat.st_blksize, PAGE, "st_blksize")


@case("GM14", "fallocate: what is aligned and inside works", vary={"vm_type": _TYPES})
def allocating(tools: Toolbox, vm_type: int) -> None:
    for flags_ in file_flags(tools, vm_type):
        fd = a_file(tools, vm_type, flags_).fileno()

        def expect_call(
            error: int, mode: int, offset: int, size: int, fd: int = fd, flags_: int = flags_
        ) -> None:
            seen = fallocate(fd, mode, offset, size)
            what = f"fallocate(mode {mode}, {offset:#x}, {size:#x}) with flags {flags_:#x}"
            expect(
                errno.errorcode.get(seen, "success"), errno.errorcode.get(error, "success"), what
            )

        both = KEEP_SIZE | PUNCH_HOLE
        expect_call(0, KEEP_SIZE, 0, SIZE)
        expect_call(0, KEEP_SIZE, 0, SIZE)
        expect_call(0, both, PAGE, PAGE)
        expect_call(0, KEEP_SIZE, PAGE, PAGE)
        expect_call(0, KEEP_SIZE, SIZE - PAGE, PAGE)
        expect_call(0, both, SIZE, PAGE)
        expect_call(0, both, SIZE + PAGE, PAGE)
        expect_call(0, both, 0, 4 * SIZE)
        for offset, size in (
            (SIZE, PAGE),
            (SIZE + PAGE, PAGE),
            (SIZE - PAGE, 2 * PAGE),
            (0, 1 << 40),
        ):
            expect_call(errno.EINVAL, KEEP_SIZE, offset, size)
        for offset, size in (
            (1, PAGE),
            (PAGE - 1, PAGE),
            (0, 1),
            (0, PAGE - 1),
            (0, 0),
            (-PAGE, PAGE),
        ):
            expect_call(errno.EINVAL, KEEP_SIZE, offset, size)


@case("GM15", "punches that are no whole pages are EINVAL", vary={"vm_type": _TYPES})
def bad_punches(tools: Toolbox, vm_type: int) -> None:
    file = a_file(tools, vm_type)
    expect(fallocate(file.fileno(), KEEP_SIZE | PUNCH_HOLE, 0, PAGE), 0, "errno of a punch")
    for offset in (0, 1, PAGE - 1, PAGE):
        for size in (0, 1, PAGE - 1, PAGE, PAGE + 1):
            if offset % PAGE == 0 and size and size % PAGE == 0:
                continue
            seen = fallocate(file.fileno(), KEEP_SIZE | PUNCH_HOLE, offset, size)
            expect(seen, errno.EINVAL, f"errno of a punch of {size:#x} bytes at {offset:#x}")


@case("GM17", "other modes of fallocate are EOPNOTSUPP", vary={"vm_type": _TYPES})
def other_modes(tools: Toolbox, vm_type: int) -> None:

    file = a_file(tools, vm_type)
    # PUNCH_HOLE alone, COLLAPSE, ZERO, INSERT, UNSHARE.
    modes = [PUNCH_HOLE, 0x8, 0x10, 0x10 | KEEP_SIZE, 0x20, 0x40, 0x40 | KEEP_SIZE]
    if missing("memory_error"):
        modes.append(0)
    for mode in modes:
        expect(
            fallocate(file.fileno(), mode, 0, PAGE), errno.EOPNOTSUPP, f"errno of mode {mode:#x}"
        )


@case(
    "GM16",
    "a guest of a default VM uses a mapped guest_memfd, and the host sees the same pages",
    needs=("mappable_guest_memfd", "guests"),
    vary={"gpa": (0x80000, 0x100000, 4 * GIB), "slots": (1, 4)},
)
def guest_access(tools: Toolbox, gpa: int, slots: int) -> None:
    vm = tools.vm()
    file = tools.keep(vm.vm.create_guest_memfd(SIZE, MMAP | INIT_SHARED))
    mapping = tools.keep(file.map())
    each = SIZE // slots
    for index in range(slots):
        vm.vm.set_user_memory_region2(
            vm.new_slot(),
            gpa + index * each,
            each,
            mapping.address + index * each,
            lib.KVM_MEM_GUEST_MEMFD,
            file.fileno(),
            index * each,
        )
    vm.cpu.fill(gpa, SIZE, 1 << 48)
    words = mapping.view.cast("Q")
    for offset in range(0, SIZE, 1024):
        expect(words[offset // 8], (1 << 48) + gpa + offset, "what the guest wrote, for the host")
    words[0] = 0x7777
    vm.cpu.expect_read(gpa, 0x7777, "what the host wrote to a mapped guest_memfd")
    file.punch(5 * PAGE, PAGE)
    vm.cpu.expect_zero(gpa + 5 * PAGE, PAGE, "a punched page of a mapped guest_memfd")
    vm.cpu.expect_filled(gpa + 6 * PAGE, PAGE, 1 << 48, "a page beside a punched one")
    del words


@case(
    "GM18",
    "the descriptor outlives the VM's, and its pages can be allocated and punched still",
    vary={"vm_type": _TYPES},
)
def outlives(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    file = tools.keep(vm.create_guest_memfd(SIZE))
    vm.close()
    file.allocate(0, SIZE)
    file.punch(0, SIZE)
    expect(os.fstat(file.fileno()).st_size, SIZE, "st_size after the VM was closed")


@case(
    "GM20",
    "the descriptor is for reading and writing, and kept over exec",
    vary={"vm_type": _TYPES},
)
def descriptor(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    fd = vm.ioctl(
        "KVM_CREATE_GUEST_MEMFD", ffi.new("struct kvm_create_guest_memfd *", {"size": SIZE})
    )
    tools.on_close(lambda: os.close(fd))
    expect(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDWR, "access mode of a guest_memfd")
    expect(fcntl.fcntl(fd, fcntl.F_GETFD), 0, "descriptor flags of a guest_memfd")


@case("GM19", "reserved fields of KVM_CREATE_GUEST_MEMFD do not matter", vary={"vm_type": _TYPES})
def reserved(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    request = ffi.new("struct kvm_create_guest_memfd *", {"size": SIZE})
    for index in range(6):
        request.reserved[index] = (1 << 64) - 1
    fd = vm.ioctl("KVM_CREATE_GUEST_MEMFD", request)
    os.close(fd)


@case(
    "GM21",
    "without a free descriptor KVM_CREATE_GUEST_MEMFD is EMFILE, and works again after that",
    vary={"vm_type": _TYPES},
)
def no_descriptor(tools: Toolbox, vm_type: int) -> None:
    vm = vm_with_files(tools, vm_type)
    lowest_free = os.dup(vm.fileno())
    os.close(lowest_free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        call = partial(vm.create_guest_memfd, SIZE)
        expect_errno(call, errno.EMFILE, "KVM_CREATE_GUEST_MEMFD without a free descriptor")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    file = tools.keep(vm.create_guest_memfd(SIZE))
    expect(file.fileno(), lowest_free, "the descriptor of a guest_memfd after EMFILE")


@case(
    "GM22",
    "an allocation ends with EINTR when a signal comes, and a second one does the rest",
    vary={"vm_type": _TYPES},
)
def interrupted(tools: Toolbox, vm_type: int) -> None:
    file = a_file(tools, vm_type, size=_LONG)

    def allocate() -> None:
        if error := fallocate(file.fileno(), KEEP_SIZE, 0, _LONG):
            raise OSError(error, os.strerror(error))

    kicks = []
    for _ in range(_ATTEMPTS):
        file.punch(0, _LONG)
        with CallBeside(allocate) as call:
            check(call.interrupt(), "an allocation does not end, not even by signals")
        if call.error:
            break
        kicks.append(call.kicks)
    else:
        # Before the call begins, or as it ends, one signal may be in vain, and the next one not.
        check(max(kicks) < _IN_VAIN, "an allocation goes on for all signals", f"{kicks} signals")
        raise Missing("every allocation had ended before the signal came")
    expect(errno_name(call.error), "EINTR", "an allocation during which a signal comes")
    allocate()
    file.punch(0, _LONG)
