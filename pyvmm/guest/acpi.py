"""ACPI tables: which CPUs and interrupt controllers there are, and how to switch off.

The structures are those of the ACPI specification, 5.2, at the versions of its revision 3.0,
which all kernels know. There are no devices in them: no PCI, and COM1 is found without.
"""

from __future__ import annotations

import struct

from pyvmm.devices.power import PM1_CONTROL, PM1_EVENT, PM_TIMER, RESET_PORT, RESET_VALUE, S5

#: Where guests look for the RSDP: from here to 1 MiB, every 16 bytes.
ACPI_GPA = 0xE0000
LAPIC_GPA, IOAPIC_GPA = 0xFEE0_0000, 0xFEC0_0000

_FACS_GPA = ACPI_GPA + 0x40
_TABLES_GPA = ACPI_GPA + 0x80
_OWNER, _NAME = b"PYVMM ", b"PYVMM   "
_CENTURY_CELL = 0x32  # of the CMOS
_SCI = 9
_NOT_SUPPORTED = 0xFFFF  # a latency that says that the CPU has no such state
_LEGACY_DEVICES, _NO_VGA = 0x0001, 0x0004
# WBINVD works; no fixed buttons, no wake-up by RTC; 32 bits of timer; a reset register.
_FLAGS = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10
_PORTS = 1  # an address space
_LEVEL_HIGH = 0x000D  # level triggered, active high


def acpi_tables(vcpus: int) -> bytes:
    """All tables, to be put at :data:`ACPI_GPA`, for vCPUs whose APIC ids are 0 upwards."""
    parts: list[bytes] = []

    def put(table: bytes) -> int:
        gpa = _TABLES_GPA + sum(map(len, parts))
        parts.append(table + bytes(-len(table) % 16))
        return gpa

    dsdt = put(_table(b"DSDT", 2, _dsdt()))
    tables = (put(_table(b"FACP", 3, _fadt(dsdt))), put(_table(b"APIC", 1, _madt(vcpus))))
    xsdt = put(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    # Guests of ACPI 1.0 know this one alone; those that know the other are to use that.
    rsdt = put(_table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    facs = struct.pack("<4sI", b"FACS", 64).ljust(64, b"\0")
    return _rsdp(rsdt, xsdt).ljust(0x40, b"\0") + facs + b"".join(parts)


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """``body`` behind the header that all tables have, with its checksum."""
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, _OWNER, _NAME, 1, b"PYVM", 1
    )
    checksum = _checksum(header + body)
    return header[:9] + bytes([checksum]) + header[10:] + body


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OWNER, 2, rsdt)
    first = first[:8] + bytes([_checksum(first)]) + first[9:]
    whole = first + struct.pack("<IQBxxx", 36, xsdt, 0)
    return whole[:32] + bytes([_checksum(whole)]) + whole[33:]


def _dsdt() -> bytes:
    """AML: Name (\\_S5, Package (4) {S5, S5, 0, 0})."""
    assert S5 == 0  # which ZeroOp stands for
    return b"\x08\\_S5_\x12\x06\x04\x00\x00\x00\x00"


def _register(port: int, bits: int, access: int) -> bytes:
    """A Generic Address Structure."""
    return struct.pack("<BBBBQ", _PORTS, bits, 0, access, port)


def _fadt(dsdt: int) -> bytes:
    nothing = bytes(12)
    legacy = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI",
        *(_FACS_GPA, dsdt, 0, 0, _SCI),
        *(0, 0, 0, 0, 0),  # no SMI: ACPI is always on
        *(PM1_EVENT, 0, PM1_CONTROL, 0, 0, PM_TIMER, 0, 0),
        *(4, 2, 0, 4, 0, 0, 0, 0),
        *(_NOT_SUPPORTED, _NOT_SUPPORTED, 0, 0, 0, 0, 0, 0),
        *(_CENTURY_CELL, _LEGACY_DEVICES | _NO_VGA, 0, _FLAGS),
    )
    extended = (
        _register(PM1_EVENT, 32, 2),
        nothing,
        _register(PM1_CONTROL, 16, 2),
        nothing,
        nothing,
        _register(PM_TIMER, 32, 3),
        nothing,
        nothing,
    )
    reset = _register(RESET_PORT, 8, 1) + struct.pack("<BHB", RESET_VALUE, 0, 0)
    return legacy + reset + struct.pack("<QQ", 0, dsdt) + b"".join(extended)


def _madt(vcpus: int) -> bytes:
    entries = [struct.pack("<BBBBI", 0, 8, index, index, 1) for index in range(vcpus)]
    entries += [
        struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC_GPA, 0),
        # KVM routes each ISA interrupt to the pin of its own number.
        struct.pack("<BBBBIH", 2, 10, 0, _SCI, _SCI, _LEVEL_HIGH),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),  # NMI at every CPU's LINT1
    ]
    with_two_pics = 1
    return struct.pack("<II", LAPIC_GPA, with_two_pics) + b"".join(entries)
