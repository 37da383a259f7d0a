"""KTAP version 1, as Documentation/dev-tools/ktap.rst has it and kunit.py parses it."""

from __future__ import annotations

from pyvmm.printable import printable
from pyvmm.validate.result import CaseResult, State


def heading(count: int) -> list[str]:
    return ["KTAP version 1", f"1..{count}"]


def lines(number: int, result: CaseResult) -> list[str]:
    """The lines of one result: what is wrong as diagnostics, then the verdict."""
    # A '#' begins a directive.
    name = printable(f"{result.name} {result.title}").replace("#", "")
    message = printable(result.message)
    if result.state is State.SKIP:
        return [f"ok {number} {name} # SKIP {message}"]
    told = [f"# {result.name}: {message}"] if message else []
    if result.detail:
        told.append(f"# {result.name}: {printable(result.detail)}")
    if result.state is State.PASS:
        return [f"ok {number} {name}"]
    if result.state is State.FAIL:
        return [*told, f"not ok {number} {name}"]
    return [*told, f"not ok {number} {name} # {result.state.upper()}"]
