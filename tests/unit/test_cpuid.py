"""What a CPUID table says of addresses."""

from __future__ import annotations

import pytest

from pyvmm.kvm.cpuid import CpuidEntry, cpuid_table, physical_address_bits


def entry(function: int, eax: int) -> CpuidEntry:
    return CpuidEntry(function, 0, 0, eax, 0, 0, 0)


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        ([], 36),
        ([entry(0, 0xD), entry(0x8000_0007, 1)], 36),
        ([entry(0, 0xD), entry(0x8000_0008, 0x3934), entry(0x8000_0021, 5)], 52),
        ([entry(0x8000_0008, 0x3027)], 39),
    ],
)
def test_bits_of_an_address(entries: list[CpuidEntry], bits: int) -> None:
    assert physical_address_bits(cpuid_table(entries)) == bits
