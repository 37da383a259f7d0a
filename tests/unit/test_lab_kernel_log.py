"""Trouble in kernel logs is found, with its lines; ordinary logs have none."""

from __future__ import annotations

import pytest

from pyvmm.lab.kernel_log import Splat, by_kind, find_splats, running_at
from pyvmm.lab.leaks import parse_leaks

_BOOT = """\
[    0.000000] Linux version 6.12.117-pyvmm (pyvmm@lab) (gcc) #1 SMP
[    0.000000] Command line: console=ttyS0 panic=-1 oops=panic watchdog_thresh=30
[    0.010000] Warning: unrelated text that only looks bad
[    0.390000] kvm_amd: Nested Paging enabled
[    1.231176] Freeing unused kernel image (initmem) memory: 948K
[    1.993357] tsc: Refined TSC clocksource calibration: 2599.972 MHz
[    2.071915] pyvmm: starts: sh -c echo WARNING: BUG: Oops:
[    2.165683] pyvmm: ends with status 0: true
[    2.300000] kvm: user requested TSC rate below hardware speed
[    2.400000] Memory failure: 0x1234: recovery action for dirty LRU page: Recovered
"""

_WARNING = """\
[   26.113172] ------------[ cut here ]------------
[   26.113374] WARNING: CPU: 0 PID: 60 at drivers/misc/lkdtm/bugs.c:112 lkdtm_WARNING+0xa/0x10
[   26.114033] CPU: 0 UID: 0 PID: 60 Comm: sh Not tainted 6.12.117-pyvmm #1
[   26.114290] RIP: 0010:lkdtm_WARNING+0xa/0x10
[   26.114393] Code: 41 5d 5d c3 48 c7 c7 18 16 93 81
[   26.114670] RSP: 0018:ffffc90000153dd8 EFLAGS: 00000202
[   26.115965] Call Trace:
[   26.116321]  <TASK>
[   26.116414]  ? lkdtm_do_action+0x14/0x20
[   26.117754]  </TASK>
[   26.123538] ---[ end trace 0000000000000000 ]---"""

# Linux 7.x words the first line differently.
_NEW_WARNING = """\
[    5.000000] ------------[ cut here ]------------
[    5.000001] WARNING: drivers/misc/lkdtm/bugs.c:112 at lkdtm_WARNING+0xa/0x10, CPU#0: sh/60
[    5.000002] CPU: 0 UID: 0 PID: 60 Comm: sh Not tainted 7.3.4-pyvmm #1
[    5.000003] ---[ end trace 0000000000000000 ]---"""

_OOPS = """\
[   24.736089] BUG: kernel NULL pointer dereference, address: 0000000000000000
[   24.736342] #PF: supervisor write access in kernel mode
[   24.736396] #PF: error_code(0x0002) - not-present page
[   24.736476] PGD 0 P4D 0
[   24.737286] Oops: Oops: 0002 [#1] SMP
[   24.737490] CPU: 1 UID: 0 PID: 58 Comm: sh Not tainted 6.12.117-pyvmm #1
[   24.739444]  ? lkdtm_do_action+0x14/0x20
[   24.741007] CR2: 0000000000000000
[   24.741182] ---[ end trace 0000000000000000 ]---"""

_PANIC = """\
[   27.075888] Kernel panic - not syncing: dumptest
[   27.076205] CPU: 1 UID: 0 PID: 60 Comm: sh Not tainted 6.12.117-pyvmm #1
[   27.076457] Call Trace:
[   27.088626] Kernel Offset: disabled"""

_BUG = """\
[    9.000000] ------------[ cut here ]------------
[    9.000001] kernel BUG at drivers/misc/lkdtm/bugs.c:105!
[    9.000002] Oops: invalid opcode: 0000 [#1] SMP
[    9.000003] RIP: 0010:lkdtm_BUG+0x8/0x10
[    9.000004] ---[ end trace 0000000000000000 ]---"""

_HUNG_TASK = """\
[   99.000000] INFO: task sh:60 blocked for more than 60 seconds.
[   99.000001]       Not tainted 6.12.117-pyvmm #1
[   99.000002] "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
[   99.000003] task:sh              state:D stack:0     pid:60    tgid:60    ppid:57
[   99.000004] Call Trace:
[   99.000005]  <TASK>
[   99.000006]  __schedule+0x2e3/0x300"""

