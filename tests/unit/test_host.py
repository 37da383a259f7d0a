"""What module parameters say about this host, from a folder like /sys/module."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import host


@pytest.mark.parametrize(
    ("parameters", "off"),
    [
        ({"kvm_amd/npt": "N", "kvm/tdp_mmu": "N"}, "kvm_amd.npt=0"),
        ({"kvm_amd/npt": "0"}, "kvm_amd.npt=0"),
        ({"kvm_intel/ept": "N", "kvm/tdp_mmu": "N"}, "kvm_intel.ept=0"),
        ({"kvm_intel/ept": "Y", "kvm/tdp_mmu": "N"}, "kvm.tdp_mmu=0"),
        ({"kvm_amd/npt": "1", "kvm/tdp_mmu": "Y"}, ""),
        # A module without such hardware: tdp_mmu=1 would not help.
        ({"kvm_pvm/nested": "N", "kvm/tdp_mmu": "N"}, ""),
        ({}, ""),
    ],
)
def test_the_parameter_that_keeps_nested_paging_off(
    parameters: dict[str, str], off: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in parameters.items():
        module, parameter = name.split("/")
        folder = tmp_path / module / "parameters"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / parameter).write_text(value + "\n")
    monkeypatch.setattr(host, "_MODULES", tmp_path)
    assert host.nested_paging_off() == off
