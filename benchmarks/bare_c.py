"""The C side: the files in bare/ compiled when they are needed, and called in this process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cffi

ffi = cffi.FFI()
ffi.cdef("""
struct side { uint64_t gpa; int fd; void *host; };
struct phases { uint64_t create_ns; uint64_t run_ns; uint64_t close_ns; };
int exit_loop(int vcpu, void *kvm_run, uint16_t port, uint64_t exits, uint32_t *value,
              int clock_reads);
void execute_cpuid(void);
int conversion_loop(int vcpu, void *kvm_run, const struct side *private_side,
                    const struct side *shared_side, uint64_t conversions);
int lifecycle(const char *image, size_t size, int timer_signal, struct phases *phases);
int kick_latency(int vcpu, void *kvm_run, int kick_signal, uint64_t delay_ns, uint64_t *latency);
""")


def compile_bare(name: str) -> Any:
    """bare/``name``.c as a loaded library. A call of it releases the GIL."""
    source = Path(__file__).parent / "bare" / f"{name}.c"
    compiler = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory(prefix="pyvmm-bare-") as folder:
        library = Path(folder, f"{name}.so")
        options = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC"]
        subprocess.run([*compiler.split(), *options, "-o", str(library), str(source)], check=True)
        return ffi.dlopen(str(library))


def address(pointer: Any) -> Any:
    """A pointer of another cffi module as one of this module's ``void *``."""
    from pyvmm.native import ffi as native

    return ffi.cast("void *", int(native.cast("uintptr_t", pointer)))


def check(result: int) -> None:
    """Raise what a function of bare/ returned as -errno."""
    if result < 0:
        raise OSError(-result, f"bare C: {os.strerror(-result)}")
