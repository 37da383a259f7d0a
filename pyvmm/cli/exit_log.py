"""``--log FILE``: a JSON line for each exit."""

from __future__ import annotations

import json

from pyvmm.loop.vcpu_loop import ExitRecord
from pyvmm.trace.output_file import OutputFile

SCHEMA = 1


class ExitLogFile(OutputFile):
    """The open file. Raises :class:`ConfigurationError` when it cannot be opened or written."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"--log {name}")

    def take(self, vcpu: int, record: ExitRecord) -> None:
        """The record as one line; its fields are those of :class:`ExitRecord`."""
        fields = {"schema": SCHEMA, "vcpu": vcpu, **record._asdict()}
        if record.conversion is not None:
            fields["conversion"] = record.conversion.name.lower()
        self.write(json.dumps(fields).encode() + b"\n")
