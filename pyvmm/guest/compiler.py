"""Compiling guests in C with gcc, freestanding, for protected and long mode."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from pyvmm.errors import ConfigurationError, GuestError
from pyvmm.guest.elf import SHT_INIT_ARRAY, own_sections
from pyvmm.guest.image import Image, elf_image
from pyvmm.guest.layout import LAYOUTS
from pyvmm.guest.preprocessor import lines
from pyvmm.guest.shipped import guests_dir
from pyvmm.guest.tools import call, named, path_of
from pyvmm.kvm.memfd import Memfd
from pyvmm.printable import printable

_BITS = {"protected": ("-m32", "elf_i386"), "long": ("-m64", "elf_x86_64")}
# KVM may have to emulate the guest's kernel mode, and its emulator has neither x87 nor SSE. What
# an interrupt pushes would be in a red zone. A guest has no C library, but gcc's own headers.
_CODE = [
    "-std=gnu17",
    "-ffreestanding",
    "-mgeneral-regs-only",
    "-mno-red-zone",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing",
    "-pipe",
    "--sysroot=/nonexistent",
    "-fdiagnostics-color=never",
    "-fno-diagnostics-show-caret",
    "-fmax-errors=100",
]
_THREAD = re.compile(r"\b(?:__thread|_Thread_local|thread_local)\b")
# What would be an error anywhere, though gcc goes on. A guest's user sees no warnings.
_ERRORS = [
    f"-Werror={each}"
    for each in (
        "implicit-function-declaration",
        "implicit-int",
        "incompatible-pointer-types",
        "int-conversion",
        "return-type",
    )
]


def compile_guest(
    path: Path, argument: str, source: str, parameters: Mapping[str, int], mode: str
) -> Image:
    """Compile the guest and link it with the runtime, which calls its main().

    gcc reads it from ``argument``, or ``source`` where that is "-". ``parameters`` become macros.
    Raises :class:`GuestError` with gcc's first error.
    """
    if mode not in _BITS:
        cause, remedy = "a guest in C is of 32 or 64 bits", "use --mode long or --mode protected"
        raise GuestError(str(path), cause, remedy)
    for symbol in parameters:
        if not symbol.isidentifier():
            raise ConfigurationError(f"parameter {symbol}", "its name is no name in C")
    width, emulation = _BITS[mode]
    # One line, whatever the file is called.
    name = printable(str(path))
    macros = [f"-D{symbol}={_in_c(value)}" for symbol, value in parameters.items()]
    # What assert() says is the file's name alone.
    short = f"-fmacro-prefix-map={path.absolute().parent}/="
    own = ["-O2", "-g", *_ERRORS, *macros, short, "-iquote", str(path.parent), "-x", "c"]
    layout = ["-m", emulation, "-N", f"-Ttext={LAYOUTS[mode].origin:#x}", "--entry=_start"]
    quiet = ["--build-id=none", "-z", "noexecstack"]
    # Memory files: whatever ends this process, no temporary file stays behind.
    with (
        Memfd("guest.o", 0) as unlinked,
        _file_of(_runtime(width)) as runtime,
        Memfd("guest.elf", 0) as linked,
    ):
        said = _gcc(path, [width, *own, argument], source if argument == "-" else "", unlinked)
        if said:
            from pyvmm.guest.rejected import why_not_compiled

            raise why_not_compiled(name, named(said, argument, name), source, mode)
        files = (linked, unlinked, runtime)
        output, *inputs = map(path_of, files)
        said = call(path, ["ld", *layout, *quiet, "-o", output, *inputs], "", *files)
        if said:
            from pyvmm.guest.rejected import why_not_linked_to_the_runtime

            raise why_not_linked_to_the_runtime(name, named(said, argument, name), source)
        elf = _bytes_of(linked)
        _check_runtime_has_it(name, elf, source)
        return replace(elf_image(path.name, elf, mode), elf=elf)


def _check_runtime_has_it(name: str, elf: bytes, source: str) -> None:
    """Refuse what gcc takes from a C library, and would be wrong without a word."""
    for kind, is_of_a_thread in own_sections(elf):
        if is_of_a_thread:
            found = next((each for each in lines(source) if _THREAD.search(each.text)), None)
            where = f" (line {found.number})" if found else ""
            cause = f"it has thread-local variables{where}, and a vCPU has no thread pointer"
            raise GuestError(name, cause, "use an array with an element for each vCPU")
        if kind == SHT_INIT_ARRAY:
            cause = "it has constructors, and nothing but main() is called"
            raise GuestError(name, cause, "call them in main(), on one vCPU before a barrier()")


@cache
def _runtime(width: str) -> bytes:
    """The object file of what starts a guest and answers its calls."""
    folder = guests_dir() / "runtime"
    with (
        Memfd("start.o", 0) as start,
        Memfd("runtime.o", 0) as rest,
        Memfd("all.o", 0) as both,
    ):
        for source, output in ((folder / "start.S", start), (folder / "runtime.c", rest)):
            said = _gcc(source, [width, "-O1", "-g1", str(source)], "", output)
            if said:
                raise GuestError(str(source), f"not compiling: {said.splitlines()[0]}")
        emulation = next(each for bits, each in _BITS.values() if bits == width)
        command = ["ld", "-r", "-m", emulation, "-o", path_of(both), path_of(start), path_of(rest)]
        if said := call(folder, command, "", start, rest, both):
            raise GuestError(str(folder), f"not linking: {said.splitlines()[0]}")
        return _bytes_of(both)


def _gcc(path: Path, options: list[str], text: str, output: Memfd) -> str:
    """What gcc said when it failed to make an object file."""
    headers = ["-idirafter", str(guests_dir() / "include")]
    command = ["gcc", *_CODE, *headers, "-c", "-o", path_of(output), *options]
    return call(path, command, text, output)


def _file_of(data: bytes) -> Memfd:
    file = Memfd("object", len(data))
    os.pwrite(file.fileno(), data, 0)
    return file


def _bytes_of(file: Memfd) -> bytes:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def _in_c(value: int) -> str:
    return str(value) if value >= 0 else f"({value})"
