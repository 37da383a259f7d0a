"""A connection to a scheduler of Dask, or one line on why there is none."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from pyvmm.lab.errors import LabError, LabUsageError

if TYPE_CHECKING:
    from distributed import Client

#: Dask's own client, given another, leaves threads that end with a traceback.
_ADDRESS = re.compile(r"(?:(?:tcp|tls|wss?)://)?[^\s/]+:\d{1,5}")
CONNECT_S = 10.0
_LAST_PORT = 65535
_NAME_THEM = "Dask's configuration names certificates: distributed.comm.tls"


def check_address(address: str) -> None:
    """A LabUsageError for what is no address of a scheduler."""
    if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > _LAST_PORT:
        raise LabUsageError(
            f"--dask {address}", "it is no address", "want tcp://HOST:PORT or tls://HOST:PORT"
        )


def connect(address: str) -> Client:
    """Raises :class:`LabError` where nobody answers, or Dask's configuration of TLS forbids it."""
    check_address(address)
    try:
        from distributed import Client
    except ImportError:
        raise LabError(
            f"--dask {address}", "Dask is not installed", "pip install 'pyvmm-kvm[cluster]'"
        ) from None
    _check_security(address)
    try:
        # What it says of a connection that is lost is said here, in one line.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return Client(  # type: ignore[no-untyped-call]
            address, timeout=CONNECT_S, set_as_default=False
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        cause = str(error).splitlines()[0] if str(error) else "no scheduler answers there"
        remedy = "start one: dask scheduler"
        if "(closed)" in cause:
            cause = f"it ended the connection: {cause.rpartition('>: ')[2]}"
            remedy = "a scheduler with TLS is tls://HOST:PORT and wants a certificate that it knows"
        raise LabError(f"--dask {address}", cause, remedy) from None


def _check_security(address: str) -> None:
    """What a client says of it with a traceback, and 20 s later."""
    from distributed import Security

    try:
        security = Security().get_connection_args("client")  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:  # which of the files it is nobody says
        cause = f"a certificate of TLS cannot be read: {getattr(error, 'strerror', '') or error}"
        raise LabError(f"--dask {address}", cause, _NAME_THEM) from None
    if address.startswith("tls://"):
        if security["ssl_context"] is None:
            raise LabError(f"--dask {address}", "there is no certificate for TLS", _NAME_THEM)
    elif security["require_encryption"]:
        cause = "Dask's configuration wants TLS (distributed.comm.require-encryption)"
        raise LabError(f"--dask {address}", cause, "a scheduler with TLS is tls://HOST:PORT")
