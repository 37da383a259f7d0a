"""What callers give, checked before the kernel or C sees it.

Nothing here costs KVM_RUN anything: it takes no structure. What a pointer that was cast
points to, and whether it still does, cannot be known; its type is believed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import index
from typing import Any, NamedTuple

from pyvmm.errors import ConfigurationError, WrongTypeError
from pyvmm.kvm.ioctls import (
    ALSO_TAKEN,
    MAY_BE_NULL,
    SIZED_BY_THE_HOST,
    TAILS,
    Ioctl,
    Tail,
    is_written,
)
from pyvmm.native import ffi

_CData: Any = ffi.CData
_BYTE_TYPES = frozenset(ffi.typeof(name) for name in ("char", "unsigned char", "signed char"))
_NOT_INTEGERS = ("float", "double", "long double", "_Bool")
MOST_U32 = (1 << 32) - 1
MOST_U64 = (1 << 64) - 1
MOST_I64 = (1 << 63) - 1
MOST_DESCRIPTOR = (1 << 31) - 1
_MOST_BITS = 128  # of a number that is worth showing
_USUAL = 1 << 64

#: How many bytes this host's kernel takes for an ioctl of that name, where its type has fewer.
Least = Callable[[str], int]


class _Wanted(NamedTuple):
    """What an ioctl points to: its types, and whether a pointer to the first will do as it is."""

    name: str
    pointers: tuple[Any, ...]
    item: Any
    size: int
    tail: Tail | None
    tail_offset: int
    tail_item_size: int
    is_plain: bool
    may_be_null: bool
    is_written: bool


@lru_cache(maxsize=1024)
def _wanted(entry: Ioctl) -> _Wanted:
    types = ALSO_TAKEN.get(entry.name, (entry.type or "",))
    number(f"number of {entry.name}", entry.number)
    try:
        item = ffi.typeof(types[0])
    except ffi.error:
        cause = f"its type {types[0]!r} is no C type that pyvmm declares"
        raise ConfigurationError(entry.name, cause, 'use an array, as "uint64_t[4]"') from None
    tail, tail_offset, tail_item_size = TAILS.get(types[0]), 0, 1
    if tail is not None and tail.array:
        elements = dict(item.fields)[tail.array]
        tail_offset, tail_item_size = elements.offset, ffi.sizeof(elements.type.item)
    return _Wanted(
        f"{types[0]} *",
        tuple(ffi.typeof(ffi.getctype(each, "*")) for each in types),
        item,
        ffi.sizeof(item),
        tail,
        tail_offset,
        tail_item_size,
        tail is None and entry.name not in SIZED_BY_THE_HOST,
        entry.name in MAY_BE_NULL,
        is_written(entry),
    )


@lru_cache(maxsize=1024)
def usual(entry: Ioctl) -> Any:
    """The type of pointer that will do as it is unless it is null; None where none will."""
    wanted = _wanted(entry)
    return wanted.pointers[0] if wanted.is_plain else None


def pointer(entry: Ioctl, argument: Any, least: Least) -> Any:
    """``argument`` as the pointer that the ioctl wants: of its type, not null, and long enough.

    It may be a cffi pointer to the type, an array of it or of bytes, or anything with the
    buffer protocol. Raises :class:`WrongTypeError` and :class:`ConfigurationError`,
    which name both types.
    """
    wanted = _wanted(entry)
    if isinstance(argument, _CData):
        if wanted.tail and ffi.typeof(argument) is wanted.pointers[0] and argument:
            end = getattr(argument, wanted.tail.length) * wanted.tail_item_size
            if wanted.tail_offset + end <= len(ffi.buffer(argument)):
                return argument
        return _checked_cdata(entry, wanted, argument, least)
    if isinstance(argument, int):
        if argument == 0 and wanted.may_be_null:
            return ffi.NULL
        remedy = ""
        if argument:
            remedy = f"for a bare address: ioctl(Ioctl({entry.name!r}, number), address)"
        raise _wrong(entry, wanted, f"int {shown(argument, '#x')}", remedy)
    return _checked_buffer(entry, wanted, argument, least)


def _wrong(entry: Ioctl, wanted: _Wanted, given: str, remedy: str = "") -> WrongTypeError:
    return WrongTypeError(entry.name, f"wants {wanted.name}, was given {given}", remedy)


def _checked_cdata(entry: Ioctl, wanted: _Wanted, argument: Any, least: Least) -> Any:
    kind = ffi.typeof(argument)
    if kind.kind == "pointer":
        if not argument:
            if wanted.may_be_null:
                return argument
            raise ConfigurationError(
                entry.name, f"wants {wanted.name}, was given a null {kind.cname}"
            )
        if kind not in wanted.pointers and not _is_same_integer(kind.item, wanted.item):
            remedy = ""
            if kind.item.kind == "void" or kind.item in _BYTE_TYPES:
                remedy = f"its size is not known: ffi.cast() it to {wanted.name}, or give an array"
            raise _wrong(entry, wanted, kind.cname, remedy)
        room = len(ffi.buffer(argument))
    elif kind.kind == "array" and (
        kind.item in _BYTE_TYPES
        or any(kind.item == each.item for each in wanted.pointers)
        or _is_same_integer(kind.item, wanted.item)
        or (wanted.item.kind == "array" and kind.item is wanted.item.item)
    ):
        room = ffi.sizeof(argument)
    else:
        remedy = "give ffi.addressof() of it" if kind == wanted.item else ""
        raise _wrong(entry, wanted, kind.cname, remedy)
    _check_room(entry, wanted, argument, room, kind.cname, least)
    return argument


def _is_same_integer(given: Any, wanted: Any) -> bool:
    """Whether both are integers of one size: uint64_t, unsigned long and __u64 are three types."""
    return (
        given.kind == wanted.kind == "primitive"
        and given.cname not in _NOT_INTEGERS
        and ffi.sizeof(given) == ffi.sizeof(wanted)
    )


def _checked_buffer(entry: Ioctl, wanted: _Wanted, argument: Any, least: Least) -> Any:
    kind = type(argument).__name__
    try:
        # Released at once: some Pythons crash over one that a raised error's frames keep.
        with memoryview(argument) as view:
            is_read_only, room, is_whole = view.readonly, view.nbytes, view.c_contiguous
            head = view.tobytes()[: wanted.size] if wanted.tail else b""
    except (TypeError, ValueError, BufferError):
        raise _wrong(entry, wanted, kind) from None
    if not is_whole:
        raise _wrong(entry, wanted, f"{kind}, which is not contiguous")
    if is_read_only and wanted.is_written:
        raise _wrong(
            entry, wanted, f"{kind}, which is read-only", "the kernel writes it: give a bytearray"
        )
    _check_room(entry, wanted, ffi.from_buffer(head), room, kind, least)
    return ffi.from_buffer(argument)


def _check_room(
    entry: Ioctl,
    wanted: _Wanted,
    head: Any,
    room: int,
    kind: str,
    least: Least,
) -> None:
    """``head`` is where the structure begins, ``room`` how many bytes there are."""
    size = max(wanted.size, least(entry.name))
    if room < size:
        if _is_of_unknown_size(head):
            return
        raise ConfigurationError(
            entry.name, f"wants {wanted.name} ({size} bytes), was given {kind} ({room} bytes)"
        )
    if wanted.tail is None:
        return
    length = getattr(ffi.cast(wanted.pointers[0], head), wanted.tail.length)
    size = wanted.tail_offset + length * wanted.tail_item_size
    if room < size and not _is_of_unknown_size(head):
        raise ConfigurationError(
            entry.name,
            f"wants {wanted.name} of {size} bytes for {wanted.tail.length} = {length}, "
            f"was given {kind} ({room} bytes)",
        )


def _is_of_unknown_size(head: Any) -> bool:
    """What cffi allocated it knows the size of; of any other pointer it knows the type only."""
    return ffi.typeof(head).kind == "pointer" and " owning " not in repr(head)


# ---- numbers ----


def integer(what: str, value: Any) -> int:
    """``value`` as an int.

    Raises :class:`WrongTypeError` for what is none, and :class:`ConfigurationError` for one
    that is too long to be shown.
    """
    if type(value) is int and -_USUAL < value < _USUAL:
        return value
    try:
        found = index(value)
    except TypeError:
        raise WrongTypeError(
            what, f"wants an integer, was given {shown(value)} ({type(value).__name__})"
        ) from None
    if found.bit_length() > _MOST_BITS:
        raise ConfigurationError(what, f"a number of {found.bit_length()} bits is too large")
    return found


def number(what: str, value: Any, low: int = 0, high: int = MOST_U64) -> int:
    """``value`` as an int from ``low`` to ``high``.

    Raises as :func:`integer`, and :class:`ConfigurationError` for one that is too small or
    too large.
    """
    if type(value) is int and low <= value <= high:  # what nearly all calls give
        return value
    found = integer(what, value)
    if not low <= found <= high:
        limits = f"{low} to {high:#x}" if high > 9 else f"{low} to {high}"
        raise ConfigurationError(f"{what} {shown(found)}", f"it must be {limits}")
    return found


def c_structure(wanted: str, given: Any) -> Any:
    """A pointer of C's own to ``wanted``. Raises :class:`WrongTypeError`, also for null."""
    kind = ffi.typeof(given).cname if isinstance(given, _CData) else type(given).__name__
    if kind != wanted or not given:
        null = "a null " if kind.endswith("*") and not given else ""
        raise WrongTypeError(wanted.removesuffix(" *"), f"wants {wanted}, was given {null}{kind}")
    return given


