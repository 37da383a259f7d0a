"""KVM_GET_DIRTY_LOG: which pages of a memslot a guest wrote, through the bindings alone.

Prints:
    pages written: 2, 5
"""

from pyvmm import Kvm, assemble
from pyvmm.guest.boot import set_real_mode
from pyvmm.kvm.exits import HltExit
from pyvmm.kvm.mapping import Mapping
from pyvmm.native import lib

RAM, LOGGED, PAGE = 0x10000, 0x20000, 0x1000
PAGES = 8

GUEST = assemble("""
        .code16
        .globl _start
_start: movw $LOGGED >> 4, %ax
        movw %ax, %ds
        movb $1, 0x2000
        movb $1, 0x5000
        hlt
        .set LOGGED, 0x20000
""")

with Kvm() as kvm, kvm.create_vm() as vm, Mapping(RAM) as ram, Mapping(PAGES * PAGE) as logged:
    vm.set_identity_map_addr(0xFFFB_C000)
    vm.set_tss_addr(0xFFFB_D000)
    vm.set_user_memory_region(0, 0, RAM, ram.address)
    vm.set_user_memory_region(1, LOGGED, PAGES * PAGE, logged.address, lib.KVM_MEM_LOG_DIRTY_PAGES)
    for segment in GUEST.segments:
        ram.view[segment.gpa : segment.gpa + len(segment.data)] = segment.data
    with vm.create_vcpu(0) as vcpu:
        set_real_mode(vcpu, GUEST.entry)
        vcpu.run()
        if not isinstance(vcpu.exit(), HltExit):
            raise SystemExit(f"the guest did not reach its HLT: {vcpu.exit()}")
        written = list(vm.get_dirty_log(1, PAGES))
print("pages written:", ", ".join(map(str, written)))
