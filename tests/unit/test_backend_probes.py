"""The probes for page states on kernels of every kind, made up by what their ioctls answer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from pyvmm import doctor
from pyvmm.errors import KvmError, UnsupportedError
from pyvmm.memory import backends, conversion_mode
from pyvmm.memory.backends import BACKENDS, choose_backend
from pyvmm.memory.backends import in_place as in_place_backend
from pyvmm.memory.backing import Support
from pyvmm.native import ffi, lib
from pyvmm.page_states import Mechanism

CREATE_VM, CREATE, SET = "KVM_CREATE_VM", "KVM_CREATE_GUEST_MEMFD", "KVM_SET_MEMORY_ATTRIBUTES2"
MMAP, INIT_SHARED = lib.GUEST_MEMFD_FLAG_MMAP, lib.GUEST_MEMFD_FLAG_INIT_SHARED
PRIVATE = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE
PROTECTED = lib.KVM_X86_SW_PROTECTED_VM
OLD = {
    lib.KVM_CAP_MEMORY_ATTRIBUTES: PRIVATE,
    lib.KVM_CAP_GUEST_MEMFD: 1,
    lib.KVM_CAP_USER_MEMORY2: 1,
    lib.KVM_CAP_MEMORY_FAULT_INFO: 1,
}
# The number of KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES may move: no answer to it here.
NEW = {lib.KVM_CAP_GUEST_MEMFD_FLAGS: MMAP | INIT_SHARED}


class Kernel:
    """A /dev/kvm, its VMs and their files in one; ``errors`` has what a call is refused with."""

    def __init__(self, errors: dict[str, int], capabilities: dict[int, int]) -> None:
        self.errors, self.capabilities = errors, capabilities
        self.opened = self.closed = 0

    def call(self, name: str) -> None:
        if number := self.errors.get(name):
            raise KvmError(name, number)

    def create_vm(self, vm_type: int = 0) -> Kernel:
        self.call(CREATE_VM)
        self.opened += 1
        return self

    def create_guest_memfd(self, size: int, flags: int = 0) -> Kernel:
        self.call(CREATE)
        self.opened += 1
        return self

    def ioctl(self, name: str, request: Any) -> None:
        assert not any(bytes(ffi.buffer(request)))
        self.call(name)

    def check_extension(self, capability: int) -> int:
        return self.capabilities.get(capability, 0)

    def has(self, capability: int) -> bool:
        return self.check_extension(capability) > 0

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def probe(name: str, kernel: Kernel) -> Support:
    found = BACKENDS[name].probe(kernel)  # type: ignore[arg-type]
    assert kernel.opened == kernel.closed
    return found


@pytest.fixture
def parameter(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool | None], None]:
    """Set kvm.gmem_in_place_conversion; None: there is none."""

    def set_it(value: bool | None) -> None:
        for module in (conversion_mode, in_place_backend):
            monkeypatch.setattr(module, "in_place_conversion", lambda: value)

    return set_it


@pytest.mark.parametrize("value", [True, None])
def test_the_ioctl_and_both_flags_are_in_place(
    parameter: Callable[[bool | None], None], value: bool | None
) -> None:
    parameter(value)
    assert probe("in_place", Kernel({SET: errno.EINVAL}, NEW)) == Support(Mechanism.ATTRIBUTES)


@pytest.mark.parametrize(
    ("errors", "capabilities", "value", "missing", "remedy"),
    [
        ({CREATE_VM: errno.EINVAL}, {}, None, "no VM type 1", "lab build --name in-place"),
        ({CREATE: errno.ENOTTY}, {}, None, "no in-place conversion", "lab build"),
        ({SET: errno.ENOTTY}, OLD, None, "no in-place conversion", "lab build"),
        ({SET: errno.ENOTTY}, OLD, False, "conversion is off", "gmem_in_place_conversion=1"),
        ({SET: errno.ENOTTY}, OLD, True, "and yet kvm.gmem_in_place_conversion is on", "lab"),
        ({}, OLD, None, "no in-place conversion", "lab build"),
        ({SET: errno.EINVAL}, {}, True, "FLAGS is 0x0", "lab build"),
        (
            {SET: errno.EINVAL},
            {lib.KVM_CAP_GUEST_MEMFD_FLAGS: MMAP},
            True,
            "cannot be mapped with its pages shared (KVM_CAP_GUEST_MEMFD_FLAGS is 0x1)",
            "lab build",
        ),
    ],
)
def test_what_in_place_lacks(
    parameter: Callable[[bool | None], None],
    errors: dict[str, int],
    capabilities: dict[int, int],
    value: bool | None,
    missing: str,
    remedy: str,
) -> None:
    parameter(value)
    found = probe("in_place", Kernel(errors, capabilities))
    assert found.mechanism is None
    assert missing in found.missing and remedy in found.remedy


@pytest.mark.parametrize(
    ("value", "why", "remedy"),
    [
        (True, "is on", "load kvm with gmem_in_place_conversion=0"),
        (False, "and yet kvm.gmem_in_place_conversion is off", "load kvm"),
        # The default configuration of 7.4: there is nothing to load kvm with.
        (None, "no other mode", "a kernel with CONFIG_KVM_VM_MEMORY_ATTRIBUTES=y"),
    ],
)
def test_guest_memfd_where_states_are_the_files(
    parameter: Callable[[bool | None], None], value: bool | None, why: str, remedy: str
) -> None:
    parameter(value)
    found = probe("guest_memfd", Kernel({SET: errno.EINVAL}, NEW))
    assert found.mechanism is None
    assert why in found.missing and remedy in found.remedy
    assert "use the in_place backend" in found.remedy
    assert ("load" in found.remedy) == (value is not None)


def test_guest_memfd_where_states_are_the_vms() -> None:
    found = probe("guest_memfd", Kernel({SET: errno.ENOTTY}, OLD))
    assert found == Support(Mechanism.ATTRIBUTES)


@pytest.mark.parametrize("name", ["in_place", "guest_memfd"])
@pytest.mark.parametrize("call", [CREATE_VM, CREATE, SET])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_host_that_has_too_little_is_no_kernel_without_it(
    name: str, call: str, number: int
) -> None:
    kernel = Kernel({call: number}, {**OLD, **NEW})
    with pytest.raises(KvmError) as caught:
        probe(name, kernel)
    assert caught.value.errno == number and kernel.opened == kernel.closed


@pytest.mark.parametrize(
    ("errors", "vm_type", "works", "seen"),
    [
        ({SET: errno.EINVAL}, PROTECTED, True, "KVM_SET_MEMORY_ATTRIBUTES2 is there"),
        ({SET: errno.ENOTTY}, PROTECTED, False, "page states belong to the VM"),
        # The ioctl refuses whatever a VM without private memory asks: that is no answer.
        ({SET: errno.EINVAL}, None, False, "no VM type 1"),
    ],
)
def test_doctor_tries_a_vm_that_has_private_memory(
    errors: dict[str, int], vm_type: int | None, works: bool, seen: str
) -> None:
    kernel: Any = Kernel(errors, OLD)
    found, words = doctor._try_in_place(kernel, vm_type)
    assert found is works and seen in words


ORDER = ["memory_error", "in_place", "guest_memfd", "emulated"]


@pytest.mark.parametrize("first", range(len(ORDER) + 1))
def test_the_order_of_auto(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    assert list(BACKENDS) == ORDER
    found = {
        name: Support(Mechanism.ATTRIBUTES if at >= first else None)
        for at, name in enumerate(ORDER)
    }
    monkeypatch.setattr(backends, "_found", found)
    kernel: Any = Kernel({}, {})
    if first == len(ORDER):
        with pytest.raises(UnsupportedError):
            choose_backend(kernel)
        return
    assert choose_backend(kernel)[0].name == ORDER[first]
