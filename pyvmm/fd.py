"""What all file descriptors have in common: they are closed once, and not used after."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex

from pyvmm.errors import ClosedError, ConfigurationError, KvmError
from pyvmm.ioctls import IOCTLS, Ioctl
from pyvmm.native import lib


class Fd:
    """Owns one file descriptor. A context manager; closing twice is allowed."""

    _fd = -1  # of one that could not be opened

    def __init__(self, fd: int, name: str) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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

    def __init__(self, fd: int, name: str) -> None:
        self._before_close: list[Callable[[], None]] = []
        super().__init__(fd, name)

    def before_close(self, call: Callable[[], None]) -> None:
        """Let ``call`` tell C of it before the descriptor's number may be another file's."""
        self._before_close.append(call)

    def close(self) -> None:
        while self._before_close:
            self._before_close.pop()()
        super().close()

    def ioctl(
        self, request: str | Ioctl, argument: Any = 0, about: str = "", *values: object
    ) -> int:
        """Issue an ioctl, by its name in the table or as an :class:`Ioctl` of one's own.

        ``argument`` is an int or a cffi pointer. Returns the kernel's non-negative result.
        Raises :class:`KvmError` with the ioctl's name, the errno and ``about % values``, which
        is put together only then.
        """
        entry = IOCTLS.get(request) if isinstance(request, str) else request
        if entry is None:
            raise ConfigurationError(
                str(request), "it is not in the ioctl table", "make it with pyvmm.ioctls.iow()"
            )
        fd = self._fd
        if fd < 0:
            raise ClosedError(self.name)
        result: int
        if isinstance(argument, int):
            result = lib.kvm_ioctl(fd, entry.number, argument)
        else:
            result = lib.kvm_ioctl_on(fd, entry.number, argument)
        if result < 0:
            raise KvmError(entry.name, -result, about % values if values else about or self.name)
        return result
