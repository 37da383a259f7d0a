"""Tags of the patterns in memory: who wrote, and in which state the page was.

No page begins with a zero. A word is its tag plus its own GPA.
"""

from __future__ import annotations

HOST, SHARED, PRIVATE, LATER = (n << 48 | 0xA5 for n in (0x1111, 0x2222, 0x3333, 0x4444))
