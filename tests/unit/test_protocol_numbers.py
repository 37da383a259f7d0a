"""The guest protocol's numbers: what guests include says what ``csrc/protocol.h`` says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEFINED = re.compile(r"^\s*(?:#define|\.set)\s+(PORT_\w+),?\s+(0x[0-9A-F]+)\b", re.MULTILINE)
PORTS = dict(DEFINED.findall((ROOT / "csrc/protocol.h").read_text()))


@pytest.mark.parametrize("name", ["pyvmm.h", "pyvmm.inc", "pyvmm_flat.inc"])
def test_guests_include_the_ports_of_the_loop(name: str) -> None:
    included = dict(DEFINED.findall((ROOT / "guests/include" / name).read_text()))
    # Real mode has no numbers of 64 bits.
    expected = {
        port: number
        for port, number in PORTS.items()
        if name != "pyvmm.inc" or not port.endswith("_HIGH")
    }
    assert len(expected) > 8
    assert included == expected


def test_guests_include_the_same_features() -> None:
    bits = re.compile(r"\b(FEATURE_\w+),?\s+\(?1u? << (\d)")
    included = [
        dict(bits.findall((ROOT / "guests/include" / name).read_text()))
        for name in ("pyvmm.h", "pyvmm.inc", "pyvmm_flat.inc")
    ]
    expected = {"FEATURE_HYPERCALL": "0", "FEATURE_TWO_VIEWS": "1", "FEATURE_KEEPS_CONTENTS": "2"}
    assert included == [expected] * 3


def test_the_document_has_every_port() -> None:
    document = (ROOT / "docs/protocol.md").read_text()
    rows = set(re.findall(r"^\| (0x[0-9A-F]+) \|", document, re.MULTILINE))
    assert rows == set(PORTS.values())