_SOFT_LOCKUP = """\
[   70.000000] watchdog: BUG: soft lockup - CPU#0 stuck for 67s! [sh:60]
[   70.000001] CPU: 0 UID: 0 PID: 60 Comm: sh Not tainted 6.12.117-pyvmm #1
[   70.000002] RIP: 0010:lkdtm_SOFTLOCKUP+0xa/0x10"""

_STALL = """\
[   80.000000] rcu: INFO: rcu_sched self-detected stall on CPU
[   80.000001] rcu: \t0-....: (2099 ticks this GP) idle=1b5c/1/0x4000000000000000 softirq=1
[   80.000002] rcu: \t(t=2100 jiffies g=-1087 q=2 ncpus=2)"""

_GENERAL_PROTECTION = """\
[    3.000000] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]
[    3.000001] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12.117-pyvmm #1"""

_SANITIZER = """\
[    4.000000] ==================================================================
[    4.000001] BUG: KASAN: slab-out-of-bounds in kvm_gmem_fault+0x1/0x2
[    4.000002] Read of size 8 at addr ffff888000d93000 by task sh/60"""

_LOCKDEP = """\
[    4.000000] ============================================
[    4.000001] WARNING: possible recursive locking detected
[    4.000002] 6.12.117-pyvmm #1 Not tainted"""


# SLUB's own checks; there is no colon behind BUG.
_SLAB = """\
[    4.000000] =============================================================================
[    4.000001] BUG kmalloc-96 (Not tainted): Poison overwritten
[    4.000002] -----------------------------------------------------------------------------
[    4.000003] 0xffff888000d93000-0xffff888000d93003 @offset=0. First byte 0x0 instead of 0x6b
[    4.000004] Allocated in kvm_vm_ioctl+0x1/0x2 age=3 cpu=0 pid=60"""

_OBJECTS_LEFT = """\
[    4.000001] BUG kvm_vcpu (Tainted: G    B   W): Objects remaining on __kmem_cache_shutdown()
[    4.000002] -----------------------------------------------------------------------------"""

_NO_KEY = """\
[    4.000000] INFO: trying to register non-static key.
[    4.000001] The code is fine but needs lockdep annotation, or maybe
[    4.000002] you didn't initialize this object before use?
[    4.000003] turning off the locking correctness validator."""

_HARD_LOCKUP = """\
[   70.000000] watchdog: Watchdog detected hard LOCKUP on cpu 1
[   70.000001] Modules linked in:"""

_NEW_HARD_LOCKUP = """\
[   70.000000] watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1
[   70.000001] Modules linked in:"""

_OLD_SOFT_LOCKUP = """\
[   70.000000] NMI watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [sh:60]
[   70.000001] Modules linked in:"""

_HUNG_IN_IO = """\
[   99.000000] INFO: task sh:60 blocked in I/O wait for more than 60 seconds.
[   99.000001]       Not tainted 7.3.4-pyvmm #1"""

_OLD_DIVISION = """\
[    3.000000] divide error: 0000 [#1] PREEMPT SMP
[    3.000001] CPU: 0 PID: 1 Comm: init Not tainted 6.6.1 #1
[    3.000002] ---[ end trace 0000000000000000 ]---"""

_OLD_BUG = """\
[    9.000000] ------------[ cut here ]------------
[    9.000001] kernel BUG at arch/x86/kvm/mmu/mmu.c:105!
[    9.000002] invalid opcode: 0000 [#1] SMP
[    9.000003] ---[ end trace 0000000000000000 ]---"""

_DOUBLE_FAULT = """\
[    9.000000] traps: PANIC: double fault, error_code: 0x0
[    9.000001] Oops: double fault: 0000 [#1] SMP
[    9.000002] ---[ end trace 0000000000000000 ]---"""

# What a warning says is above its first line in older kernels, and below it in newer ones.
_REFERENCES = """\
[    5.000000] ------------[ cut here ]------------
[    5.000001] refcount_t: underflow; use-after-free.
[    5.000002] WARNING: CPU: 0 PID: 60 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
[    5.000003] Modules linked in:
[    5.000004] ---[ end trace 0000000000000000 ]---"""

_NEW_REFERENCES = """\
[    5.000000] ------------[ cut here ]------------
[    5.000001] WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#0: sh/60
[    5.000002] refcount_t: underflow; use-after-free.
[    5.000003] CPU: 0 UID: 0 PID: 60 Comm: sh Not tainted 7.3.4-pyvmm #1
[    5.000004] ---[ end trace 0000000000000000 ]---"""

