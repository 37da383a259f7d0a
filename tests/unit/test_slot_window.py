"""The slot window alone, on a memslot table of its own in place of KVM's.

csrc/slot_window.c is compiled into a library of its own whose ioctl() is a Python function with
KVM's rules: slots do not overlap, keep their size, and are deleted before they are changed.
"""

from __future__ import annotations

import ctypes
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from c_program import compiled
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

PAGE = 0x1000
GPA, HOST = 0x40000, 0x7F0000000000
SLOT_BASE = 5

SHIM = """
#include <stdarg.h>
#include <errno.h>
#include <stdlib.h>
#include "kvm_compat.h"
static int (*handler)(uint32_t, uint64_t, uint64_t, uint64_t);
void set_handler(int (*new)(uint32_t, uint64_t, uint64_t, uint64_t)) { handler = new; }
int fake_ioctl(int fd, unsigned long request, ...)
{
	struct kvm_userspace_memory_region *region;
	va_list arguments;
	int error;

	va_start(arguments, request);
	region = va_arg(arguments, struct kvm_userspace_memory_region *);
	va_end(arguments);
	if (fd != 42 || request != KVM_SET_USER_MEMORY_REGION)
		abort();
	error = handler(region->slot, region->guest_phys_addr, region->memory_size,
			region->userspace_addr);
	errno = error;
	return error ? -1 : 0;
}
#include <sys/ioctl.h>
#define ioctl fake_ioctl
#include "slot_window.c"
"""


