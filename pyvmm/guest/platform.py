"""A platform: the world that a guest is born into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pyvmm.guest.image import Image
from pyvmm.kvm.vcpu import Vcpu


@dataclass(frozen=True, slots=True)
class RegionPlace:
    """Where a region's views are, in bytes; ``shared_gpa`` is None where it has one view."""

    gpa: int
    size: int
    shared_gpa: int | None


class Platform(ABC):
    """A memory map, how a guest is loaded into it, and the state that its vCPUs start in.

    A new world for guests is one class, in a file of its own beside this one.
    """

    #: What a report calls it.
    name: ClassVar[str]
    mode: ClassVar[str]
    max_vcpus: ClassVar[int]
    #: GPA and bytes of each piece of plain memory; a guest is loaded into the first.
    ram: ClassVar[tuple[tuple[int, int], ...]]
    #: Ports that no device can have.
    ports: ClassVar[tuple[range, ...]]

    @abstractmethod
    def regions(self, views: int) -> tuple[RegionPlace, ...]:
        """The regions of a machine whose regions have so many views."""

    @abstractmethod
    def load(self, image: Image, ram: memoryview) -> None:
        """Put the guest, and what it may rely on, into the first piece of plain memory.

        Raises :class:`pyvmm.errors.ConfigurationError` for a guest that cannot be one here.
        """

    @abstractmethod
    def boot(self, vcpu: Vcpu, vcpus: int, image: Image) -> None:
        """Give ``vcpu``, one of so many, the state that a guest starts in."""