_RCU = """\
[    4.000000] =============================
[    4.000001] WARNING: suspicious RCU usage
[    4.000002] 6.12.117-pyvmm #1 Not tainted
[    4.000003] -----------------------------
[    4.000004] arch/x86/kvm/mmu/mmu.c:77 suspicious rcu_dereference_check() usage!
[    4.000005]
[    4.000006] other info that might help us debug this:"""


def test_an_ordinary_log_has_none() -> None:
    assert find_splats(_BOOT.splitlines()) == ()


@pytest.mark.parametrize(
    ("splat", "title"),
    [
        (_WARNING, "WARNING: CPU: 0 PID: 60 at drivers/misc/lkdtm/bugs.c:112"),
        (_NEW_WARNING, "WARNING: drivers/misc/lkdtm/bugs.c:112 at lkdtm_WARNING"),
        (_OOPS, "BUG: kernel NULL pointer dereference"),
        (_PANIC, "Kernel panic - not syncing: dumptest"),
        (_BUG, "kernel BUG at drivers/misc/lkdtm/bugs.c:105!"),
        (_HUNG_TASK, "INFO: task sh:60 blocked for more than 60 seconds."),
        (_SOFT_LOCKUP, "watchdog: BUG: soft lockup - CPU#0 stuck"),
        (_STALL, "rcu: INFO: rcu_sched self-detected stall on CPU"),
        (_GENERAL_PROTECTION, "Oops: general protection fault"),
        (_SANITIZER, "BUG: KASAN: slab-out-of-bounds"),
        (_LOCKDEP, "WARNING: possible recursive locking detected"),
        (_SLAB, "BUG kmalloc-96 (Not tainted): Poison overwritten"),
        (_OBJECTS_LEFT, "BUG kvm_vcpu (Tainted: G    B   W): Objects remaining"),
        (_NO_KEY, "INFO: trying to register non-static key."),
        (_HARD_LOCKUP, "watchdog: Watchdog detected hard LOCKUP on cpu 1"),
        (_NEW_HARD_LOCKUP, "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1"),
        (_OLD_SOFT_LOCKUP, "NMI watchdog: BUG: soft lockup - CPU#1"),
        (_HUNG_IN_IO, "INFO: task sh:60 blocked in I/O wait for more than 60 seconds."),
        (_OLD_DIVISION, "divide error: 0000 [#1]"),
        (_OLD_BUG, "kernel BUG at arch/x86/kvm/mmu/mmu.c:105!"),
        (_DOUBLE_FAULT, "traps: PANIC: double fault"),
        (_REFERENCES, "WARNING: CPU: 0 PID: 60 at lib/refcount.c:28 refcount_warn_saturate"),
        (_NEW_REFERENCES, "WARNING: lib/refcount.c:28 at refcount_warn_saturate"),
        (_RCU, "WARNING: suspicious RCU usage: arch/x86/kvm/mmu/mmu.c:77 suspicious rcu_der"),
    ],
)
def test_each_kind_is_found_with_its_lines(splat: str, title: str) -> None:
    (found,) = find_splats((_BOOT + splat).splitlines())
    assert found.title.startswith(title)
    wanted = [line for line in splat.splitlines() if not line.endswith("=" * 20)]
    assert list(found.lines) == wanted


@pytest.mark.parametrize("splat", [_WARNING, _NEW_WARNING, _OOPS, _BUG])
def test_all_lines_of_a_block_belong_to_it(splat: str) -> None:
    (found,) = find_splats((_BOOT + splat + "\n" + _BOOT).splitlines())
    assert list(found.lines) == splat.splitlines()


def test_what_has_no_end_mark_does_not_take_the_whole_log() -> None:
    (found,) = find_splats((_HUNG_TASK + "\n" + _BOOT * 20).splitlines())
    assert len(found.lines) < 100


def test_several_in_one_log_are_told_apart() -> None:
    log = "\n".join([_WARNING, _BOOT.rstrip(), _WARNING, _OOPS, _PANIC])
    titles = [splat.title.split(":")[0] for splat in find_splats(log.splitlines())]
    assert titles == ["WARNING", "WARNING", "BUG", "Kernel panic - not syncing"]