class Window(ctypes.Structure):
    """``struct slot_window``; its size is compared with the compiler's."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("vm_fd", ctypes.c_int),
        ("gpa", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("host", ctypes.c_void_p),
        ("guest_memfd", ctypes.c_int),
        ("slot_base", ctypes.c_uint32),
        ("slot_count", ctypes.c_uint32),
        ("slot_of_page", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("free_slots", ctypes.c_void_p),
        ("free_count", ctypes.c_uint32),
    ]


HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("slot_window")
    text = SHIM + "size_t window_size = sizeof(struct slot_window);\n"
    target = compiled(folder / "slot_window.so", text, "-shared", "-fPIC")
    loaded = ctypes.CDLL(str(target))
    for name in ("slot_window_fill", "slot_window_clear"):
        getattr(loaded, name).argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
    loaded.slot_window_init.argtypes = loaded.slot_window_deinit.argtypes = [ctypes.c_void_p]
    size = ctypes.c_size_t.in_dll(loaded, "window_size").value
    assert size == ctypes.sizeof(Window), "csrc/slot_window.h changed: change Window too"
    yield loaded


class MemslotTable:
    """What KVM keeps of slots, with its rules."""

    def __init__(self, slot_count: int) -> None:
        self.slots: dict[int, tuple[int, int]] = {}
        self.slot_count = slot_count
        self.calls = 0
        self.complaints: list[str] = []

    def set_slot(self, slot: int, gpa: int, size: int, address: int) -> int:
        self.calls += 1
        if not SLOT_BASE <= slot < SLOT_BASE + self.slot_count:
            self.complaints.append(f"slot {slot} is somebody else's")
            return errno.EINVAL
        if size == 0:
            if slot not in self.slots:
                self.complaints.append(f"slot {slot} is deleted twice")
                return errno.EINVAL
            del self.slots[slot]
            return 0
        if slot in self.slots:
            self.complaints.append(f"slot {slot} is in use")
            return errno.EINVAL
        if gpa % PAGE or size % PAGE or address - HOST != gpa - GPA:
            self.complaints.append(f"slot {slot}: GPA {gpa:#x} has the wrong memory behind it")
            return errno.EINVAL
        for other, (begin, length) in self.slots.items():
            if gpa < begin + length and begin < gpa + size:
                self.complaints.append(f"slot {slot} overlaps slot {other}")
                return errno.EEXIST
        self.slots[slot] = (gpa, size)
        return 0

    def present(self) -> set[int]:
        return {
            page
            for gpa, size in self.slots.values()
            for page in range((gpa - GPA) // PAGE, (gpa - GPA + size) // PAGE)
        }


def run_count(pages: set[int]) -> int:
    return sum(page - 1 not in pages for page in pages)


@pytest.mark.parametrize(("pages", "slot_count"), [(12, 12), (12, 7), (12, 3), (12, 1), (40, 5)])
def test_slot_window_against_a_set_of_pages(
    library: ctypes.CDLL, pages: int, slot_count: int
) -> None:
    ranges = st.tuples(st.integers(0, pages - 1), st.integers(1, pages)).map(
        lambda pair: (pair[0], min(pair[1], pages - pair[0]))
    )

    class SlotWindow(RuleBasedStateMachine):
        window: Window | None = None

        @initialize()
        def start(self) -> None:
            self.table = MemslotTable(slot_count)
            self.handler = HANDLER(self.table.set_slot)
            library.set_handler(self.handler)
            self.window = Window(
                vm_fd=42,
                gpa=GPA,
                pages=pages,
                host=HOST,
                guest_memfd=-1,
                slot_base=SLOT_BASE,
                slot_count=slot_count,
            )
            assert library.slot_window_init(ctypes.byref(self.window)) == 0
            self.model: set[int] = set()

        def change(self, call: Any, range_: tuple[int, int], wanted: set[int]) -> None:
            before = set(self.model)
            assert self.window is not None
            result = call(ctypes.byref(self.window), *range_)
            if result == 0:
                self.model = wanted
                return
            # Only what needs more ranges than there are slots may fail, and it changes nothing.
            assert result == -errno.ENOSPC
            assert run_count(wanted) > slot_count
            self.model = before

        @rule(range_=ranges)
        def fill(self, range_: tuple[int, int]) -> None:
            first, count = range_
            wanted = self.model | set(range(first, first + count))
            self.change(library.slot_window_fill, range_, wanted)

        @rule(range_=ranges)
        def clear(self, range_: tuple[int, int]) -> None:
            first, count = range_
            wanted = self.model - set(range(first, first + count))
            self.change(library.slot_window_clear, range_, wanted)

        @precondition(lambda self: self.window is not None)
        @invariant()
        def agrees(self) -> None:
            assert self.table.complaints == []
            assert self.table.present() == self.model

        def teardown(self) -> None:
            if self.window is not None:
                library.slot_window_deinit(ctypes.byref(self.window))

    test = SlotWindow.TestCase
    test.settings = settings(max_examples=60, stateful_step_count=25)
    test().runTest()


# While a slot without memory is made, another thread forks. The child's exit status says whether
# it has the file, which the slot would have for as long as the child lives.
FORKING = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "kvm_compat.h"

static pthread_t forker;
static sem_t has_forked;
static int file, status = -1;

static void *fork_once(void *argument)
{
	const pid_t child = fork();

	if (child == 0)
		_exit(fcntl(file, F_GETFD) >= 0);
	waitpid(child, &status, 0);
	sem_post(&has_forked);
	return argument;
}

int fake_ioctl(int fd, unsigned long request, ...)
{
	struct timespec soon;

	if (request == KVM_CREATE_GUEST_MEMFD)
		return file = memfd_create("nothing", 0);
	/* The fork has its chance, and need not take it: it may wait for us. */
	pthread_create(&forker, NULL, fork_once, NULL);
	clock_gettime(CLOCK_REALTIME, &soon);
	soon.tv_sec++;
	sem_timedwait(&has_forked, &soon);
	return fd == 42 ? 0 : -1;
}
#include <sys/ioctl.h>
#define ioctl fake_ioctl
#include "slot_window.c"

int main(void)
{
	struct slot_window window = {
		.vm_fd = 42, .pages = 1, .guest_memfd = SLOT_CLOSED_FILE, .slot_count = 1,
	};

	sem_init(&has_forked, 0, 0);
	if (slot_window_init(&window) || slot_window_fill(&window, 0, 1))
		return 2;
	pthread_join(forker, NULL);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 3;
}
"""


def test_a_fork_does_not_take_the_file_of_a_slot_without_memory(tmp_path: Path) -> None:
    target = compiled(tmp_path / "forking", FORKING, "-pthread")
    assert subprocess.run([target], timeout=60, check=False).returncode == 0
