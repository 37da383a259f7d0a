"""csrc/memory.c with the backend in_place alone, on a KVM in Python.

The C files are compiled into a library of their own, in which ioctl(), fcntl(), fallocate(),
close() and nanosleep() are this module's: memslots, guest_memfds and their page states by the
kernel's rules, and the n-th call that fails.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c_program import CSRC, compiled

PAGE = 0x1000
PRIVATE, SHARED = 0x40000, 0xC0000
HOST = 0x7F0000000000
VM, FILE = 4200, 4201
SHARED_STATE, PRIVATE_STATE = 0, 1
STATES = (SHARED_STATE, PRIVATE_STATE)

SHIM = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "memory.h"

/* What was called, its numbers, and where error_offset goes: 0 or more is the result, or -errno. */
static int (*handler)(const char *, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t *);
static struct memory memory;

static int told(int result)
{
	errno = result < 0 ? -result : 0;
	return result < 0 ? -1 : result;
}

int fake_ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == KVM_SET_MEMORY_ATTRIBUTES2) {
		struct kvm_memory_attributes2 *of = argument;
		return told(handler("attributes", fd, of->offset, of->size, of->attributes,
					(uint64_t *)&of->error_offset));
	}
	if (request == KVM_CREATE_GUEST_MEMFD) {
		struct kvm_create_guest_memfd *file = argument;
		return told(handler("create", fd, file->size, file->flags, 0, NULL));
	}
	if (request == KVM_SET_USER_MEMORY_REGION2) {
		struct kvm_userspace_memory_region2 *slot = argument;
		uint64_t where[] = { slot->guest_memfd, slot->guest_memfd_offset };
		return told(handler("add", slot->slot, slot->guest_phys_addr, slot->memory_size,
					slot->userspace_addr, where));
	}
	if (request == KVM_SET_USER_MEMORY_REGION) {
		struct kvm_userspace_memory_region *slot = argument;
		return told(handler("delete", slot->slot, slot->memory_size, 0, 0, NULL));
	}
	abort();
}

int fake_close(int fd) { return told(handler("close", fd, 0, 0, 0, NULL)); }
int fake_fcntl(int fd, int command, ...)
{
	if (command == F_SETFD)
		return told(handler("close on exec", fd, 0, 0, 0, NULL));
	return told(handler("duplicate", fd, command, 0, 0, NULL));
}
int fake_fallocate(int fd, int mode, off_t offset, off_t size)
{
	return told(handler("punch", fd, offset, size, mode, NULL));
}
int fake_nanosleep(const struct timespec *pause, struct timespec *left)
{
	(void)left;
	return told(handler("sleep", pause->tv_sec, pause->tv_nsec, 0, 0, NULL));
}
int loop_kick_signal(void) { return 0; }

void set_handler(int (*new)(const char *, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t *))
{
	handler = new;
}

int begin(uint64_t private_gpa, uint64_t shared_gpa, uint64_t pages, uint32_t slots, int file,
		bool keep)
{
	const struct region wanted = {
		.private_gpa = private_gpa, .shared_gpa = shared_gpa, .pages = pages,
		.private_fd = file, .shared_fd = file, .slot_count = slots, .keep_contents = keep,
		.private_host = (void *)0x7E0000000000, .shared_host = (void *)0x7F0000000000,
	};
	memory_init(&memory, 4200, "in_place", POLICY_CONVERT);
	return memory_add_region(&memory, &wanted);
}

int convert(uint64_t gpa, uint64_t pages, uint32_t state)
{
	uint64_t converted;
	return memory_convert(&memory, gpa, pages, state, &converted);
}

void states(uint8_t *into) { memcpy(into, memory.regions[0].states, memory.regions[0].pages); }
uint64_t busy(void) { return memory.regions[0].busy; }
uint64_t busy_page(void) { return memory.regions[0].busy_page; }
void end(void) { memory_deinit(&memory); }
"""

HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    *[ctypes.c_uint64] * 4,
    ctypes.POINTER(ctypes.c_uint64),
)


def load_library(folder: Path) -> ctypes.CDLL:
    """The library, with a shim for what it calls."""
    faked = [
        f"-D{name}=fake_{name}" for name in ("ioctl", "close", "fcntl", "fallocate", "nanosleep")
    ]
    parts = ("memory", "backends/in_place", "slot_window", "page_range", "gate")
    files = [str(CSRC / f"{part}.c") for part in parts]
    options = ["-pthread", "-shared", "-fPIC", "-DBACKENDS(each)=each(in_place)"]
    target = compiled(folder / "in_place.so", SHIM, *options, *faked, *files)
    library = ctypes.CDLL(str(target))
    u64, u32 = ctypes.c_uint64, ctypes.c_uint32
    library.begin.argtypes = [u64, u64, u64, u32, ctypes.c_int, ctypes.c_bool]
    library.convert.argtypes = [u64, u64, u32]
    library.busy.restype = library.busy_page.restype = u64
    return library


@dataclass
class File:
    """A guest_memfd: a state for each page, and what it holds."""

    size: int
    states: bytearray
    contents: dict[int, str] = field(default_factory=dict)
    is_open: bool = True
    closes_on_exec: bool = False


