"""Builds ``pyvmm._native`` from csrc/ with cffi and puts the guests into the package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithGuests(build_py):
    """The guests live at the top of the tree; an installed package needs them inside.

    They are shipped as source and, for machines without binutils, assembled as well.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "pyvmm", "guests")
        shutil.copytree(HERE / "guests", target, dirs_exist_ok=True)
        if shutil.which("as") is None or shutil.which("ld") is None:
            return
        built = target / "built"
        built.mkdir(exist_ok=True)
        for source in sorted(target.glob("*.S")):
            unlinked, linked = built / f"{source.stem}.o", built / f"{source.stem}.elf"
            # The line table must not name the folder that this happens to be built in.
            portable = ["--debug-prefix-map", f"{target.resolve()}=."]
            options = ["-g", "--32", *portable, "-I", str(target.resolve() / "include")]
            subprocess.run(["as", *options, "-o", unlinked, source.resolve()], check=True)
            layout = ["-m", "elf_i386", "-N", "-Ttext=0x7c00", "--entry=0x7c00"]
            quiet = ["--build-id=none", "-z", "noexecstack", "--no-warn-rwx-segments"]
            subprocess.run(["ld", *layout, *quiet, "-o", linked, unlinked], check=True)
            unlinked.unlink()


setup(
    cffi_modules=["csrc/build_native.py:make_builder"],
    cmdclass={"build_py": BuildWithGuests},
)
