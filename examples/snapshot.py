"""A machine is kept in the middle and goes on in another: registers, RAM, page states, pages.

Prints:
    first  stopped with 2 private pages, console b'before '
    second PASS, console b'before after'
"""

import errno
from typing import Any

from pyvmm import KvmError, Machine, assemble
from pyvmm.kvm.exits import IoExit
from pyvmm.kvm.mapping import PAGE_SIZE
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi
from pyvmm.page_states import PageState

GUEST = assemble("""
        .include "pyvmm.inc"
        guest "snapshot"

        movw $PRIVATE, %ax
        movw %ax, %es
        movb $0x5a, %es:0               # page 0 private
        movb $0xa5, %es:0x2000          # page 2 private
        movw $SHARED, %ax
        movw %ax, %fs
        movb $0x33, %fs:0x1000          # page 1 shared
        movb $8, 0x3000                 # plain memory
        movl $PRIVATE * 16, %eax        # half of a doorbell: the GPA alone
        movw $0x600, %dx
        outl %eax, %dx
        puts "before "
        movw $0x4242, %cx
        outb %al, $0x70                 # here the machine is kept
        assert_eqw %cx, $0x4242
        puts "after"
        movw $0x604, %dx
        movl $1, %eax
        outl %eax, %dx
        movw $0x608, %dx
        movl $2, %eax                   # to private: page 0 is so already, and keeps its contents
        outl %eax, %dx
        movw $0x60c, %dx
        inl %dx, %eax
        assert_eqw %ax, $0              # it knew the GPA
        assert_eqb %es:0, $0x5a
        assert_eqb %es:0x2000, $0xa5
        assert_eqb %fs:0x1000, $0x33
        assert_eqb 0x3000, $8
        exit_guest $0
""")
PARTS = ("regs", "sregs2", "xcrs", "debugregs", "vcpu_events", "mp_state")
MSRS = (0xC000_0080, 0x10)  # EFER and the TSC; this guest has no others


def complete(vcpu: Vcpu) -> None:
    """KVM ends an access to a port or to MMIO when it is entered again, and no earlier."""
    vcpu.kvm_run.immediate_exit = 1
    try:
        vcpu.run()
    except KvmError as error:
        if error.errno != errno.EINTR:
            raise
    vcpu.kvm_run.immediate_exit = 0


def save(machine: Machine) -> dict[str, Any]:
    """A machine of one vCPU, which stands between two instructions."""
    vcpu, loop = machine.vcpus[0], machine.loops[0]
    protocol = loop.raw.protocol
    kept: dict[str, Any] = {part: getattr(vcpu, f"get_{part}")() for part in PARTS}
    kept["xsave"], kept["msrs"] = vcpu.get_xsave2(), vcpu.get_msrs(MSRS)
    kept["clock"] = machine.vm.get_clock()
    kept["ram"] = [(gpa, machine.memory.read(gpa, size)) for gpa, size in machine.platform.ram]
    kept["regions"] = []
    for region in machine.memory.regions:
        states = region.states()
        pages = []
        with region.backing.private_file.map() as private:
            for at, state in enumerate(states):
                offset = at * PAGE_SIZE
                if state == PageState.PRIVATE:
                    pages.append(bytes(private.view[offset : offset + PAGE_SIZE]))
                else:
                    pages.append(machine.memory.read(region.shared_gpa + offset, PAGE_SIZE))
        kept["regions"].append((states, pages))
    kept["guest"] = bytes(ffi.buffer(ffi.addressof(loop.raw.guest)))
    kept["buffers"] = bytes(ffi.buffer(protocol.buffers))
    kept["written"] = protocol.console_written, protocol.measures_written
    return kept


def restore(machine: Machine, kept: dict[str, Any]) -> None:
    """Into one that has not run yet. States come first: a page reads zero after a conversion."""
    vcpu, loop = machine.vcpus[0], machine.loops[0]
    protocol = loop.raw.protocol
    for gpa, data in kept["ram"]:
        machine.memory.write(gpa, data)
    for region, (states, pages) in zip(machine.memory.regions, kept["regions"], strict=True):
        for at, state in enumerate(states):
            if state == PageState.PRIVATE:
                machine.memory.convert(region.gpa + at * PAGE_SIZE, PAGE_SIZE, PageState.PRIVATE)
        with region.backing.private_file.map() as private:
            for at, (state, page) in enumerate(zip(states, pages, strict=True)):
                offset = at * PAGE_SIZE
                if state == PageState.PRIVATE:
                    private.view[offset : offset + PAGE_SIZE] = page
                else:
                    machine.memory.write(region.shared_gpa + offset, page)
    ffi.buffer(ffi.addressof(loop.raw.guest))[:] = kept["guest"]
    ffi.buffer(protocol.buffers)[:] = kept["buffers"]
    protocol.console_written, protocol.measures_written = kept["written"]
    vcpu.set_xcrs(kept["xcrs"])
    vcpu.set_sregs2(kept["sregs2"])
    vcpu.set_msrs(kept["msrs"])
    vcpu.set_xsave(kept["xsave"])
    for part in ("debugregs", "vcpu_events", "mp_state", "regs"):
        getattr(vcpu, f"set_{part}")(kept[part])
    machine.vm.set_clock(kept["clock"].clock_ns)


with Machine(GUEST, backend="emulated") as first:
    exits = first.exits(deadline_s=10)
    exit = next(exits, None)
    if not isinstance(exit, IoExit):
        raise SystemExit(f"this guest has no such exit: {exit} {first.report().reason}")
    exits.close()
    complete(first.vcpus[0])
    kept = save(first)
    private = sum(size for _, size in first.memory.regions[0].private_ranges()) // PAGE_SIZE
    print(f"first  stopped with {private} private pages, console {first.console()!r}")

with Machine(GUEST, backend="emulated") as second:
    restore(second, kept)
    report = second.run(deadline_s=10)
    print(f"second {report.result.value.upper()}, console {second.console()!r}")
