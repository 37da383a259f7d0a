"""Two machines at once in two threads of one process: neither knows of the other.

Prints:
    first: PASS, 'one'
    second: PASS, 'two'
"""

from concurrent.futures import ThreadPoolExecutor

from pyvmm import Machine, RunReport, assemble


def run(text: str) -> RunReport:
    guest = assemble(f"""
        .include "pyvmm.inc"
        guest "two_machines"
        puts "{text}"
        exit_guest $0
    """)
    with Machine(guest) as machine:
        return machine.run(deadline_s=10)


with ThreadPoolExecutor(2) as threads:
    first, second = threads.map(run, ("one", "two"))
print(f"first: {first.result.value.upper()}, {first.console!r}")
print(f"second: {second.result.value.upper()}, {second.console!r}")
