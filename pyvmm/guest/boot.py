"""The state a guest starts in: the guest protocol's registers and low memory."""

from __future__ import annotations

import struct
from functools import cache

from pyvmm.guest.descriptors import stub_code
from pyvmm.guest.layout import REAL
from pyvmm.kvm.vcpu import Vcpu
from pyvmm.native import ffi, lib

START = REAL.origin
RAM_SIZE = 0x40000
STACK_PER_VCPU = 0x400
MAX_VCPUS = 28

_FLAGS_RESERVED = 0x2


def set_real_mode(vcpu: Vcpu, ip: int, *, rax: int = 0, rbx: int = 0, rsp: int = 0) -> None:
    """Real mode with all segments at 0, interrupts off and every other register zero."""
    sregs = vcpu.get_sregs()
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.base = 0
        segment.selector = 0
    vcpu.set_sregs(sregs)
    regs = ffi.new("struct kvm_regs *")
    regs.rax, regs.rbx, regs.rsp, regs.rip = rax, rbx, rsp, ip
    regs.rflags = _FLAGS_RESERVED
    vcpu.set_regs(regs)


def set_boot_state(vcpu: Vcpu, vcpus: int, entry: int = START) -> None:
    """How the guest protocol starts vCPU ``vcpu.index`` of ``vcpus``."""
    stack = START - vcpu.index * STACK_PER_VCPU
    set_real_mode(vcpu, entry, rax=vcpu.index, rbx=vcpus, rsp=stack)


@cache
def low_memory() -> bytes:
    """The bytes from GPA 0: 256 interrupt vectors and the stubs they lead to.

    A stub ends the run with code 0x100 + vector; ``csrc/vector_stub.h`` says how.
    """
    vectors = b"".join(
        struct.pack("<HH", lib.VECTOR_STUBS + vector, 0) for vector in range(lib.VECTORS)
    )
    return bytes(vectors.ljust(lib.VECTOR_STUBS, b"\0") + stub_code())
