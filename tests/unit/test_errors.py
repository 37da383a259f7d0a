"""Errors come out of a worker process as they were."""

from __future__ import annotations

import copy
import pickle

import pytest

from pyvmm.errors import ClosedError, ConfigurationError, GuestError, KvmError, PyvmmError
from pyvmm.lab.errors import LabError


@pytest.mark.parametrize(
    "error",
    [
        PyvmmError("thing", "cause", "remedy"),
        ConfigurationError("5 vCPUs", "too many"),
        GuestError("x.S", "it is empty"),
        ClosedError("machine"),
        KvmError("KVM_CREATE_VM", 22, "type 5"),
        KvmError("timer_create", 11, remedy="raise it"),
        LabError("lab", "cause"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_a_process_boundary(error: PyvmmError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
        assert again.args == error.args
        assert getattr(again, "errno", None) == getattr(error, "errno", None)
