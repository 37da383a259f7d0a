"""A file that is written while a run goes on."""

from __future__ import annotations

from pyvmm.closing import Closing
from pyvmm.errors import ConfigurationError


class OutputFile(Closing):
    """The open file ``name``, which messages call ``called``.

    What cannot be opened or written is one :class:`ConfigurationError`; it is not raised
    again by what is still written or by :meth:`close`.

    Synchronization: threads of several vCPUs may write, for a binary file takes one write
    at a time.
    """

    def __init__(self, name: str, called: str) -> None:
        self._called = called
        self._failed = False
        try:
            self._file = open(name, "wb")  # noqa: SIM115
        except OSError as error:
            raise self._error(error) from None

    def write(self, data: bytes) -> None:
        if self._failed:
            return  # said once already
        try:
            self._file.write(data)
        except OSError as error:
            self._failed = True
            raise self._error(error) from None

    def close(self) -> None:
        """Write what is buffered."""
        try:
            self._file.close()
        except OSError as error:
            if not self._failed:
                self._failed = True
                raise self._error(error) from None

    def _error(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            self._called,
            error.strerror or str(error),
            "name a file that can be written, with room for it",
        )
