"""Rules of vCPUs, their registers and their CPUID."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyvmm.errors import PyvmmError
from pyvmm.kvm.advice.state import VcpuState, VmState
from pyvmm.kvm.cpuid import CpuidEntry, cpuid_entries, physical_address_bits
from pyvmm.native import ffi, lib

# Bits of registers, by the names that the manuals of AMD and Intel share.
_CR0_PE, _CR0_NW, _CR0_CD, _CR0_PG = 1 << 0, 1 << 29, 1 << 30, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_APIC_X2APIC, _APIC_ENABLE = 1 << 10, 1 << 11
_APIC_RESERVED = 0x2FF


class _Needs(NamedTuple):
    """A bit of a register that wants a bit of CPUID: leaf, subleaf, register and bit there."""

    name: str
    bit: int
    leaf: int
    subleaf: int
    register: str
    cpuid_bit: int


_CR4_NEEDS = (
    _Needs("CR4.FSGSBASE", 16, 7, 0, "ebx", 0),
    _Needs("CR4.PCIDE", 17, 1, 0, "ecx", 17),
    _Needs("CR4.OSXSAVE", 18, 1, 0, "ecx", 26),
    _Needs("CR4.SMEP", 20, 7, 0, "ebx", 7),
    _Needs("CR4.SMAP", 21, 7, 0, "ebx", 20),
    _Needs("CR4.PKE", 22, 7, 0, "ecx", 3),
    _Needs("CR4.UMIP", 11, 7, 0, "ecx", 2),
    _Needs("CR4.LA57", 12, 7, 0, "ecx", 16),
    _Needs("CR4.VMXE", 13, 1, 0, "ecx", 5),
)
_EFER_NEEDS = (
    _Needs("EFER.LME", 8, 0x8000_0001, 0, "edx", 29),
    _Needs("EFER.LMA", 10, 0x8000_0001, 0, "edx", 29),
    _Needs("EFER.NXE", 11, 0x8000_0001, 0, "edx", 20),
    _Needs("EFER.SVME", 12, 0x8000_0001, 0, "ecx", 2),
    _Needs("EFER.FFXSR", 14, 0x8000_0001, 0, "edx", 25),
)
# What no CPU has today: CR4's from bit 33, EFER's but SCE and those above.
_CR4_UNKNOWN = ~((1 << 33) - 1) & (1 << 64) - 1


def create_vcpu(state: VmState, index: Any, number: int) -> str:
    if number == errno.EEXIST:
        return f"vCPU id {index} exists already, and stays until the VM is closed"
    if number != errno.EINVAL:
        return ""
    ids = state.ask(lib.KVM_CAP_MAX_VCPU_ID)
    if index >= ids > 0:
        return f"vCPU ids are below {ids} (KVM_CAP_MAX_VCPU_ID)"
    most = state.ask(lib.KVM_CAP_MAX_VCPUS)
    if len(state.vcpus) >= most > 0:
        return f"the VM has {most} vCPUs, which is all it can have (KVM_CAP_MAX_VCPUS)"
    return ""


def before_the_first_vcpu(state: VmState, request: Any, number: int) -> str:
    return state.before_vcpus() if number == errno.EINVAL else ""


def set_boot_cpu_id(state: VmState, index: Any, number: int) -> str:
    if number == errno.EBUSY:
        return "it must come before the first vCPU"
    ids = state.ask(lib.KVM_CAP_MAX_VCPU_ID)
    if number == errno.EINVAL and index > ids > 0:
        return f"vCPU ids are below {ids} (KVM_CAP_MAX_VCPU_ID)"
    return ""


def set_vm_tsc_khz(state: VmState, khz: Any, number: int) -> str:
    return state.before_vcpus() if number == errno.EINVAL else ""


# ---- CPUID ----


def set_cpuid2(state: VcpuState, table: Any, number: int) -> str:
    if number == errno.E2BIG:
        return f"{table.nent} entries are more than this KVM takes"
    if number != errno.EINVAL:
        return ""
    if state.vcpu.kvm_run.exit_reason:  # 0 until the first KVM_RUN has returned
        return f"{state.vcpu.name} has run: its CPUID cannot change any more"
    for entry in cpuid_entries(table):
        bits = entry.eax >> 8 & 0xFF
        if entry.function == 0x8000_0008 and bits not in (0, 48, 57):
            return f"leaf 0x80000008 says {bits} bits of linear address, and KVM knows 48 and 57"
    return ""


class _Cpuid:
    """What the guest may know of its CPU, as far as KVM tells."""

    def __init__(self, vcpu: Any) -> None:
        try:
            self.table = vcpu.get_cpuid2()
            self.entries = list(cpuid_entries(self.table))
        except PyvmmError:
            self.table, self.entries = None, []

    def has(self, needs: _Needs) -> bool:
        return any(
            getattr(entry, needs.register) >> needs.cpuid_bit & 1
            for entry in self._leaf(needs.leaf)
            if entry.index == needs.subleaf
        )

    def _leaf(self, leaf: int) -> Iterator[CpuidEntry]:
        return (entry for entry in self.entries if entry.function == leaf)

    def lacks(self, value: int, all_needs: tuple[_Needs, ...]) -> str:
        for needs in all_needs:
            if value >> needs.bit & 1 and not self.has(needs):
                remedy = "" if self.entries else ": call set_cpuid2() first"
                return (
                    f"{needs.name} needs bit {needs.cpuid_bit} of {needs.register.upper()} of "
                    f"CPUID leaf {needs.leaf:#x}, which the vCPU does not have{remedy}"
                )
        return ""


def nested_state(state: VcpuState, request: Any, number: int) -> str:
    if number == errno.EINVAL and state.vm and not state.vm.ask(lib.KVM_CAP_NESTED_STATE):
        return "this KVM does not nest VMs (KVM_CAP_NESTED_STATE)"
    return ""


# ---- registers ----


def set_sregs(state: VcpuState, sregs: Any, number: int) -> str:
    if number != errno.EINVAL:
        return ""
    cpuid = _Cpuid(state.vcpu)
    held = state.vcpu.get_sregs()
    # What every KVM refuses comes first. Whether CPUID matters differs between kernels, but
    # what the vCPU has already was not refused.
    return (
        _sregs2(sregs)
        or _mode(sregs, cpuid)
        or _cr0(sregs.cr0)
        or _apic_base(sregs.apic_base)
        or _unknown_bits(sregs)
        or cpuid.lacks(sregs.cr4 & ~held.cr4, _CR4_NEEDS)
        or cpuid.lacks(sregs.efer & ~held.efer, _EFER_NEEDS)
    )


def _sregs2(sregs: Any) -> str:
    if ffi.typeof(sregs) is not ffi.typeof("struct kvm_sregs2 *"):
        return ""
    if unknown := sregs.flags & ~lib.KVM_SREGS2_FLAGS_PDPTRS_VALID:
        return f"flags {unknown:#x} are not known"
    is_pae = sregs.cr0 & _CR0_PG and sregs.cr4 & _CR4_PAE and not sregs.efer & _EFER_LMA
    if sregs.flags and not is_pae:
        return "KVM_SREGS2_FLAGS_PDPTRS_VALID is set outside of 32-bit PAE paging"
    return ""


def _mode(sregs: Any, cpuid: _Cpuid) -> str:
    if sregs.efer & _EFER_LME and sregs.cr0 & _CR0_PG:
        if not sregs.cr4 & _CR4_PAE:
            return "EFER.LME and CR0.PG are set without CR4.PAE"
        if not sregs.efer & _EFER_LMA:
            return "EFER.LME and CR0.PG are set without EFER.LMA"
        bits = physical_address_bits(cpuid.table) if cpuid.table is not None else 52
        if sregs.cr3 & ~((1 << bits) - 1):
            return f"CR3 {sregs.cr3:#x} is beyond the vCPU's {bits} bits of address"
        return ""
    if sregs.efer & _EFER_LMA:
        return "EFER.LMA is set without EFER.LME and CR0.PG"
    if sregs.cs.l:
        return "CS.L is set outside of long mode (EFER.LME and CR0.PG)"
    return ""


def _cr0(cr0: int) -> str:
    if cr0 >> 32:
        return f"CR0 {cr0:#x} has bits above 31"
    if cr0 & _CR0_NW and not cr0 & _CR0_CD:
        return "CR0.NW is set without CR0.CD"
    if cr0 & _CR0_PG and not cr0 & _CR0_PE:
        return "CR0.PG is set without CR0.PE"
    return ""


def _apic_base(base: int) -> str:
    if base & _APIC_X2APIC and not base & _APIC_ENABLE:
        return "apic_base has x2APIC (bit 10) without the APIC's enable (bit 11)"
    if base & _APIC_RESERVED:
        return f"apic_base {base:#x} has bits that are reserved ({base & _APIC_RESERVED:#x})"
    return ""


def _unknown_bits(sregs: Any) -> str:
    if sregs.cr4 & _CR4_UNKNOWN:
        return f"CR4 {sregs.cr4:#x} has bits that are reserved"
    return ""
