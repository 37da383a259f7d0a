"""What a case is, and the decorator that makes one.

    @case("PC3", "odd pages back to shared inside a private range",
          needs=("private_memory",), vary={"gpa": (512 * KIB, 4 * GIB)})
    def odd_pages(tools: Toolbox, gpa: int) -> None:
        ...

Each combination of the varied parameters is a case of its own, with a result of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB
HUGE = 2 * MIB

# A case that takes longer hangs. A quiet machine needs a second for most of them, and
# Python in a software-emulated kernel twenty times that.
DEADLINE_S = 60.0
_LONGEST = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One function with one combination of parameters.

    ``needs`` are names of :data:`pyvmm.validate.kit.capabilities.CAPABILITIES`; ``backend``
    is the ABI that the case is about, "" for one that every KVM must pass; a case that is
    ``alone`` counts what the whole system has, or times things, so nothing runs beside it.
    ``examples`` is how many random scripts a case of the model plays. ``name`` is
    ``PC3.odd_pages[gpa=4G]``: unique in the catalogue, the same in every run.
    """

    id: str
    title: str
    function: Callable[..., None]
    subject: str
    needs: tuple[str, ...] = ()
    backend: str = ""
    alone: bool = False
    deadline_s: float = DEADLINE_S
    examples: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        values = ",".join(f"{key}={_word(value)}" for key, value in self.parameters.items())
        name = f"{self.id}.{self.function.__name__}" + (f"[{values}]" if values else "")
        object.__setattr__(self, "name", name)

    @property
    def longest_s(self) -> float:
        """How long it may take in all, if it gets on; ``deadline_s`` is for what does not."""
        return _LONGEST * self.deadline_s


def case(
    id: str,
    title: str,
    *,
    needs: Sequence[str] = (),
    backend: str = "",
    vary: Mapping[str, Iterable[Any]] | None = None,
    combinations: Iterable[Mapping[str, Any]] | None = None,
    alone: bool = False,
    deadline_s: float = DEADLINE_S,
    examples: int = 0,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a function into the catalogue, once per combination.

    ``vary`` gives each parameter's values and makes all combinations of them;
    ``combinations`` lists them instead. All cases need ``kvm``, said or not.
    """
    if combinations is None:
        names = list(vary or {})
        values = itertools.product(*(vary or {}).values())
        combinations = [dict(zip(names, each, strict=True)) for each in values]
    chosen = list(combinations)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        subject = function.__module__.rpartition(".")[2]
        for parameters in chosen:
            REGISTERED.append(
                Case(
                    id,
                    title,
                    function,
                    subject,
                    tuple(dict.fromkeys(("kvm", *needs))),
                    backend,
                    alone,
                    deadline_s,
                    examples,
                    parameters,
                )
            )
        return function

    return register


REGISTERED: list[Case] = []


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size_word(value)
    if isinstance(value, tuple):
        return "+".join(_word(each) for each in value)
    return str(value)


def size_word(value: int) -> str:
    """``4G``, ``512K``, ``2M+4K``; small numbers as they are."""
    if value < KIB:
        return str(value)
    parts, rest = [], value
    for unit, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        count, rest = divmod(rest, unit)
        if count:
            parts.append(f"{count}{letter}")
    return hex(value) if rest else "+".join(parts)
