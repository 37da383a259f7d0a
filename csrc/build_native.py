"""The cffi builder of ``pyvmm._native``: declarations, constants, compiler arguments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

HEADERS = """
#include <errno.h>
#include <sys/syscall.h>
#include "kvm_compat.h"
#include "kvm_layout.h"
#include "kvm_ioctl.h"
#include "guest_cpu.h"
#include "page_range.h"
#include "exit_log.h"
#include "memory.h"
#include "protocol.h"
#include "vector_stub.h"
#include "vcpu_loop.h"
#include "bench/exits.h"
#include "bench/kicks.h"
#include "bench/conversions.h"
#include "bench/life.h"
"""

# What Python sees of each header; one uses types of those before it.
DECLARATIONS = (
    "kvm.h",
    "errno.h",
    "syscall.h",
    "kvm_ioctl.h",
    "guest_cpu.h",
    "page_range.h",
    "record_clock.h",
    "exit_log.h",
    "slot_window.h",
    "region.h",
    "memory.h",
    "protocol.h",
    "vector_stub.h",
    "vcpu_loop.h",
    "bench/exits.h",
    "bench/kicks.h",
    "bench/conversions.h",
    "bench/life.h",
)

# Object-like macros of these families become constants, if they are integers on x86.
FAMILY = re.compile(r"(?:KVM|GUEST_MEMFD)_[A-Z0-9_]+")
_DEFINITIONS = re.compile(rf"^#define ({FAMILY.pattern}) \S", re.MULTILINE)


def include_dirs() -> list[str]:
    headers = os.environ.get("PYVMM_KERNEL_HEADERS")
    if not headers:
        return [str(HERE)]
    for candidate in (Path(headers), Path(headers, "include")):
        if (candidate / "linux" / "kvm.h").is_file():
            return [str(HERE), str(candidate)]
    raise SystemExit(
        f"PYVMM_KERNEL_HEADERS={headers}: no linux/kvm.h in it; "
        "name the folder that `make headers_install INSTALL_HDR_PATH=...` filled"
    )


def compile_text(compiler: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    includes = [f"-I{folder}" for folder in include_dirs()]
    return subprocess.run(
        [*compiler.split(), *includes, *options, "-x", "c", "-"],
        input='#include "kvm_compat.h"\n#line 1 "text"\n' + text,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


def constants(compiler: str) -> list[str]:
    """The names of the integer constants that the kernel's headers define."""
    if shutil.which(compiler.split()[0]) is None:
        raise SystemExit(
            f"no C compiler ({compiler}): pyvmm compiles its run loop; "
            "install gcc (Debian: apt install gcc libc6-dev linux-libc-dev python3-dev)"
        )
    macros = compile_text(compiler, "", "-E", "-dM")
    if macros.returncode != 0:
        cause = next((line for line in macros.stderr.splitlines() if "error" in line), "?")
        raise SystemExit(
            f"the kernel's headers cannot be used: {cause.strip()}; install linux-libc-dev "
            "or name a tree with PYVMM_KERNEL_HEADERS=DIR"
        )
    names = sorted(set(_DEFINITIONS.findall(macros.stdout)))
    # Other architectures' ioctls and helper macros are not constants here: ask the compiler.
    trial = "".join(f'_Static_assert(({name}) | 1, "");\n' for name in names)
    errors = compile_text(compiler, trial, "-fsyntax-only", "-fmax-errors=0").stderr
    refused = {int(line) for line in re.findall(r"^text:(\d+):\d+: error", errors, re.MULTILINE)}
    return [name for line, name in enumerate(names, 1) if line not in refused]


def sources() -> list[str]:
    files = HERE.rglob("*.c")
    # setuptools wants paths relative to setup.py.
    return sorted(str(path.relative_to(HERE.parent)) for path in files)


def backends() -> list[str]:
    """The names of the backends: one file or folder each."""
    found = (HERE / "backends").iterdir()
    return sorted(path.stem for path in found if path.is_dir() or path.suffix == ".c")


def check_python_headers() -> None:
    paths = {sysconfig.get_path(name) for name in ("include", "platinclude")}
    if not any(Path(path, "Python.h").is_file() for path in paths):
        raise SystemExit(
            f"no Python.h in {' or '.join(sorted(paths))}: pyvmm compiles a module for Python; "
            "install Python's headers (Debian: apt install python3-dev)"
        )


def make_builder() -> cffi.FFI:
    check_python_headers()
    builder = cffi.FFI()
    names = constants(os.environ.get("CC", "cc"))
    builder.cdef("".join(f"#define {name} ...\n" for name in names))
    for header in DECLARATIONS:
        builder.cdef((HERE / "decl" / header).read_text())
    arguments = ["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"]
    if os.environ.get("PYVMM_WERROR"):
        # cffi's own generated code is not ours to keep free of unused parameters.
        arguments += ["-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    builder.set_source(
        "pyvmm._native",
        HEADERS,
        sources=sources(),
        include_dirs=include_dirs(),
        # What memory.c makes its list of.
        define_macros=[("BACKENDS(each)", " ".join(f"each({name})" for name in backends()))],
        extra_compile_args=arguments + os.environ.get("PYVMM_CFLAGS", "").split(),
        extra_link_args=os.environ.get("PYVMM_LDFLAGS", "").split(),
        depends=[str(path.relative_to(HERE.parent)) for path in HERE.rglob("*.h")],
    )
    return builder
