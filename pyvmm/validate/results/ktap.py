"""KTAP version 1, as Documentation/dev-tools/ktap.rst has it and kunit.py parses it."""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.printable import printable
from pyvmm.validate.results.result import CaseResult, State

_DIRECTIVES = {"skip": "SKIP", "known": "XFAIL"}


def heading(count: int) -> list[str]:
    return ["KTAP version 1", f"1..{count}"]


def verdict(number: int, name: str, state: str, messages: Iterable[str] = ()) -> list[str]:
    """The lines of one result: what is wrong, or was seen, as diagnostics, then the verdict.

    ``state`` is one of :class:`pyvmm.validate.results.result.State`; for skip and known the first
    message is the reason.
    """
    # A '#' begins a directive.
    name = printable(name).replace("#", "")
    told = [printable(message) for message in messages]
    if state in _DIRECTIVES:
        reason = told[0] if told else ""
        return [f"ok {number} {name} # {_DIRECTIVES[state]} {reason}".rstrip()]
    if state == "pass":
        return [*(f"# {line}" for line in told), f"ok {number} {name}"]
    directive = "" if state == "fail" else f" # {state.upper()}"
    return [*(f"# {line}" for line in told), f"not ok {number} {name}{directive}"]


def lines(number: int, result: CaseResult) -> list[str]:
    """The lines of a case's result."""
    messages = [text for text in (result.words, result.detail) if text]
    if result.state.bad or result.state is State.PASS:
        messages = [f"{result.name}: {text}" for text in messages]
    return verdict(number, f"{result.name} {result.title}", result.state, messages)
