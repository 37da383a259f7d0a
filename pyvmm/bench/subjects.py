"""What ``pyvmm bench`` can be asked to measure."""

from __future__ import annotations

from pyvmm.bench import backings, conversions, exits, lifecycle
from pyvmm.bench.case import Bench

# Whose benches() a subject consists of.
SUBJECTS = {
    "exits": (exits,),
    "conversions": (conversions, backings),
    "lifecycle": (lifecycle,),
}


def benches(subject: str) -> list[Bench]:
    """Those of one subject, or of ``all``."""
    names = SUBJECTS if subject == "all" else (subject,)
    return [bench for name in names for part in SUBJECTS[name] for bench in part.benches()]
