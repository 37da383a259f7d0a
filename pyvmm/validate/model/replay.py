"""A script in a file as a case, to be run like any other."""

from __future__ import annotations

from pyvmm.validate.kit.case import DEADLINE_S, Case
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.model.abis import rules_of
from pyvmm.validate.model.play import play
from pyvmm.validate.model.script import load

_STEP_S = 0.5
_CHANCES = 10  # a missing TLB flush is seen only until the vCPU's next interrupt


def replay_case(path: str) -> Case:
    """Raises :class:`ConfigurationError` for a file that is no script."""
    script = load(path, rules_of)
    rules = rules_of(script.abi)
    assert rules is not None

    def replay(tools: Toolbox) -> None:
        for _ in range(_CHANCES if script.has_chances else 1):
            with Toolbox(str(script.seed)) as each:
                play(script, each)

    return Case(
        "REPLAY",
        f"the script in {path}",
        replay,
        "replay",
        needs=("kvm", *script.needs(rules)),
        backend=script.abi,
        deadline_s=DEADLINE_S + _STEP_S * len(script.steps),
    )
