"""Where KVM's own interrupt controllers are, once a VM has them: no device is called there.

They are where every PC has them; no header of the kernel names the numbers.
"""

from __future__ import annotations

PORTS = (
    ("KVM's PIC", range(0x20, 0x22)),
    ("KVM's PIC", range(0xA0, 0xA2)),
    ("KVM's PIC", range(0x4D0, 0x4D2)),
    ("KVM's PIT", range(0x40, 0x44)),
    ("KVM's PIT", range(0x61, 0x62)),
)
#: (name, GPA, bytes)
WINDOWS = (
    ("KVM's IOAPIC", 0xFEC0_0000, 0x100),
    ("KVM's LAPIC", 0xFEE0_0000, 0x1000),
)