def test_a_log_with_caller_marks_and_levels() -> None:
    (found,) = find_splats(["<4>[    1.000000][   T60] WARNING: CPU: 0 PID: 60 at kernel/x.c:1"])
    assert found.title.startswith("WARNING: CPU: 0")


def test_a_cut_in_the_middle_is_still_reported() -> None:
    (found,) = find_splats(_WARNING.splitlines()[:2])
    assert found.title.startswith("WARNING: CPU: 0")


@pytest.mark.parametrize("warning", [_REFERENCES, _NEW_REFERENCES])
def test_a_warning_is_told_with_what_it_says(warning: str) -> None:
    """All that is wrong with a reference count is warned of in one place."""
    saturated = warning.replace("underflow; use-after-free.", "saturated; leaking memory.")
    one, other = find_splats(f"{warning}\n{saturated}".splitlines())
    assert one.title.endswith(": refcount_t: underflow; use-after-free.")
    assert other.title.endswith(": refcount_t: saturated; leaking memory.")
    assert one.kind != other.kind


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "WARNING: virt/kvm/x.c:1 at kvm_f+0xa/0x10, CPU#0: sh/60",
            "WARNING: virt/kvm/x.c:3 at kvm_f+0xb/0x20, CPU#1: kworker/u8:1/7",
        ),
        (
            "WARNING: lib/x.c:1 at f+0xa/0x10, CPU#0: sh/60: it is gone",
            "WARNING: lib/x.c:1 at f+0xa/0x10, CPU#1: kworker/0:1/7: it is gone",
        ),
        (
            "BUG: using smp_processor_id() in preemptible [00000000] code: sh/60",
            "BUG: using smp_processor_id() in preemptible [00000001] code: kworker/0:1/9",
        ),
        (
            "watchdog: BUG: soft lockup - CPU#0 stuck for 67s! [sh:60]",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/0:1:60]",
        ),
    ],
)
def test_the_same_in_two_processes_is_one_kind(one: str, other: str) -> None:
    """In another process, what is there without a patch would be new with it."""
    assert Splat(one, ()).kind == Splat(other, ()).kind


def test_warnings_of_two_functions_are_two_kinds() -> None:
    one = "WARNING: virt/kvm/x.c:1 at kvm_f+0xa/0x10, CPU#0: sh/60"
    assert Splat(one, ()).kind == "WARNING: virt/kvm/x.c:* at kvm_f*"
    assert Splat(one.replace("kvm_f", "kvm_g"), ()).kind != Splat(one, ()).kind


def test_uses_of_rcu_in_two_places_are_two_kinds() -> None:
    log = f"{_RCU}\n{_RCU}\n{_RCU.replace('mmu.c', 'tdp_mmu.c')}".splitlines()
    (one, twice), (other, once) = by_kind(find_splats(log))
    assert ": arch/x86/kvm/mmu/mmu.c:77 " in one.title and twice == 2
    assert ": arch/x86/kvm/mmu/tdp_mmu.c:77 " in other.title and once == 1


@pytest.mark.parametrize("before", [_SANITIZER, _HUNG_TASK, _RCU, _SLAB, _WARNING[:120]])
def test_a_death_after_a_report_without_an_end_is_trouble_of_its_own(before: str) -> None:
    first, death = find_splats(f"{before}\n{_GENERAL_PROTECTION}".splitlines())
    assert death.title.startswith("Oops: general protection fault")
    assert not any("general protection" in line for line in first.lines)


def test_a_second_death_is_none_of_the_first() -> None:
    log = [*_BUG.splitlines()[:-1], *_GENERAL_PROTECTION.splitlines()]
    first, second = find_splats(log)
    assert "kernel BUG" in first.title and "general protection" in second.title


def test_two_cpus_at_once() -> None:
    """One CPU's lines between the cut mark of another and what it has to say."""
    one, other = _WARNING.splitlines(), _NEW_WARNING.splitlines()
    titles = [splat.title for splat in find_splats([one[0], other[0], one[1], other[1], *one[2:]])]
    assert [title[:28] for title in titles] == [one[1][15:43], other[1][15:43]]
    between = [one[0], "[    1.000000] kvm: SMP vm created", _BUG.splitlines()[1]]
    (found,) = find_splats(between)
    assert found.title.startswith("kernel BUG at ")