def need(what: str, value: object, *kinds: type) -> None:
    """Raise :class:`WrongTypeError` when ``value`` is of none of these types."""
    if not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise WrongTypeError(what, f"wants {names}, was given {type(value).__name__}")


def listed(what: str, values: Any) -> list[Any]:
    """``values`` as a list. Raises :class:`WrongTypeError` for what is no row of things."""
    try:
        return list(values)
    except TypeError:
        raise WrongTypeError(
            what, f"wants a sequence, was given {shown(values)} ({type(values).__name__})"
        ) from None


def not_a_number(entry: Ioctl, argument: Any) -> Exception:
    """What is wrong with an argument that C did not take as the ioctl's integer."""
    if isinstance(argument, _CData):
        return WrongTypeError(
            entry.name, f"wants an integer, was given {ffi.typeof(argument).cname}"
        )
    try:
        number(f"number of {entry.name}", entry.number)
        number(entry.name, argument)
    except (ConfigurationError, WrongTypeError) as error:
        return error
    return WrongTypeError(entry.name, f"wants an integer, was given {type(argument).__name__}")


def structure(type: str, **fields: Any) -> Any:
    """A new ``type *`` with these integers in its fields.

    Raises as :func:`number`, naming the field.
    """
    try:
        return ffi.new(f"{type} *", fields)
    except (OverflowError, TypeError):
        known = dict(ffi.typeof(type).fields)
        for name, value in fields.items():
            check_integer(name, value, known[name].type)
        raise


def check_integer(what: str, value: Any, kind: Any) -> None:
    """Raise as :func:`number` when ``value`` does not fit into ``kind``, a C integer type."""
    if kind.kind == "primitive":
        bits = 8 * ffi.sizeof(kind)
        if int(ffi.cast(kind, -1)) < 0:
            number(what, value, -(1 << bits - 1), (1 << bits - 1) - 1)
        else:
            number(what, value, 0, (1 << bits) - 1)


def shown(value: Any, form: str = "") -> str:
    """``value`` in a message's line, however long it is; small numbers as ``form`` says."""
    if isinstance(value, int):
        text = format(value, form) if -4096 < value < 4096 else f"{value:#x}"
    else:
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
