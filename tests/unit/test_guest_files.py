"""How a guest's file, standard input and an initrd are read: whole, and without room for more."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.guest.image import read_guest_file
from pyvmm.guest.initrd import read_initrd

READ = {
    "file": "from pyvmm.guest.image import read_guest_file as read; read(Path(sys.argv[1]))",
    "stdin": "from pyvmm.guest.image import read_standard_input as read; read()",
    "initrd": "from pyvmm.guest.initrd import read_initrd as read; read(sys.argv[1], 1 << 40)",
}
ADDRESS_SPACE = 600 << 20


@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("size", [1, (64 << 10) + 1, (3 << 20) + 1])
def test_reading_takes_no_more_memory_than_there_is_to_read(
    what: str, size: int, tmp_path: Path
) -> None:
    """A file may have 1 GiB, and an initrd as much as RAM."""
    path = tmp_path / "guest"
    path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    imports, call = READ[what].split("; ")
    code = f"import sys; from pathlib import Path; {imports}; sys.stdout.buffer.write({call})"
    with path.open("rb") as file:
        found = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            stdin=file,
            capture_output=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)
            ),
        )
    assert found.returncode == 0, found.stderr[-500:]
    assert found.stdout == path.read_bytes()


def test_a_file_that_does_not_say_how_long_it_is() -> None:
    """As those of /proc."""
    path = Path("/proc/self/maps")
    assert path.stat().st_size == 0
    for data in (read_guest_file(path), read_initrd(str(path), 1 << 40)):
        assert data.count(b"\n") > 10
