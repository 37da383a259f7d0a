"""CPU models and features by their names: what a guest's CPUID is to have, of what KVM can do.

The names are those of QEMU's -cpu and of /proc/cpuinfo. Intel SDM, volume 2, CPUID; AMD APM,
volume 3, appendix E.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pyvmm.errors import ConfigurationError

if TYPE_CHECKING:
    from pyvmm.kvm.cpuid import CpuidEntry

#: How many vCPUs have APIC ids of 8 bits, of which the last means all.
MOST_VCPUS = 255

# Leaf, index and register of each word of feature bits, and the names of its bits from bit 0 on;
# "-" is a bit without a name here.
_WORDS: dict[tuple[int, int, str], str] = {
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn "
    "clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (
        0x1,
        0,
        "ecx",
    ): "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr "
    "pdcm - pcid dca sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave osxsave avx f16c "
    "rdrand hypervisor",
    (0x7, 0, "ebx"): "fsgsbase tsc-adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm - - mpx - "
    "avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel-pt avx512pf avx512er "
    "avx512cd sha-ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512vbmi2 cet-ss gfni vaes "
    "vpclmulqdq avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - "
    "bus-lock-detect cldemote - movdiri movdir64b - - pks",
    (
        0x7,
        1,
        "eax",
    ): "- - - - avx-vnni avx512-bf16 - - - - fzrm fsrs fsrc - - - - - - - - amx-fp16 - "
    "avx-ifma - - lam",
    (
        0x8000_0001,
        0,
        "edx",
    ): "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt "
    "pdpe1gb rdtscp - lm 3dnowext 3dnow",
    (0x8000_0001, 0, "ecx"): "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse "
    "3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core "
    "perfctr-nb",
    (0x8000_000A, 0, "edx"): "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid "
    "decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif",
}
_BITS: dict[str, tuple[tuple[int, int, str], int]] = {
    name: (word, bit)
    for word, names in _WORDS.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}
# Other names of the same.
_ALIASES = {
    "sse3": "pni",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "tsc_adjust": "tsc-adjust",
    "lahf_lm": "lahf-lm",
}
# What no guest of a model lacks, for KVM itself needs or adds it.
_ALWAYS = "apic hypervisor x2apic"
_BASIC = (
    "fpu de pse tsc msr pae mce cx8 sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 pni "
    "syscall nx lm"
)
_MODELS: dict[str, str | None] = {
    "max": None,  # all that KVM has
    "host": None,
    "kvm64": f"{_BASIC} cx16",
    "qemu64": f"{_BASIC} cx16 lahf-lm",
    "Opteron_G1": f"{_BASIC} vme",
}
_VENDOR_LEAVES = (0x0, 0x8000_0000)
_ADDRESS_SIZES = 0x8000_0008


@dataclass(frozen=True, slots=True)
class CpuModel:
    """``only`` are the features that a guest may have, None for all; ``wanted`` go before it.

    ``vendor`` has 12 characters, or is "" for the host's. ``address_bits`` is how many bits a
    guest physical address has, None for the host's.
    """

    only: frozenset[str] | None = None
    wanted: Mapping[str, bool] = field(default_factory=dict)
    vendor: str = ""
    address_bits: int | None = None

    def entries(self, supported: Iterable[CpuidEntry]) -> Iterator[CpuidEntry]:
        """``supported``, which KVM has, less what the model lacks; nothing is ever added."""
        for entry in supported:
            changed = {
                register: self._masked((entry.function, entry.index, register), value)
                for register, value in (("eax", entry.eax), ("ebx", entry.ebx))
                + (("ecx", entry.ecx), ("edx", entry.edx))
                if (entry.function, entry.index, register) in _WORDS
            }
            if self.vendor and entry.function in _VENDOR_LEAVES:
                ebx, edx, ecx = struct.unpack("<III", self.vendor.encode())
                changed.update(ebx=ebx, ecx=ecx, edx=edx)
            if self.address_bits is not None and entry.function == _ADDRESS_SIZES:
                changed.update(eax=entry.eax & ~0xFF | self.address_bits)
            yield replace(entry, **changed) if changed else entry

    def _masked(self, word: tuple[int, int, str], value: int) -> int:
        for bit, name in enumerate(_WORDS[word].split()):
            is_wanted = self.wanted.get(name)
            if is_wanted is None:
                is_wanted = self.only is None or name in self.only
            if not is_wanted:
                value &= ~(1 << bit)
        return value


def cpu_model(text: str) -> CpuModel:
    """From what QEMU's -cpu takes: MODEL[,+NAME][,-NAME][,NAME=on|off][,vendor=…][,phys-bits=…].

    Raises :class:`ConfigurationError` for a model or a feature that is not known here.
    """
    name, *parts = text.split(",")
    if name not in _MODELS:
        raise ConfigurationError(
            f"-cpu {name}", "pyvmm has no such model", f"use {', '.join(_MODELS)}"
        )
    names = _MODELS[name]
    only = None if names is None else frozenset(f"{names} {_ALWAYS}".split())
    model = CpuModel(only)
    wanted: dict[str, bool] = {}
    for part in parts:
        key, _, value = part.lstrip("+-").partition("=")
        feature = _ALIASES.get(key, key)
        if key == "vendor" and len(value) == 12 and value.isascii():
            model = replace(model, vendor=value)
        elif key == "phys-bits" and value.isdecimal() and 32 <= int(value) <= 52:
            model = replace(model, address_bits=int(value))
        elif key in ("host-phys-bits", "migratable", "enforce", "check"):
            continue  # as KVM has it, already
        elif feature in _BITS and value in ("", "on", "off"):
            wanted[feature] = not part.startswith("-") and value != "off"
        else:
            raise ConfigurationError(f"-cpu {text}", f"pyvmm does not know {part!r:.40}")
    return replace(model, wanted=wanted)
