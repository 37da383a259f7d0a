"""Builds ``pyvmm._native`` from csrc/ with cffi and puts the guests into the package."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildWithGuests(build_py):
    """The guests live at the top of the tree; an installed package needs them inside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "pyvmm", "guests")
            shutil.copytree(HERE / "guests", target, dirs_exist_ok=True)


setup(
    cffi_modules=["csrc/build_native.py:make_builder"],
    cmdclass={"build_py": BuildWithGuests},
)
