"""The floor of a machine's life makes the same system calls as a Machine: both are traced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Writes a line for each call of interest; preloaded.
TRACER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <signal.h>

static void say(const char *name, unsigned long number)
{
	static FILE *out;

	if (!out)
		out = fopen(getenv("TRACE"), "a");
	fprintf(out, "%s %#lx\n", name, number);
	fflush(out);
}

#define REAL(result, name, ...) \
	static result (*real)(__VA_ARGS__); \
	if (!real) \
		real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;
	REAL(int, "ioctl", int, unsigned long, ...);

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	say("ioctl", request);
	return real(fd, request, argument);
}

int ftruncate64(int fd, off_t size)
{
	REAL(int, "ftruncate64", int, off_t);

	say("ftruncate", (unsigned long)size);
	return real(fd, size);
}

int ftruncate(int fd, off_t size)
{
	return ftruncate64(fd, size);
}

int memfd_create(const char *name, unsigned int flags)
{
	REAL(int, "memfd_create", const char *, unsigned int);

	say("memfd_create", flags);
	return real(name, flags);
}

int timer_create(clockid_t clock, struct sigevent *event, timer_t *timer)
{
	REAL(int, "timer_create", clockid_t, struct sigevent *, timer_t *);

	say("timer_create", 0);
	return real(clock, event, timer);
}

int timer_delete(timer_t timer)
{
	REAL(int, "timer_delete", timer_t);

	say("timer_delete", 0);
	return real(timer);
}
"""

LIVES = """
import os, sys
from pyvmm.bench.lifecycle import Whole

whole = Whole()
live = {"machine": whole._live, "floor": lambda: whole.bare(reset=False)}[sys.argv[1]]
live()
os.truncate(os.environ["TRACE"], 0)
live()
"""


def calls(tracer: Path, folder: Path, which: str) -> list[str]:
    """The calls of a process's second life; in the first it asks what it asks once."""
    trace = folder / f"{which}.trace"
    environment = os.environ | {"LD_PRELOAD": str(tracer), "TRACE": str(trace)}
    command = [sys.executable, "-c", LIVES, which]
    subprocess.run(command, env=environment, check=True, timeout=60)
    return trace.read_text().splitlines()


@pytest.fixture
def tracer(tmp_path: Path) -> Path:
    library = tmp_path / "tracer.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), "-x", "c", "-", "-ldl"]
    subprocess.run(command, input=TRACER, text=True, check=True)
    return library


def test_the_floor_makes_the_calls_of_a_machine(tracer: Path, tmp_path: Path) -> None:
    machine = calls(tracer, tmp_path, "machine")
    floor = calls(tracer, tmp_path, "floor")
    assert len(machine) > 20
    assert machine == floor
