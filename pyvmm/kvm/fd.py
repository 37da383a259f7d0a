"""What all file descriptors have in common: they are closed once, and not used after."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, SupportsIndex

from pyvmm.closing import Closing
from pyvmm.errors import ClosedError, ConfigurationError, KvmError
from pyvmm.kvm.arguments import (
    MOST_DESCRIPTOR,
    not_a_number,
    number,
    pointer,
    shown,
    structure,
    usual,
)
from pyvmm.kvm.ioctls import IOCTLS, Ioctl
from pyvmm.kvm.uapi import Capability
from pyvmm.native import ffi, lib

_CData: Any = ffi.CData
_DESCRIPTORS = range(-1, MOST_DESCRIPTOR + 1)


class Fd(Closing):
    """Owns one file descriptor. A context manager; closing twice is allowed."""

    _fd = -1  # of one that could not be opened

    def __init__(self, fd: int, name: str) -> None:
        if type(fd) is not int or fd not in _DESCRIPTORS:
            fd = number("descriptor", fd, -1, MOST_DESCRIPTOR)
        self._fd = fd
        self.name = name

    def fileno(self) -> int:
        """The descriptor. Raises :class:`ClosedError` after :meth:`close`."""
        if self._fd < 0:
            raise ClosedError(self.name)
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # The first of two owners to be closed would close the other one's file, or a stranger's.
        raise TypeError(f"{self.name} is a descriptor: it cannot be copied or pickled")

    def __del__(self) -> None:
        if self._fd >= 0:
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} fd={self._fd}>"


class KvmFd(Fd):
    """A descriptor that takes KVM ioctls."""

    _before_close: tuple[Callable[[], None], ...] = ()

    def before_close(self, call: Callable[[], None]) -> None:
        """Let ``call`` tell C of it before the descriptor's number may be another file's."""
        self._before_close += (call,)

    def close(self) -> None:
        while calls := self._before_close:
            self._before_close = calls[:-1]
            calls[-1]()
        super().close()

    def ioctl(
        self, request: str | Ioctl, argument: Any = 0, about: str = "", *values: object
    ) -> int:
        """Issue an ioctl, by its name in the table or as an :class:`Ioctl` of one's own.

        ``argument`` is an int for an ioctl without a type. For the others it is a cffi
        pointer to the type, an array of it or of bytes, or a bytes-like object; its type and
        size are checked, as far as they can be known, before the kernel is called. A pointer
        that was cast is believed, and so are addresses inside a structure.

        Returns the kernel's non-negative result. Raises :class:`WrongTypeError`,
        :class:`ConfigurationError`, and :class:`KvmError` with the ioctl's name, the errno
        and ``about % values``, which is put together only then.
        """
        try:
            entry = IOCTLS[request]  # type: ignore[index]
        except (KeyError, TypeError):
            if not isinstance(request, Ioctl):
                raise ConfigurationError(
                    request if isinstance(request, str) else shown(request),
                    "it is not in the ioctl table",
                    "make it with pyvmm.kvm.ioctls.iow()",
                ) from None
            entry = request
        result: int
        if entry.type is None:
            try:
                result = lib.kvm_ioctl(self._fd, entry.number, argument)
            except (TypeError, OverflowError):
                raise not_a_number(entry, argument) from None
        else:
            # What nearly all calls give; the rest is looked at closely.
            is_usual = isinstance(argument, _CData) and ffi.typeof(argument) is usual(entry)
            usable = argument if is_usual and argument else pointer(entry, argument, self._least)
            result = lib.kvm_ioctl_on(self._fd, entry.number, usable)
        if result < 0:
            self.fileno()  # closed ones get EBADF
            about = about % values if values else about or self.name
            # A signal that ends KVM_RUN is no mistake.
            is_signal = result == -errno.EINTR
            rule = "" if is_signal else self._advice(entry.name, argument, -result)
            raise KvmError(entry.name, -result, about, rule)
        return result

    def _least(self, name: str) -> int:
        """How many bytes the kernel takes here for an ioctl, where its type has fewer; or 0."""
        return 0

    def _advice(self, call: str, argument: Any, number: int) -> str:
        """Which rule a call broke that the kernel refused with this errno, "" where unknown."""
        return ""

    def _enable_cap(self, capability: int, arguments: Sequence[int], flags: int) -> int:
        try:
            request = ffi.new("struct kvm_enable_cap *", (capability, flags, arguments))
        except (IndexError, OverflowError, TypeError):
            structure("struct kvm_enable_cap", cap=capability, flags=flags)
            for at, argument in enumerate(arguments):
                number(f"argument {at}", argument)
            most = len(ffi.new("struct kvm_enable_cap *").args)
            raise ConfigurationError(
                str(Capability(capability)), f"{len(arguments)} arguments, and KVM takes {most}"
            ) from None
        about = self.name, Capability(capability)
        return self.ioctl("KVM_ENABLE_CAP", request, "%s, %s", *about)
