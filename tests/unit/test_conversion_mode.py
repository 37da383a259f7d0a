"""Why page states belong to whom they belong: the parameter, or that there is none."""

from __future__ import annotations

import pytest

from pyvmm.memory import conversion_mode


@pytest.mark.parametrize(
    ("parameter", "in_place", "not_in_place"),
    [
        (True, "gmem_in_place_conversion is on", None),
        (False, None, "gmem_in_place_conversion is off"),
        (None, "CONFIG_KVM_VM_MEMORY_ATTRIBUTES is off", "has no in-place conversion"),
    ],
)
def test_why(
    monkeypatch: pytest.MonkeyPatch,
    parameter: bool | None,
    in_place: str | None,
    not_in_place: str | None,
) -> None:
    monkeypatch.setattr(conversion_mode, "in_place_conversion", lambda: parameter)
    if in_place:
        assert in_place in conversion_mode.why_in_place()
    if not_in_place:
        assert not_in_place in conversion_mode.why_not_in_place()
