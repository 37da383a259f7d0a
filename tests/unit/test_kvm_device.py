"""What opening /dev/kvm refuses; needs no KVM."""

from __future__ import annotations

import pytest

from pyvmm import Kvm, KvmError, PyvmmError


def test_another_api_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kvm, "get_api_version", lambda self: 11)
    with pytest.raises(PyvmmError, match="/dev/null: it has KVM API version 11, not 12; use"):
        Kvm("/dev/null")


def test_a_device_that_is_not_kvm_is_refused() -> None:
    with pytest.raises(PyvmmError, match="/dev/null: it is not KVM"):
        Kvm("/dev/null")


def test_a_device_that_is_missing_is_named() -> None:
    with pytest.raises(KvmError, match=r"open \(/dev/no-such-kvm\): .*ENOENT.*modprobe"):
        Kvm("/dev/no-such-kvm")
