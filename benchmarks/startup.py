"""What starting costs: importing pyvmm beside cffi alone, and a whole `pyvmm run`.

Each operation is a process of its own, from fork to exit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from interleaved import Promise, Side, batches_asked, compare, describe_machine

HELLO = Path(__file__).resolve().parent.parent / "guests" / "hello.S"


def python(name: str, *arguments: str) -> Side:
    command = [sys.executable, *arguments]
    return Side(name, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    batches = batches_asked(__doc__ or "", 20)
    describe_machine()
    print(f"{batches} processes of each side, interleaved")
    cffi = python("import cffi", "-c", "import cffi")
    for statement in ("import pyvmm", "from pyvmm import Machine"):
        compare(
            f"{statement}, over import cffi",
            python(statement, "-c", statement),
            cffi,
            Promise(more_ns=80e6),
            operations=1,
            batches=batches,
        )
    compare(
        "pyvmm run guests/hello.S",
        python("pyvmm run guests/hello.S", "-m", "pyvmm", "run", str(HELLO)),
        python("python -c pass", "-c", "pass"),
        Promise(total_ns=500e6),
        operations=1,
        batches=batches,
    )


if __name__ == "__main__":
    main()