class Kernel:
    """Memslots, files and states. ``fails(call, number)`` says with which errno a call fails."""

    def __init__(self, library: ctypes.CDLL, pages: int, views: int, slots: int) -> None:
        self.library, self.pages, self.views = library, pages, views
        self.files = {FILE: File(pages * PAGE, bytearray(pages))}
        self.slots: dict[int, tuple[int, int, File, int]] = {}
        self.slot_limit = slots
        self.calls: list[str] = []
        self.sleeps: list[int] = []
        self.fails: Callable[[str, int], int] = lambda call, number: 0
        self.busy: Callable[[int, int], int] = lambda first, end: -1
        self.complaints: list[str] = []
        self._next = itertools.count(FILE + 1)
        self._handler = HANDLER(self._call)
        library.set_handler(self._handler)

    def begin(self, *, keep: bool = False) -> int:
        shared = SHARED if self.views == 2 else PRIVATE
        return int(self.library.begin(PRIVATE, shared, self.pages, self.slot_limit, FILE, keep))

    def convert(self, first: int, count: int, state: int) -> int:
        return int(self.library.convert(PRIVATE + first * PAGE, count, state))

    def table(self) -> list[int]:
        """What C believes of each page."""
        states = ctypes.create_string_buffer(self.pages)
        self.library.states(states)
        return list(states.raw)

    # ---- the calls ----

    def _call(self, name: bytes, *numbers: Any) -> int:
        call = name.decode()
        try:
            if failure := self.fails(call, len(self.calls)):
                return -failure
            return int(getattr(self, "_" + call.replace(" ", "_"))(*numbers))
        except Exception as error:  # it would be lost in C
            self.complaints.append(f"{call}: {error!r}")
            return -errno.EIO
        finally:
            self.calls.append(call)

    def _attributes(self, fd: int, offset: int, size: int, attributes: int, failed: Any) -> int:
        file = self.files[fd]
        first, end = offset // PAGE, (offset + size) // PAGE
        if failed[0]:
            self.complaints.append("error_offset is not 0")
        if attributes not in (0, 8) or end > len(file.states):
            return -errno.EINVAL
        if attributes and (page := self.busy(first, end)) >= 0:
            failed[0] = page * PAGE
            return -errno.EAGAIN
        file.states[first:end] = bytes([attributes // 8] * (end - first))
        return 0

    def _create(self, vm: int, size: int, flags: int, *_: Any) -> int:
        assert vm == VM
        fd = next(self._next)
        self.files[fd] = File(size, bytearray([1] * (size // PAGE)))
        return fd

    def _add(self, slot: int, gpa: int, size: int, host: int, where: Any) -> int:
        file, offset = self.files[where[0]], where[1]
        if not 0 <= slot < self.slot_limit or slot in self.slots or offset + size > file.size:
            self.complaints.append(f"slot {slot} cannot be added")
            return -errno.EINVAL
        for begin, length, other, at in self.slots.values():
            is_taken = gpa < begin + length and begin < gpa + size
            if is_taken or (other is file and offset < at + length and at < offset + size):
                self.complaints.append(f"slot {slot} overlaps another")
                return -errno.EEXIST
        self.slots[slot] = gpa, size, file, offset
        return 0

    def _delete(self, slot: int, size: int, *_: Any) -> int:
        if size or slot not in self.slots:
            self.complaints.append(f"slot {slot} cannot be deleted")
            return -errno.EINVAL
        del self.slots[slot]
        return 0

    def _close(self, fd: int, *_: Any) -> int:
        file = self.files.pop(fd)
        file.is_open = False
        return 0

    def _close_on_exec(self, fd: int, *_: Any) -> int:
        self.files[fd].closes_on_exec = True
        return 0

    def _duplicate(self, fd: int, *_: Any) -> int:
        copy = next(self._next)
        self.files[copy] = File(0, bytearray())
        return copy

    def _punch(self, fd: int, offset: int, size: int, *_: Any) -> int:
        for page in range(offset // PAGE, (offset + size) // PAGE):
            self.files[fd].contents.pop(page, None)
        return 0

    def _sleep(self, seconds: int, nanoseconds: int, *_: Any) -> int:
        self.sleeps.append(seconds * 1_000_000_000 + nanoseconds)
        return 0

    # ---- what a guest sees ----

    def at(self, gpa: int) -> str:
        """What an access meets: a page of the file, a fault, or nothing at all."""
        for begin, length, file, offset in self.slots.values():
            if begin <= gpa < begin + length:
                if not file.is_open:
                    return "fault"
                is_of_region = file is self.files.get(FILE)
                return f"page {(gpa - begin + offset) // PAGE}" if is_of_region else "stray file"
        return "nothing"

    def wrong(self) -> Iterator[str]:
        """What is not as C's table of states says; first what the calls had to complain of."""
        yield from self.complaints
        table, of_file = self.table(), list(self.files[FILE].states)
        if table != of_file:
            yield f"the table says {table}, the file {of_file}"
        if left := [fd for fd in self.files if fd != FILE]:
            yield f"descriptors {left} are open"
        for page, state in enumerate(table):
            seen = [self.at(view + page * PAGE) for view in (SHARED, PRIVATE)]
            wanted = ["fault", "fault"]
            wanted[state] = f"page {page}"
            if self.views == 1:
                seen, wanted = seen[1:], [f"page {page}"]
            if seen != wanted:
                yield f"page {page}, state {state}: seen {seen}, wanted {wanted}"
