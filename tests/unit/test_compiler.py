"""Guests in C: what gcc makes of them, and one line about what it does not."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import psutil
import pytest

from pyvmm import ConfigurationError, GuestError, load_guest
from pyvmm.guest import tools
from pyvmm.guest.source_lines import source_line

HEAD = '#include "pyvmm.h"\nint main(unsigned vcpu, unsigned vcpus)\n'
MODES = ("protected", "long")
# Each source, and what its line must begin with and end with.
REJECTED = {
    "syntax": (HEAD + "{ return 0 }\n", "x.c:3:11: error: expected ';' before '}' token", ""),
    "no name": (HEAD + "{ return a + b; }\n", "x.c:3:10: error: 'a' undeclared", " more)"),
    "no header": (
        "int main(void) { puts(0); return 0; }\n",
        "x.c:1:18: error: implicit declaration of function 'puts'",
        'is it in pyvmm.h: #include "pyvmm.h"?',
    ),
    "no such function": (
        HEAD + "{ putz(0); return 0; }\n",
        "x.c:3:3: error: implicit declaration of function 'putz'",
        "",
    ),
    "C library": (
        "#include <stdio.h>\n" + HEAD + "{ return 0; }\n",
        "x.c:1:10: fatal error: stdio.h: No such file or directory",
        "a guest has no C library: pyvmm.h has printf(), memcpy() and the like",
    ),
    "no file": (
        '#include "mine.h"\n' + HEAD + "{ return 0; }\n",
        "x.c:1:10: fatal error: mine.h: No such file or directory",
        "it is looked for beside the guest and in guests/include",
    ),
    "void main": (
        '#include "pyvmm.h"\nvoid main(unsigned vcpu, unsigned vcpus) {}\n',
        "x.c:2:6: error: conflicting types for 'main'",
        "it is int main(unsigned vcpu, unsigned vcpus)",
    ),
    "no return": (
        # Newer gccs let main() alone return 0 at its end.
        '#include "pyvmm.h"\nint f(void) { puts(0); }\nint main(void) { return f(); }\n',
        "x.c:2:24: error: control reaches end",
        "",
    ),
    "#error": ("#error not yet\nint main(void) { return 0; }\n", "x.c:1:2: error: #error not", ""),
    "assembly": (
        'int main(void) { __asm__("frobnicate"); return 0; }\n',
        "x.c:1: Error: no such instruction: `frobnicate'",
        "",
    ),
    "itself": ('#include "x.c"\n#include "x.c"\n', "x.c:1:15: error: #include nested", ""),
}
UNLINKED = {
    "no main": ('#include "pyvmm.h"\nint mian(void) { return 0; }\n', "x.c: there is no main()"),
    "undefined": (HEAD + "{ extern int f(void); return f(); }\n", "x.c:3: undefined symbol 'f'"),
}
FLOATS = (
    "{ volatile float f = vcpu; f = f * 2; return f; }",
    "{ volatile double f = vcpu; return f > 1; }",
    "{ volatile long double f = vcpu; return f / 3; }",
)


def line_about(source: str, mode: str) -> str:
    """The one line about the guest in x.c."""
    Path("x.c").write_text(source)
    with pytest.raises(GuestError) as error:
        load_guest("x.c", mode=mode)
    line = str(error.value)
    assert line.startswith("x.c: ") and line.isprintable()
    return line.removeprefix("x.c: ")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REJECTED)
def test_what_does_not_compile(name: str, mode: str) -> None:
    source, begin, end = REJECTED[name]
    line = line_about(source, mode)
    assert line.startswith(f"not compiling: {begin}") and line.endswith(end)
    assert end or "pyvmm.h" not in line  # which is included already


@pytest.mark.parametrize("use", ["map(0, 0, 0)", "flush(vcpu)", "read8(HIGH_PRIVATE_VIEW)"])
def test_what_protected_mode_lacks(use: str) -> None:
    line = line_about(f"{HEAD}{{ (void)({use}); return 0; }}\n", "protected")
    assert line.startswith("not compiling: x.c:3:") and "pyvmm.h has that for --mode long" in line


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", UNLINKED)
def test_what_does_not_link(name: str, mode: str) -> None:
    source, begin = UNLINKED[name]
    assert line_about(source, mode).startswith(f"not linking: {begin}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", FLOATS)
def test_no_floating_point(body: str, mode: str) -> None:
    line = line_about(HEAD + body, mode)
    assert "x.c:3" in line and line.endswith("no floating point, which KVM's emulator lacks")


def test_what_would_take_all_memory() -> None:
    doubled = "".join(f"#define A{n} A{n - 1} A{n - 1}\n" for n in range(1, 40))
    for source in ('#include "/dev/zero"\n', f"#define A0 1+\n{doubled}int all = A39 1;\n"):
        line = line_about(source, "long")
        assert line == "not compiling: it takes gcc more memory than a guest may"


def test_what_is_too_large() -> None:
    data = "char all[48 << 20] = {1};\n" + HEAD + "{ return all[vcpu]; }\n"
    assert "too large for a guest" in line_about(data, "long")
    bss = "char all[3u << 30];\n" + HEAD + "{ return all[vcpu]; }\n"
    assert "beyond 2 GiB" in line_about(bss, "long")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        ("__thread int own = 5;", "thread-local variables (line 3)"),
        ("_Thread_local int own;", "thread-local variables (line 3)"),
        ("int own; __attribute__((constructor)) void f(void) { own = 1; }", "constructors"),
    ],
)
def test_what_a_c_library_would_have_to_do(declaration: str, said: str, mode: str) -> None:
    source = (
        f'#include "pyvmm.h"\n/* __thread */\n{declaration}\nint main(void) {{ return own; }}\n'
    )
    assert line_about(source, mode).startswith(f"it has {said}")


def test_a_large_bss_costs_nothing_until_it_is_placed() -> None:
    Path("x.c").write_text("char all[1 << 30];\n" + HEAD + "{ return all[vcpu]; }\n")
    image = load_guest("x.c", mode="long")
    assert sum(segment.zeros for segment in image.segments) >= 1 << 30
    assert sum(len(segment.data) for segment in image.segments) < 1 << 20


def test_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes to: gcc, and the compiler that it started, are ended."""
    monkeypatch.setattr(tools, "_TIMEOUT_S", 1)
    os.mkfifo("fifo.h")
    before = time.monotonic()
    line = line_about('#include "fifo.h"\nint main(void) { return 0; }\n', "long")
    assert line == "gcc took more than 1 s"
    assert time.monotonic() - before < 30
    assert not [each for each in psutil.Process().children(recursive=True) if each.is_running()]
    # Nobody waits for the compiler once gcc is gone: it may be about to end.
    while works_in(Path.cwd(), "cc1"):
        assert time.monotonic() - before < 30
        time.sleep(0.01)


