"""The port by which guests of VMware talk to it, 0x5658; QEMU has one, too.

A guest puts a magic number into EAX and a command into ECX. The answer is in registers, and not
only in that of the IN. The one command that is answered says that the port is there.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.kvm.vcpu import Vcpu

PORTS = range(0x5658, 0x5659)

_MAGIC = 0x564D5868
_GET_VERSION, _VERSION, _ESX_SERVER = 10, 6, 2
_UNKNOWN = 0xFFFF_FFFF
_EAX = 0xFFFF_FFFF


class VmwarePort:
    """``calling_vcpu()`` is the vCPU that this thread runs. Writes do nothing.

    Synchronization: vCPUs may share it.
    """

    def __init__(self, calling_vcpu: Callable[[], Vcpu]) -> None:
        self._calling_vcpu = calling_vcpu

    def read(self, port: int, size: int) -> int:
        vcpu = self._calling_vcpu()
        regs = vcpu.get_regs()
        mask = (1 << 8 * size) - 1
        if regs.rax & _EAX != _MAGIC or regs.rcx & _EAX != _GET_VERSION:
            return _UNKNOWN & mask
        regs.rbx, regs.rcx = _MAGIC, _ESX_SERVER
        # Some KVMs put RAX as it is set here in the place of what the IN reads.
        kept = 0 if size == 4 else regs.rax & ~mask
        regs.rax = kept | _VERSION
        vcpu.set_regs(regs)
        return _VERSION

    def write(self, port: int, size: int, value: int) -> None:
        pass
