"""pyvmm's own words for memory; the values are those of csrc/region.h and csrc/memory.h."""

from __future__ import annotations

from enum import IntEnum

from pyvmm.native import lib


class PageState(IntEnum):
    """Whether the host can touch a page (shared) or cannot (private)."""

    SHARED = lib.PAGE_SHARED
    PRIVATE = lib.PAGE_PRIVATE


class Policy(IntEnum):
    """What happens when a guest touches a page through the wrong view."""

    CONVERT = lib.POLICY_CONVERT
    DENY = lib.POLICY_DENY
    ASK = lib.POLICY_ASK


class Mechanism(IntEnum):
    """How a backend makes a page's wrong view absent; see csrc/memory.h."""

    PROT_NONE = lib.MECHANISM_PROT_NONE
    SLOTS = lib.MECHANISM_SLOTS
    ATTRIBUTES = lib.MECHANISM_ATTRIBUTES
    PRESENCE = lib.MECHANISM_PRESENCE