def test_a_log_that_ends_with_the_cut_mark() -> None:
    (found,) = find_splats(_WARNING.splitlines()[:1])
    assert found.title == "------------[ cut here ]------------"


def test_a_splat_has_the_cases_that_ran() -> None:
    """They say in the kernel's log when they begin and end; those lines are no part of a splat."""

    def asleep(at: int) -> list[str]:
        return [
            f"[    1.{at:06}] BUG: sleeping function called from invalid context at mm/x.c:{at}",
            f"[    1.{at:06}] in_atomic(): 1, irqs_disabled(): 0, non_block: 0, pid: {at}",
        ]

    log = [
        *asleep(1),
        "[    1.000002] pyvmm: begins: A1.one[pages=1]",
        "[    1.000003] pyvmm: begins: A2.two",
        "[    1.000004] WARNING: possible circular locking dependency detected",
        "[    1.000005] pyvmm: ended: A1.one[pages=1]",
        "[    1.000006] but task is already holding lock:",
        *asleep(7),
        "[    1.000008] pyvmm: ended: A2.two",
        "[    1.000009] pyvmm: begins: A3.three",
        *asleep(10),
    ]
    splats = find_splats(log)
    assert [splat.cases for splat in splats] == [
        (),
        ("A1.one[pages=1]", "A2.two"),
        ("A2.two",),
        ("A3.three",),
    ]
    assert len(splats[1].lines) == 2
    kinds = [(splat.title.split()[0], splat.cases, times) for splat, times in by_kind(splats)]
    assert kinds == [
        ("BUG:", ("A2.two", "A3.three"), 3),
        ("WARNING:", ("A1.one[pages=1]", "A2.two"), 1),
    ]


_LEAKS = """\
unreferenced object 0xffff888101d20000 (size 192):
  comm "python3", pid 77, jiffies 4294893546
  hex dump (first 16 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 0):
    kmemleak_alloc+0x25/0x30
    __kmalloc_cache_noprof+0x1c5/0x2a0
    kvm_gmem_create+0x8b/0x130
    kvm_vm_ioctl+0x5d0/0xb70
unreferenced object 0xffff888101d30000 (size 8):
  comm "swapper/0", pid 1, jiffies 4294892297 (age 12.340s)
  backtrace:
    [<ffffffff8123>] kmalloc_trace+0x1c5/0x2a0
    [<ffffffff8124>] start_kernel+0x8b/0x130
"""


def test_what_kmemleak_found() -> None:
    (first, at), (second, early) = parse_leaks(_LEAKS, hz=250)
    assert first.title == "kmemleak: an object of kvm_gmem_create() is left, 192 bytes"
    assert second.title == "kmemleak: an object of start_kernel() is left, 8 bytes"
    assert (round(at, 3), round(early, 3)) == (5.0, 0.004)
    log = [
        "[    4.000000] pyvmm: begins: A1.one",
        "[    4.500000] pyvmm: begins: A2.two",
        "[    4.900000] pyvmm: ended: A1.one",
        "[    6.000000] pyvmm: begins: A3.three",
    ]
    assert running_at(log, at) == ("A2.two",) and running_at(log, early) == ()
    assert running_at(log, at, 0.2) == ("A1.one", "A2.two")
    assert running_at(log, 3.9, 0.05) == () and running_at(log, 3.9, 0.1) == ("A1.one",)


def test_what_kmemleak_found_of_each_cpu() -> None:
    """Newer kernels say what kind of an object it is; who allocates for others is not to blame."""
    report = """\
unreferenced object (percpu) 0x607fe4c0 (size 64):
  comm "python3", pid 77, jiffies 4294893546
  backtrace (crc 0):
    pcpu_alloc_noprof+0x25/0x30
    kvm_init_irqfds+0x1c5/0x2a0
unreferenced object 0xffff888101d20000 (size 8):
  comm "python3", pid 77, jiffies 4294893546
  backtrace (crc 0):
    __kmalloc_node_track_caller_noprof+0x25/0x30
    kmemdup_noprof+0x25/0x30
    vmemdup_user+0x25/0x30
    kvm_vcpu_ioctl+0x1c5/0x2a0
"""
    titles = [splat.title for splat, _ in parse_leaks(report, hz=250)]
    assert titles == [
        "kmemleak: an object of kvm_init_irqfds() is left, 64 bytes",
        "kmemleak: an object of kvm_vcpu_ioctl() is left, 8 bytes",
    ]
