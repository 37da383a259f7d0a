"""KVM_SET_MEMORY_ATTRIBUTES2 as a call: who has it, what it refuses, and what it does not look at.

Every row is one change of a request that works. It is made right first and last, and no row may
change a page's state or write anything back.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from pyvmm.kvm.ioctls import IOCTLS, iow, iowr
from pyvmm.kvm.mapping import Mapping
from pyvmm.kvm.memfd import Memfd
from pyvmm.native import ffi, lib
from pyvmm.validate.kit import child
from pyvmm.validate.kit.calls import vm_with_files
from pyvmm.validate.kit.capabilities import missing
from pyvmm.validate.kit.case import GIB, PAGE, case
from pyvmm.validate.kit.check import Missing, check, errno_name, errno_of, expect, expect_errno
from pyvmm.validate.kit.in_place import (
    CALL,
    CAPABILITY,
    INIT_SHARED,
    MAPPED,
    MARK,
    MMAP,
    Answer,
    HostView,
    InPlace,
    raw_call,
    set_attributes,
)
from pyvmm.validate.kit.memory import ATTRIBUTE
from pyvmm.validate.kit.patterns import HOST, PRIVATE
from pyvmm.validate.kit.toolbox import Toolbox

NEEDS = ("in_place",)
BACKEND = "in_place"
GPA, PAGES = 4 * GIB, 8
SIZE = PAGES * PAGE
TOP, ALL = 1 << 63, (1 << 64) - 1
EINVAL, EFAULT, ENOTTY = errno.EINVAL, errno.EFAULT, errno.ENOTTY
# The 64-bit words of a request.
_FIELDS = ("offset", "size", "attributes", "flags", "error_offset")


_PARAMETER = Path("/sys/module/kvm/parameters/gmem_in_place_conversion")


def new_memory(tools: Toolbox, **more: int) -> InPlace:
    return InPlace(tools, tools.private_vm(), GPA, SIZE, **more)


@case(
    "IP1",
    "the VM says that it converts in place, and that it has no attributes of its own",
    needs=NEEDS,
    backend=BACKEND,
)
def capabilities(tools: Toolbox) -> None:
    private, plain = tools.private_vm().vm, tools.vm().vm
    capability = CAPABILITY
    for who, ask, wanted in (
        ("a VM with private memory", private, ATTRIBUTE),
        ("/dev/kvm", tools.kvm, ATTRIBUTE),
        ("a VM without private memory", plain, 0),
    ):
        seen = ask.check_extension(capability)
        expect(seen, wanted, f"KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES of {who}")
        seen = ask.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES)
        expect(seen, 0, f"KVM_CAP_MEMORY_ATTRIBUTES of {who}")
        seen = ask.check_extension(lib.KVM_CAP_GUEST_MEMFD_FLAGS) & MAPPED
        expect(seen, MAPPED, f"MMAP and INIT_SHARED in KVM_CAP_GUEST_MEMFD_FLAGS of {who}")
        for name in ("USER_MEMORY2", "MEMORY_FAULT_INFO", "GUEST_MEMFD"):
            seen = ask.check_extension(getattr(lib, f"KVM_CAP_{name}"))
            expect(seen, 1, f"KVM_CAP_{name} of {who}")

    def set_private() -> None:
        private.set_memory_attributes(GPA, PAGE, ATTRIBUTE)

    if _PARAMETER.exists():  # it is compiled in only beside the VM's own attributes
        mode = _PARAMETER.stat().st_mode & 0o777
        expect(f"{mode:o}", "444", f"mode of {_PARAMETER}, which no running VM could follow")
    # Compiled in it refuses the attribute; otherwise there is no such ioctl.
    expect_errno(set_private, (EINVAL, ENOTTY), "KVM_SET_MEMORY_ATTRIBUTES, PRIVATE, on the VM")


# What is wrong: the fields that differ from a request for all of the file, to private.
ROWS: dict[str, list[dict[str, int]]] = {
    "flags": [{"flags": 1 << bit} for bit in range(64)],
    "reserved": [{f"reserved {at}": 1 << bit} for at in range(11) for bit in (0, 31, 32, 63)],
    "attributes": [
        {"attributes": 1 << bit | also}
        for bit in range(64)
        if 1 << bit != ATTRIBUTE
        for also in (0, ATTRIBUTE)
    ],
    "size 0": [{"size": 0}, {"size": 0, "attributes": 0}, {"size": 0, "offset": SIZE}],
    "size unaligned": [{"size": size} for size in (1, 512, PAGE - 1, PAGE + 1, SIZE - 1)],
    "offset unaligned": [{"offset": at, "size": PAGE} for at in (1, 8, 2048, PAGE - 1)],
    "wrap": [
        {"offset": ALL - PAGE + 1, "size": 2 * PAGE},
        {"offset": PAGE, "size": ALL - PAGE + 1},
        {"offset": ALL - SIZE + 1, "size": SIZE + PAGE},
        {"offset": TOP, "size": TOP + PAGE},
        {"offset": PAGE, "size": ALL & -PAGE},
    ],
    "offset + size are 1 << 64": [
        {"offset": ALL - PAGE + 1, "size": PAGE},
        {"offset": TOP, "size": TOP},
    ],
    "past the end": [
        {"offset": SIZE, "size": PAGE},
        {"offset": PAGE},
        {"offset": SIZE - PAGE, "size": 2 * PAGE},
        {"size": SIZE + PAGE},
        {"offset": 1 << 32, "size": PAGE},
        {"offset": 1 << 44, "size": PAGE},
        {"offset": TOP, "size": PAGE},
        {"size": 1 << 40},
        {"size": (1 << 32) + PAGE},
        {"size": TOP},
    ],
}


@case(
    "IP2",
    "what is wrong is EINVAL, writes nothing back and changes no page",
    needs=NEEDS,
    backend=BACKEND,
    vary={"wrong": tuple(ROWS)},
)
def refused(tools: Toolbox, wrong: str) -> None:
    memory = new_memory(tools)
    fd = memory.file.fileno()
    states = [page % 2 == 1 for page in range(PAGES)]
    for page in range(1, PAGES, 2):
        memory.to_private(page * PAGE, PAGE)
    for row in ROWS[wrong]:
        for attributes in (ATTRIBUTE, 0) if "attributes" not in row else (0,):
            request = ffi.new("uint64_t[16]", [0, SIZE, attributes, 0, MARK])
            for name, value in row.items():
                word, _, index = name.partition(" ")
                request[5 + int(index) if index else _FIELDS.index(word)] = value
            before = list(request)
            error = raw_call(fd, int(ffi.cast("uintptr_t", request)))
            changes = ", ".join(f"{name} {value:#x}" for name, value in row.items())
            what = f"KVM_SET_MEMORY_ATTRIBUTES2 with {changes}"
            expect(errno_name(error), "EINVAL", f"errno of {what}")
            check(list(request) == before, f"{what} writes something back")
    memory.expect_states(states, f"after requests with wrong {wrong}")
    memory.to_private(0, SIZE)
    memory.expect_states([True] * PAGES, "after the right request")


@case(
    "IP3",
    "a request that cannot be read is EFAULT; one that cannot be written is read all the same",
    needs=NEEDS,
    backend=BACKEND,
)
def pointers(tools: Toolbox) -> None:
    memory = new_memory(tools)
    fd = memory.file.fileno()
    for address in (8, TOP, ALL - 7):
        expect(errno_name(raw_call(fd, address)), "EFAULT", f"a request at address {address:#x}")
    # Its last word is in a page that is not there.
    two = tools.keep(Mapping(2 * PAGE))
    two.view[PAGE - 120 :][:40] = bytes(ffi.buffer(ffi.new("uint64_t[5]", [0, SIZE, ATTRIBUTE])))
    lib.host_unmap(PAGE, ffi.cast("char *", two.pointer) + PAGE)
    error = raw_call(fd, two.address + PAGE - 120)
    expect(errno_name(error), "EFAULT", "a request of which the last 8 bytes are not there")
    memory.expect_states([False] * PAGES, "after requests that cannot be read")
    # Nothing is written back but after EAGAIN and ENOMEM: it may be where nothing can be written.
    file = tools.keep(Memfd("read-only request", PAGE))
    readable = tools.keep(file.map(protection=1))
    for size, wanted in ((SIZE + PAGE, "EINVAL"), (SIZE, "success")):
        request = ffi.new("uint64_t[16]", [0, size, ATTRIBUTE])
        os.pwrite(file.fileno(), bytes(ffi.buffer(request)), 0)
        seen = errno_name(raw_call(fd, readable.address))
        expect(seen, wanted, f"a request of {size:#x} bytes that is read-only")
    memory.expect_states([True] * PAGES, "after a request that is read-only")


@case(
    "IP4",
    "only a guest_memfd has the ioctl, and only with its own size and direction",
    needs=NEEDS,
    backend=BACKEND,
)
def other_descriptors(tools: Toolbox) -> None:
    memory = new_memory(tools)
    vm = memory.vm
    request = ffi.new("uint64_t[16]", [0, PAGE, ATTRIBUTE, 0, MARK])
    address = int(ffi.cast("uintptr_t", request))
    memfd = tools.keep(Memfd("no guest_memfd", SIZE))
    for name, fd in (
        ("/dev/kvm", tools.kvm.fileno()),
        ("a VM", vm.vm.fileno()),
        ("a vCPU", vm.cpu.vcpu.fileno()),
        ("a memfd", memfd.fileno()),
    ):
        # What /dev/kvm and a vCPU do not know, their architecture refuses.
        allowed = (ENOTTY, EINVAL) if name in ("/dev/kvm", "a vCPU") else (ENOTTY,)
        seen = raw_call(fd, address)
        check(seen in allowed, f"KVM_SET_MEMORY_ATTRIBUTES2 on {name}: {errno_name(seen)}")
    others = (
        IOCTLS["KVM_SET_MEMORY_ATTRIBUTES"],
        iow("the same, write only", 0xD2, "uint64_t[16]"),
        iowr("the same of 32 bytes", 0xD2, "uint64_t[4]"),
        iowr("the same of 136 bytes", 0xD2, "uint64_t[17]"),
        iowr("number 0xd1", 0xD1, "uint64_t[16]"),
        IOCTLS["KVM_CREATE_GUEST_MEMFD"],
        IOCTLS["KVM_CHECK_EXTENSION"],
        IOCTLS["KVM_RUN"],
    )
    for other in others:
        # A request that would work; with a structure that is longer there are zeros behind it.
        longer = ffi.new("uint64_t[32]", [0, PAGE, ATTRIBUTE, 0])
        for argument in (int(ffi.cast("uintptr_t", longer)), TOP):  # of the second nothing is read
            seen = -int(lib.kvm_ioctl(memory.file.fileno(), other.number, argument))
            expect(errno_name(seen), "ENOTTY", f"{other.name} on a guest_memfd")
    memory.expect_states([False] * PAGES, "after ioctls that are not there")


@case(
    "IP5",
    "a VM without private memory converts nothing: EINVAL, with no attributes either",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (0, MMAP, MAPPED)},
)
def default_vm(tools: Toolbox, flags: int) -> None:
    vm = vm_with_files(tools, lib.KVM_X86_DEFAULT_VM)
    file = tools.keep(vm.create_guest_memfd(SIZE, flags))
    for attributes in (0, ATTRIBUTE):
        answer = set_attributes(file.fileno(), 0, SIZE, attributes)
        what = f"KVM_SET_MEMORY_ATTRIBUTES2, attributes {attributes}, of a default VM's file"
        expect(answer, Answer(EINVAL, MARK), what)
    if flags == MAPPED:
        host = tools.keep(HostView(tools.keep(file.map()).address))
        check(host.write(0, b"x"), "a default VM's file cannot be written to any more")


@case(
    "IP78",
    "a default VM's slot takes its pages from the file, whatever the file's flags",
    needs=NEEDS,
    backend=BACKEND,
    vary={"flags": (0, INIT_SHARED, MMAP, MAPPED)},
)
def slot_of_a_default_vm(tools: Toolbox, flags: int) -> None:
    vm, other = tools.vm(), tools.keep(Mapping(SIZE))
    memory = InPlace(tools, vm, GPA, SIZE, flags=flags, address=other.address)
    memory.expect_guest_zero(0, SIZE, "new pages of a default VM's file")
    memory.guest_fill(0, SIZE, PRIVATE)
    memory.expect_guest(0, SIZE, PRIVATE, "pages of a default VM's file")
    check(not any(other.view), "a default VM writes to the host memory of a slot with a file")
    memory.punch(0, SIZE)
    memory.expect_guest_zero(0, SIZE, "punched pages of a default VM's file")


@case(
    "IP6",
    "a kernel that does not convert in place says so in each way",
    needs=("guest_memfd", "private_memory"),
)
def without(tools: Toolbox) -> None:
    if not missing("in_place"):
        raise Missing("a kernel without in-place conversion: kvm.gmem_in_place_conversion=0")
    vm = tools.private_vm().vm
    capability = CAPABILITY
    expect(vm.check_extension(capability), 0, "KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES")
    file = tools.keep(vm.create_guest_memfd(SIZE))
    for request in ((0, 0, 0), (0, SIZE, ATTRIBUTE), (1, SIZE, 0)):
        answer = set_attributes(file.fileno(), *request)
        expect(answer, Answer(ENOTTY, MARK), "KVM_SET_MEMORY_ATTRIBUTES2 where it is off")
    seen = raw_call(file.fileno(), TOP)
    expect(errno_name(seen), "ENOTTY", "KVM_SET_MEMORY_ATTRIBUTES2 where it is off, at no address")
    seen = errno_of(lambda: vm.create_guest_memfd(SIZE, INIT_SHARED).close())
    expect(errno_name(seen), "EINVAL", "INIT_SHARED for a VM with private memory")
    vm.set_memory_attributes(GPA, PAGE, ATTRIBUTE)


@case(
    "IP7",
    "error_offset may have any value, and is what it was when the call succeeds",
    needs=NEEDS,
    backend=BACKEND,
)
def error_offset(tools: Toolbox) -> None:
    memory = new_memory(tools)
    fd = memory.file.fileno()
    for value in (0, 1, PAGE, SIZE, 1 << 32, TOP, ALL, MARK):
        for attributes in (ATTRIBUTE, ATTRIBUTE, 0, 0):
            request = ffi.new("uint64_t[16]", [PAGE, 2 * PAGE, attributes, 0, value])
            before = list(request)
            error = raw_call(fd, int(ffi.cast("uintptr_t", request)))
            expect(errno_name(error), "success", f"a request with error_offset {value:#x}")
            check(list(request) == before, "a request that succeeds writes something back")


@case(
    "IP8",
    "another process converts and maps a descriptor that it was sent",
    needs=NEEDS,
    backend=BACKEND,
)
def other_process(tools: Toolbox) -> None:
    memory = new_memory(tools)
    memory.fill(0, SIZE, HOST)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def use_what_is_sent() -> int:
            # What was inherited is closed: all that it has is what it is sent.
            os.close(memory.file.fileno())
            os.close(memory.vm.vm.fileno())
            _, (fd, *_), _, _ = socket.recv_fds(theirs, 1, 1)
            return _in_another_process(fd)

        pid = child.start(use_what_is_sent)
        socket.send_fds(ours, [b"x"], [memory.file.fileno()])
        failed = child.end_of(pid)
    steps = {1: "it cannot convert", 2: "it can read a private page", 3: "other contents"}
    problem = steps.get(failed, "it died")
    check(failed == 0, f"a process that was sent a guest_memfd: {problem}")
    memory.expect_states([page < 2 for page in range(PAGES)], "converted by another process")
    memory.expect_guest(0, SIZE, HOST, "pages that another process converted")


def _in_another_process(fd: int) -> int:
    if set_attributes(fd, 0, 2 * PAGE, ATTRIBUTE).error:
        return 1
    mapping = Mapping(SIZE, fd=fd)
    view = HostView(mapping.address)
    if view.read(0, 8) is not None or view.read(PAGE, 8) is not None:
        return 2
    return 0 if view.word(2 * PAGE) == HOST + GPA + 2 * PAGE else 3


@case(
    "IP9",
    "the file converts still when the VM's descriptor is closed, and its mapping follows",
    needs=NEEDS,
    backend=BACKEND,
)
def after_the_vm(tools: Toolbox) -> None:
    memory = new_memory(tools)
    memory.fill(0, SIZE, HOST)
    memory.vm.close()
    memory.to_private(PAGE, 3 * PAGE)
    private = [1 <= page < 4 for page in range(PAGES)]
    memory.expect_states(private, "converted after the VM was closed")
    memory.to_shared(PAGE, 3 * PAGE)
    memory.expect_host(0, SIZE, HOST, "pages converted after the VM was closed")
    memory.to_private(0, SIZE)
    memory.punch(0, SIZE)
    memory.allocate(0, SIZE)
    memory.expect_states([True] * PAGES, "punched and allocated after the VM was closed")


@case(
    "IP10",
    "beyond 4 GiB of its file only the page that is asked for changes",
    needs=NEEDS,
    backend=BACKEND,
    vary={"base": (4 * GIB, 16 * 1024 * GIB)},
)
def far_offsets(tools: Toolbox, base: int) -> None:
    vm = tools.private_vm()
    low = InPlace(tools, vm, GPA, SIZE, file_size=base + SIZE)
    high = tools.keep(low.file.map(base, SIZE))
    view = tools.keep(HostView(high.address))
    for fd_offset, private in ((base + PAGE, True), (base + PAGE, False), (base + SIZE - PAGE, 1)):
        answer = set_attributes(low.file.fileno(), fd_offset, PAGE, ATTRIBUTE if private else 0)
        expect(errno_name(answer.error), "success", f"a conversion at {fd_offset:#x}")
        for page in range(PAGES):
            wanted = private and base + page * PAGE == fd_offset
            seen = view.read(page * PAGE, 1) is None
            check(seen == wanted, f"a conversion beyond {base:#x} of its file reaches other pages")
    low.expect_states([False] * PAGES, f"pages below, after conversions beyond {base:#x}")
    vm.vm.set_user_memory_region2(
        vm.new_slot(),
        GPA + GIB,
        SIZE,
        high.address,
        lib.KVM_MEM_GUEST_MEMFD,
        low.file.fileno(),
        base,
    )
    vm.cpu.fill(GPA + GIB, SIZE, HOST)
    vm.cpu.expect_filled(GPA + GIB, SIZE, HOST, "pages far in their file, for the guest")


@case(
    "IP77",
    "a range of more than 16 TiB converts as a whole, and back",
    needs=NEEDS,
    backend=BACKEND,
)
def large_range(tools: Toolbox) -> None:
    end = 16 * 1024 * GIB
    low = InPlace(tools, tools.private_vm(), GPA, SIZE, file_size=end + SIZE)
    low.fill(0, SIZE, HOST)
    high = tools.keep(HostView(tools.keep(low.file.map(end, SIZE)).address))
    first, last = 2, 5  # the pages that the range begins and ends with, of the first and last ones
    size = end + (last + 1 - first) * PAGE
    for private in (True, False):
        answer = set_attributes(low.file.fileno(), first * PAGE, size, ATTRIBUTE if private else 0)
        expect(errno_name(answer.error), "success", f"a conversion of {size:#x} bytes")
        what = f"after a conversion of {size:#x} bytes"
        low.expect_states([private and page >= first for page in range(PAGES)], what)
        seen = [high.read(page * PAGE, 1) is None for page in range(PAGES)]
        wanted = [private and page <= last for page in range(PAGES)]
        check(seen == wanted, f"{what}: a page at its end has another state", f"{seen}")
    low.expect_host(0, SIZE, HOST, "pages of a range that was converted as a whole")


@case(
    "IP11",
    "a kernel's number for the call is the one that this was compiled with",
    needs=("guest_memfd",),
)
def number(tools: Toolbox) -> None:
    """Whether it is there shows without its capability, whose number may move."""
    has = not missing("in_place")
    # The file of a default VM may have the call, too, where the VM has no use for it.
    file = tools.keep(vm_with_files(tools, 1).create_guest_memfd(PAGE))
    seen = set_attributes(file.fileno(), 0, 0, 0).error
    wanted = "EINVAL" if has else "ENOTTY"
    expect(errno_name(seen), wanted, f"an empty request ({CALL.number:#x}) on a new guest_memfd")
