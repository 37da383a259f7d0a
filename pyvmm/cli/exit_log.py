"""``--log FILE``: a JSON line for each exit."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Self

from pyvmm.errors import ConfigurationError
from pyvmm.vcpu_loop import ExitRecord


class ExitLogFile:
    """The open file. Raises :class:`ConfigurationError` when it cannot be opened or written.

    Synchronization: vCPUs write from their own threads; a line is never torn, because
    a binary file takes one write at a time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed = False
        try:
            self._file = open(name, "wb")  # noqa: SIM115
        except OSError as error:
            raise self._error(error) from None

    def write(self, vcpu: int, record: ExitRecord) -> None:
        """The record as one line; its fields are those of :class:`ExitRecord`."""
        if self._failed:
            return  # said once already, and what is drained at the end cannot be kept
        fields = {"vcpu": vcpu, **record._asdict()}
        if record.conversion is not None:
            fields["conversion"] = record.conversion.name.lower()
        try:
            self._file.write(json.dumps(fields).encode() + b"\n")
        except OSError as error:
            self._failed = True
            raise self._error(error) from None

    def close(self) -> None:
        """Write what is buffered. Raises :class:`ConfigurationError` unless write() did."""
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:
                self._failed = True
                raise self._error(error) from None

    def _error(self, error: OSError) -> ConfigurationError:
        cause = error.strerror or str(error)
        return ConfigurationError(
            f"--log {self._name}", cause, "name a file that can be written, with room for it"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
