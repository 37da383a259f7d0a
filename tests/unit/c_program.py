"""Parts of the C core, compiled with what a test puts around them."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"


def compiled(target: Path, text: str, *options: str) -> Path:
    """Compile a test's C into ``target``. ``options`` are the compiler's, files of csrc/ too."""
    # Not the name of a file of csrc/, which it may include.
    source = target.with_name(f"test_{target.stem}.c")
    source.write_text(text)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-std=gnu11", f"-I{CSRC}", "-o", target, source, *options]
    subprocess.run(command, check=True)
    return target