def works_in(folder: Path, name: str) -> list[psutil.Process]:
    """The processes of that name that have not ended."""
    running = [
        each
        for each in psutil.process_iter(["cwd", "name", "status"])
        if each.info["name"] == name and each.info["status"] != psutil.STATUS_ZOMBIE
    ]
    return [each for each in running if each.info["cwd"] == str(folder)]


def test_gcc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    line = line_about(HEAD + "{ return 0; }\n", "long")
    assert line == "gcc is not installed; install gcc (apt install gcc)"


def test_the_line_of_an_address() -> None:
    Path("x.c").write_text(HEAD + "{\n\tif (vcpu)\n\t\treturn 7;\n\treturn 0;\n}\n")
    for mode in MODES:
        image = load_guest("x.c", mode=mode)
        lines = {source_line(image, image.segments[0].gpa + at) for at in range(0, 0x2000, 16)}
        assert any(found and found[0] == "x.c" for found in lines)
        assert image.mode == mode and image.segments[0].gpa == 0x100000


def test_parameters() -> None:
    Path("x.c").write_text(HEAD + "{ static char all[SIZE]; return (int)(long)all + (LESS); }\n")
    small, large = (
        sum(segment.zeros for segment in load_guest("x.c", {"SIZE": size, "LESS": -5}).segments)
        for size in (64, 1 << 16)
    )
    assert large - small > 60000
    with pytest.raises(ConfigurationError, match="its name is no name in C"):
        load_guest("x.c", {"a.b": 1})
    with pytest.raises(GuestError, match=re.escape("'SIZE' undeclared")):
        load_guest("x.c")


def test_real_mode() -> None:
    line = line_about(HEAD + "{ return 0; }\n", "real")
    assert line == "a guest in C is of 32 or 64 bits; use --mode long or --mode protected"


def test_threads_compile_side_by_side() -> None:
    Path("x.c").write_text(HEAD + "{ return 0; }\n")
    images: list[object] = []
    threads = [threading.Thread(target=lambda: images.append(load_guest("x.c"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 4 and all(image == images[0] for image in images)
