"""How a case says that something is wrong, or that it cannot run."""

from __future__ import annotations

import errno as errno_module
from collections.abc import Callable, Collection

from pyvmm.errors import KvmError

#: <asm-generic/errno.h>; the errno module does not have it.
EHWPOISON = 133


class CheckFailed(Exception):
    """The kernel did something else than it must.

    ``str()`` is the same whenever the same thing is wrong; ``detail`` may differ from run
    to run (counts, times, addresses).
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class Missing(Exception):
    """The case cannot run here: the text names what is missing, and the remedy if known."""


def check(condition: bool, message: str, detail: str = "") -> None:
    """Fail with ``message`` unless ``condition`` holds."""
    if not condition:
        raise CheckFailed(message, detail)


def expect(seen: object, expected: object, what: str) -> None:
    """Fail unless the two are equal: "``what``: seen ..., expected ..."."""
    if seen != expected:
        raise CheckFailed(f"{what}: seen {words(seen)}, expected {words(expected)}")


def errno_of(call: Callable[[], object]) -> int:
    """The errno that ``call`` fails with, 0 if it does not fail."""
    try:
        call()
    except KvmError as error:
        return error.errno or 0
    except OSError as error:
        return error.errno or 0
    return 0


def expect_errno(call: Callable[[], object], expected: int | Collection[int], what: str) -> None:
    """``call`` must fail with the errno, or with one of those that kernels differ in."""
    allowed = (expected,) if isinstance(expected, int) else tuple(expected)
    seen = errno_of(call)
    if seen not in allowed:
        wanted = " or ".join(errno_name(number) for number in allowed)
        raise CheckFailed(f"{what}: {errno_name(seen)}, expected {wanted}")


def errno_name(number: int) -> str:
    """``EINVAL``; "success" for 0."""
    if number == EHWPOISON:
        return "EHWPOISON"
    return errno_module.errorcode.get(number, str(number)) if number else "success"


def words(value: object) -> str:
    """A value for people: numbers above 9 in hexadecimal."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10 else f"{value:#x}"
    return str(value)
