"""Wrong behaviour of KVM that upstream has fixed, and how a case says that it saw it.

A kernel without the fix is no news: its result is ``known``, with the commit that mends it. What
the kernel does tells that, never its version, so a kernel to which the fix was backported passes,
and one that has lost it again does not. A case says ``known`` only when it saw just what the bug
does; everything else that is wrong is a failure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownBug:
    """A bug by its fix: the commit (12 digits), its title, and the first release that has it.

    A bug that nobody has fixed yet has ``commit`` "", what is wrong as its title, and the last
    release that was looked at.
    """

    commit: str
    title: str
    release: str

    def __str__(self) -> str:
        if not self.commit:
            return f'not fixed up to Linux {self.release} ("{self.title}")'
        return f'fixed by {self.commit} ("{self.title}", Linux {self.release})'


class Known(Exception):
    """The kernel did what it does without a fix.

    ``str()``, what was seen, is the same whenever the same thing is; ``detail`` may differ.
    """

    def __init__(self, bug: KnownBug, seen: str, detail: str = "") -> None:
        super().__init__(seen)
        self.bug = bug
        self.detail = detail


PRE_FAULT_OF_A_DELETED_SLOT = KnownBug(
    "3ccbf6f47098",
    "KVM: x86/mmu: Return -EAGAIN if userspace deletes/moves memslot during prefault",
    "6.18",
)
PRE_FAULT_WITH_AN_OBSOLETE_ROOT = KnownBug(
    "20a6cff3b283",
    "KVM: x86/mmu: Check and free obsolete roots in kvm_mmu_reload()",
    "6.15",
)
PRE_FAULT_WITHOUT_A_SLOT = KnownBug(
    "",
    "pre-faulting repeats a fault for ever whose root is obsolete and whose slot has gone",
    "7.3",
)
MMIO_THEN_PRIVATE = KnownBug(
    "",
    "a fault on a stale MMIO entry of the page tables is never a private one",
    "7.3",
)
HYPERCALL_WITH_A_STALE_ANSWER = KnownBug(
    "9a1dfeff4414",
    "KVM: x86: clear vcpu->run->hypercall.ret before exiting for KVM_EXIT_HYPERCALL",
    "6.14",
)
HYPERCALL_LOST_BY_ITS_UPPER_HALF = KnownBug(
    "d9eb86a6f43d", "KVM: x86: Always complete hypercall via function callback", "6.14"
)
MMIO_WHILE_AN_EXCEPTION_IS_DELIVERED = KnownBug(
    "7bd7ff99110a",
    "KVM: SVM: Handle event vectoring error in check_emulate_instruction()",
    "6.14",
)
BOUND_RANGE_IS_EINVAL = KnownBug(
    "7ea987a90585", "KVM: guest_memfd: Return -EEXIST for overlapping bindings", "7.2"
)
EXITS_DISABLED_AFTER_A_VCPU = KnownBug(
    "04cd8f8628d8", "KVM: x86: Disallow KVM_CAP_X86_DISABLE_EXITS after vCPU creation", "6.14"
)
EXITS_DISABLED_THAT_ARE_NOT_OFFERED = KnownBug(
    "c829ccd4d9dc",
    "KVM: x86: Reject disabling of MWAIT/HLT interception when not allowed",
    "6.14",
)
TSC_FREQUENCY_AFTER_A_VCPU = KnownBug(
    "dcbe5a466c12",
    "KVM: x86: Reject KVM_SET_TSC_KHZ VM ioctl when vCPUs have been created",
    "6.17",
)
EVENTFD_OF_TWO_VMS = KnownBug(
    "2cdd64cbf990",
    "KVM: Disallow binding multiple irqfds to an eventfd with a priority waiter",
    "6.17",
)
DIRTY_RING_RESET_WITHOUT_END = KnownBug(
    "49005a2a3d2a", "KVM: Bail from the dirty ring reset flow if a signal is pending", "6.17"
)
DIRTY_RING_RESET_KEEPS_THE_CPU = KnownBug(
    "1333c35c4eea", "KVM: Conditionally reschedule when resetting the dirty ring", "6.17"
)


def pre_fault_deadlock(*, was_refused: bool) -> Known:
    """Pre-faulting and the deletion of its slot wait for each other, until a signal comes.

    ``was_refused``: it got EAGAIN for a slot that was being deleted, so this kernel does not wait
    there. What is left is a call that began before the deletion had zapped all page tables, and
    looks for the slot after it has gone: kvm_tdp_page_prefault() does not load a new root.
    """
    if was_refused:
        return Known(
            PRE_FAULT_WITHOUT_A_SLOT,
            "KVM_PRE_FAULT_MEMORY of a slot that has just been deleted spins until a signal comes, "
            "and the deletion waits for it",
        )
    return Known(
        PRE_FAULT_OF_A_DELETED_SLOT,
        "KVM_PRE_FAULT_MEMORY of a slot that is being deleted spins until a signal comes, and the "
        "deletion waits for it",
    )
