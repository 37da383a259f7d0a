"""How a device ends the run."""

from __future__ import annotations


class EndOfRun(Exception):
    """Raised by a device: the guest has asked for the end. All vCPUs stop.

    ``code`` is what the guest wrote, or None. ``reason`` is one line, "" when it ``passed``.
    """

    def __init__(self, passed: bool, code: int | None = None, reason: str = "") -> None:
        super().__init__(passed, code, reason)
        self.passed = passed
        self.code = code
        self.reason = reason
