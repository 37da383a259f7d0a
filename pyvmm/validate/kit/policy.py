"""Memory policies (Documentation/admin-guide/mm/numa_memory_policy.rst): mbind, get_mempolicy."""

from __future__ import annotations

import ctypes
import errno

from pyvmm.validate.kit.check import CheckFailed, Missing, errno_name

# <linux/mempolicy.h>
MPOL_DEFAULT, MPOL_BIND = 0, 2
_NODE, _ADDRESS = 1, 2
_MBIND, _GET_MEMPOLICY = 237, 239  # <asm/unistd_64.h>
_libc = ctypes.CDLL(None, use_errno=True)


def bind_to_node_0(address: int, size: int) -> None:
    """MPOL_BIND to the node that is there on every machine."""
    nodes = (ctypes.c_ulong * 16)(1)
    where, length = ctypes.c_void_p(address), ctypes.c_ulong(size)
    if _libc.syscall(_MBIND, where, length, MPOL_BIND, nodes, 65, 0):
        if ctypes.get_errno() == errno.ENOSYS:
            raise Missing("memory policies (CONFIG_NUMA)")
        raise CheckFailed(f"mbind of a guest_memfd: {errno_name(ctypes.get_errno())}")


def mode_of(address: int) -> int:
    """The mode of the policy of the page at an address."""
    return _ask(address, _ADDRESS)


def node_of(address: int) -> int:
    """The node of the page at an address, which is made if it is not there."""
    return _ask(address, _ADDRESS | _NODE)


def _ask(address: int, what: int) -> int:
    value, where = ctypes.c_int(-1), ctypes.c_void_p(address)
    if _libc.syscall(_GET_MEMPOLICY, ctypes.byref(value), None, 0, where, what):
        raise CheckFailed(f"get_mempolicy of a guest_memfd: {errno_name(ctypes.get_errno())}")
    return value.value
