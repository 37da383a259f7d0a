"""``pyvmm doctor``: what this host's KVM can do, what is missing, and the remedy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pyvmm.cli import main as status
from pyvmm.cli.run_text import has_colour
from pyvmm.doctor import BackendFacts, Checkup, DeviceFacts, examine
from pyvmm.host import host_facts, is_virtual

SCHEMA = 1

_BOLD, _GREEN, _RED, _YELLOW = "1", "32", "31", "33"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what this host's KVM can do",
        description="Say what this host's KVM can do, what is missing for which backend, and the "
        "remedy. Exit status: 0 when at least one backend works, 4 when none does.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(func=doctor)


def doctor(options: argparse.Namespace) -> int:
    checkup = examine()
    if options.json:
        print(json.dumps(to_json(checkup)))
    else:
        colour = sys.stdout.isatty() and has_colour()
        for line in _lines(checkup, colour):
            print(line)
    return status.PASSED if checkup.usable else status.SKIPPED


def to_json(checkup: Checkup) -> dict[str, Any]:
    """The object of ``--json``; with ``schema``, ``usable`` and ``host`` a :class:`Checkup`."""
    host = {**host_facts(), "virtual": is_virtual()}
    return {"schema": SCHEMA, "usable": checkup.usable, "host": host, **asdict(checkup)}


def _lines(checkup: Checkup, colour: bool) -> Iterator[str]:
    def styled(text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if colour else text

    def mark(works: bool) -> str:
        return styled("yes", _GREEN) if works else styled("no ", _RED)

    host = host_facts()
    virtual = ", itself virtual" if is_virtual() else ""
    python = f"Python {host['python']}"
    yield f"{host['cpu']}, {host['cpus']} CPUs{virtual}, Linux {host['kernel']}, {python}"
    yield from _device_lines(checkup.device, mark)

    yield ""
    yield styled("Backends", _BOLD)
    for name, backend in checkup.backends.items():
        yield f"  {mark(backend.usable)} {name:<24}{_backend_words(backend)}"
        if backend.remedy:
            yield f"      {'':<24}{styled('remedy', _YELLOW)}: {backend.remedy}"

    if checkup.behaviours:
        yield ""
        yield styled("Tried", _BOLD)
    for name, behaviour in checkup.behaviours.items():
        wanted = "" if behaviour.works else f" (wanted for {behaviour.purpose})"
        yield f"  {mark(behaviour.works)} {name:<24}{behaviour.seen}{wanted}"

    if checkup.capabilities:
        yield ""
        types = list(checkup.vm_types)
        heads = "".join(f"{head:>18}" for head in ["/dev/kvm", *(f"{name} VM" for name in types)])
        yield styled(f"{'Capabilities':<38}{heads}", _BOLD)
    for name, capability in checkup.capabilities.items():
        answers = [capability.system, *capability.vm.values()]
        values = "".join(f"{'?' if answer is None else answer:>18}" for answer in answers)
        yield f"  {name:<36}{values}"

    yield ""
    yield styled("Limits", _BOLD)
    for name, limit in checkup.limits.items():
        value = "unlimited" if limit.value is None else str(limit.value)
        remedy = f"{styled('remedy', _YELLOW)}: {limit.remedy}" if limit.remedy else ""
        yield f"  {mark(limit.enough)} {name:<24}{value:<12}{remedy}".rstrip()

    yield ""
    yield styled("Programs and packages", _BOLD)
    for name, tool in checkup.tools.items():
        where = (
            tool.path or f"missing for {tool.purpose}; {styled('remedy', _YELLOW)}: {tool.remedy}"
        )
        yield f"  {mark(bool(tool.path))} {name:<24}{where}"

    yield ""
    yield styled("Kernels of the lab", _BOLD)
    width = max((len(name) + 2 for name in checkup.kernels), default=0)
    for name, release in checkup.kernels.items():
        yield f"  {name:<{max(28, width)}}Linux {release}"
    if not checkup.kernels:
        yield f"  none; {styled('remedy', _YELLOW)}: pyvmm lab build"


def _device_lines(device: DeviceFacts, mark: Any) -> Iterator[str]:
    modules = ", ".join(device.modules) or "no vendor module"
    nested = "".join(
        f", {name} {'nests' if value else 'does not nest'}" for name, value in device.nested.items()
    )
    if device.usable:
        yield f"{mark(True)} {device.path}, API {device.api_version}, {modules}{nested}"
        return
    yield f"{mark(False)} {device.path}: {device.problem} ({modules})"
    yield f"    remedy: {device.remedy}"


def _backend_words(backend: BackendFacts) -> str:
    return f"works by {backend.mechanism}" if backend.usable else backend.missing
