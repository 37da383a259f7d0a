"""The floor of a conversion where the kernel refuses a call: csrc/bench/conversions.c alone."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from c_program import CSRC, compiled

# Converts once, by two calls. What refuses them, and how often: KVM_SET_MEMORY_ATTRIBUTES2, and
# then the slot of a file that is closed. Prints the result, and how often the ioctls were called.
SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static int attributes_error, attributes_times, slot_error, asked, added, closed;

static int refused(int error)
{
	errno = error;
	return error ? -1 : 0;
}

static int fake_close(int fd)
{
	closed += fd == 7;
	errno = ENXIO; /* as close() may leave it */
	return 0;
}

static int fake_nanosleep(const struct timespec *pause, struct timespec *left)
{
	(void)left;
	return pause->tv_sec || pause->tv_nsec > 1000000 ? abort(), 0 : 0;
}

static int fake_ioctl(int fd, unsigned long request, ...);
#define ioctl fake_ioctl
#define close fake_close
#define nanosleep fake_nanosleep
#include "bench/conversions.c"

static int fake_ioctl(int fd, unsigned long request, ...)
{
	(void)fd;
	if (request == KVM_SET_MEMORY_ATTRIBUTES2)
		return refused(asked++ < attributes_times ? attributes_error : 0);
	if (request == KVM_CREATE_GUEST_MEMFD)
		return 7;
	added++;
	return refused(slot_error);
}

int main(int count, char **words)
{
	const struct bare_step steps[] = {
		{ .call = BARE_FILE_ATTRIBUTES }, { .call = BARE_ADD_CLOSED_SLOT, .size = 4096 },
	};
	struct bare_direction direction = { .steps = steps, .step_count = 2 };

	if (count != 4)
		return 2;
	attributes_error = atoi(words[1]);
	attributes_times = atoi(words[2]);
	slot_error = atoi(words[3]);
	printf("%d ", -convert(&direction, BARE_UNTIMED));
	printf("%d %d %d\n", asked, added, closed);
	return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare_conversions")
    # What the functions of the file call that nobody calls here need not be there.
    unused = ("-ffunction-sections", "-Wl,--gc-sections")
    return compiled(folder / "shim", SHIM, *unused, str(CSRC / "record_clock.c"))


@pytest.mark.parametrize(
    ("attributes_error", "times", "slot_error", "result"),
    [
        ("", 0, "", "0 1 1 1"),
        ("EAGAIN", 5, "", "0 6 1 1"),
        ("EAGAIN", 10**6, "", "EAGAIN 1000 0 0"),
        ("EINTR", 5000, "", "0 5001 1 1"),
        ("ENOMEM", 1, "", "ENOMEM 1 0 0"),
        ("", 0, "EEXIST", "EEXIST 1 1 1"),
    ],
)
def test_a_call_that_is_refused(
    program: Path, attributes_error: str, times: int, slot_error: str, result: str
) -> None:
    def number(name: str) -> str:
        return str(getattr(errno, name, 0))

    words = [number(attributes_error), str(times), number(slot_error)]
    found = subprocess.run(
        [program, *words], timeout=60, capture_output=True, text=True, check=True
    ).stdout
    name, *counts = result.split()
    assert found.split() == [number(name), *counts]
