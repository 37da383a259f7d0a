"""Descriptor tables of protected and long mode, as bytes: GDT, IDT and its stubs, TSS.

Intel SDM, volume 3: 3.4.5 (segment descriptors), 6.11 and 6.14.1 (gates), 7.2.1 and 7.7 (TSS).
"""

from __future__ import annotations

import struct

from pyvmm.native import lib

CODE, DATA = 0x08, 0x10
GDT_SIZE = 3 * 8
TSS_SIZE = 104
IDT_SIZES = {32: lib.VECTORS * 8, 64: lib.VECTORS * 16}
STUBS_SIZE: int = lib.VECTORS + 1

_FLAT = 0x00CF_0000_0000_FFFF  # base 0, 4 GiB, 32 bits
_LONG_CODE = 0x00AF_0000_0000_FFFF
_CODE_RIGHTS, _DATA_RIGHTS = 0x9B, 0x93  # present, accessed
_GATE = 0x8E  # of an interrupt, present


def gdt(bits: int) -> bytes:
    """A null descriptor, code and data."""
    code = _LONG_CODE if bits == 64 else _FLAT
    return struct.pack("<QQQ", 0, code | _CODE_RIGHTS << 40, _FLAT | _DATA_RIGHTS << 40)


def idt(bits: int, stubs: int) -> bytes:
    """256 gates that lead to the stubs which begin at the address ``stubs``."""
    gates = []
    for vector in range(lib.VECTORS):
        address = stubs + vector
        gate = struct.pack("<HHBBH", address & 0xFFFF, CODE, 0, _GATE, address >> 16)
        gates.append(gate + bytes(8) if bits == 64 else gate)
    return b"".join(gates)


def stub_code() -> bytes:
    """A stub ends the run with code 0x100 + vector; ``csrc/vector_stub.h`` says how."""
    outs = bytes([lib.STUB_OUT_AL, lib.STUB_OUT_AL, lib.STUB_OUT_AX, lib.STUB_OUT_AX])
    return outs * (lib.VECTORS // len(outs)) + outs[:1]  # the last one's port


def tss(bits: int, stack: int) -> bytes:
    """A TSS with the stack of privilege level 0, and no ports for the others."""
    made = bytearray(TSS_SIZE)
    if bits == 64:
        struct.pack_into("<Q", made, 4, stack)
    else:
        struct.pack_into("<II", made, 4, stack, DATA)
    struct.pack_into("<H", made, 102, TSS_SIZE)
    return bytes(made)
