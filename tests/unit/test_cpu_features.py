"""CPU models: what is taken from the CPUID that KVM supports."""

from __future__ import annotations

import pytest

from pyvmm.errors import ConfigurationError
from pyvmm.guest.cpu_features import cpu_model
from pyvmm.kvm.cpuid import CpuidEntry

ALL = 0xFFFFFFFF
SUPPORTED = [
    CpuidEntry(0, 0, 0, 0xD, 1, 2, 3),
    CpuidEntry(1, 0, 0, 4, 5, ALL, ALL),
    CpuidEntry(7, 0, 1, 1, ALL, ALL, ALL),
    CpuidEntry(0xD, 0, 1, ALL, ALL, ALL, ALL),
    CpuidEntry(0x80000001, 0, 0, 4, 5, ALL, ALL),
    CpuidEntry(0x80000008, 0, 0, 0x3030, 0, 0, 0),
]


def leaf(text: str, function: int) -> CpuidEntry:
    return next(each for each in cpu_model(text).entries(SUPPORTED) if each.function == function)


def test_all_that_kvm_has() -> None:
    assert list(cpu_model("max").entries(SUPPORTED)) == SUPPORTED
    assert list(cpu_model("host,migratable=no,+x2apic").entries(SUPPORTED)) == SUPPORTED


@pytest.mark.parametrize("text", ["max,-x2apic", "max,x2apic=off"])
def test_a_feature_less(text: str) -> None:
    assert leaf(text, 1).ecx == ALL & ~(1 << 21)


def test_a_small_model_and_features_more() -> None:
    assert leaf("qemu64", 7).ebx == leaf("qemu64", 7).ecx == 0
    assert leaf("qemu64,+umip", 7).ecx == 1 << 2
    assert leaf("qemu64,+pcid,+invpcid", 1).ecx & 1 << 17
    assert leaf("qemu64,+invpcid", 7).ebx == 1 << 10
    assert leaf("qemu64", 1).ecx >> 21 & 1 and not leaf("qemu64,-x2apic", 1).ecx >> 21 & 1
    assert leaf("qemu64", 0x80000001).edx >> 29 & 1


def test_nothing_is_added_that_kvm_lacks() -> None:
    (entry,) = cpu_model("max,+umip").entries([CpuidEntry(7, 0, 1, 0, 0, 0, 0)])
    assert entry.ecx == 0


def test_vendor_and_address_bits() -> None:
    entry = leaf("max,vendor=GenuineIntel", 0)
    words = (entry.ebx, entry.edx, entry.ecx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == b"GenuineIntel"
    assert leaf("max,phys-bits=36,host-phys-bits=off", 0x80000008).eax == 0x3024


@pytest.mark.parametrize(
    "text", ["", "486", "max,foo", "max,+foo", "max,vendor=x", "max,phys-bits=99", "max,umip=maybe"]
)
def test_what_is_not_known(text: str) -> None:
    with pytest.raises(ConfigurationError):
        cpu_model(text)
