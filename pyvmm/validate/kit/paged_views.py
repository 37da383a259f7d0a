"""Two views of the RFC's private memory, and a vCPU that reaches them by its own page tables."""

from __future__ import annotations

from typing import Any

from pyvmm.native import ffi, lib
from pyvmm.validate.kit import routines
from pyvmm.validate.kit.case import GIB, PAGE
from pyvmm.validate.kit.check import expect
from pyvmm.validate.kit.guest import Cpu
from pyvmm.validate.kit.paging import MODES, PageTables, Unpaged
from pyvmm.validate.kit.toolbox import Toolbox
from pyvmm.validate.kit.views import Views

TO_SHARED: int = lib.KVM_EXIT_MEM_MAP_SHARED
TO_PRIVATE: int = lib.KVM_EXIT_MEM_MAP_PRIVATE
SIZE = 32 * PAGE
# Where tables are in the plain memory, and in the views.
PLAIN_TABLES, VIEW_TABLES = 0x30000, 16 * PAGE
# A page of data in the plain memory.
PLAIN_DATA = 0x38000


class PagedViews:
    """Two views, the first vCPU in its own page tables, and a second one that helps."""

    def __init__(
        self,
        tools: Toolbox,
        mode: str,
        tables: str = "plain",
        tables_at: int = VIEW_TABLES,
        **options: Any,
    ) -> None:
        self.vm = tools.private_vm(cpus=2)
        self.at = Views(tools, self.vm, GIB, 2 * GIB, **{"size": SIZE, **options})
        self.cpu, self.helper = self.vm.cpus
        base = {
            "plain": PLAIN_TABLES,
            "private": self.at.private + tables_at,
            "shared": self.at.shared + tables_at,
        }[tables]
        self.tables = PageTables(MODES.get(mode, MODES["32"]), base, self.helper.write)
        if tables == "private":
            self.at.to_private(tables_at, self.tables.size)
        if mode == "off":
            self.cpu.use(Unpaged())
            return
        self.tables.link()
        self.cpu.use(self.tables)

    def private(self, page: int, value: int) -> int:
        """Make a page private, with ``value`` in its first word; its GPA."""
        gpa = self.at.private + page * PAGE
        self.at.to_private(page * PAGE, PAGE)
        self.helper.write(gpa, value, 4)
        return gpa

    def shared(self, page: int, value: int) -> int:
        gpa = self.at.shared + page * PAGE
        self.helper.write(gpa, value, 4)
        return gpa

    def convert(self, gpa: int) -> None:
        """Take a page of a view away from it."""
        if gpa < self.at.shared:
            self.at.to_shared(gpa - self.at.private, PAGE)
        else:
            self.at.file.allocate(gpa - self.at.shared, PAGE)

    def give_back(self, gpa: int) -> None:
        """To the view. A private page is zero then."""
        if gpa < self.at.shared:
            self.at.to_private(gpa - self.at.private, PAGE)
        else:
            self.at.to_shared(gpa - self.at.shared, PAGE)

    def wanted(self, gpa: int) -> int:
        """What the exit says of an access to a page that is not in its view."""
        return TO_PRIVATE if gpa < self.at.shared else TO_SHARED

    def expect_error(self, linear: int, gpa: int, what: str) -> None:
        """A read of ``linear`` exits with the page of ``gpa``, again and again."""
        self.cpu.prepare(routines.READ[4], rdi=linear)
        for _ in range(2):
            self.cpu.expect_memory_error(gpa, self.wanted(gpa), what)

    def convert_tables_and_back(self) -> None:
        """All of them, after which they say the same as before."""
        pages = [self.tables.table(level) for level in self.tables.mode.converted_levels]
        for call in (self.convert, self.give_back):
            for page in pages:
                call(page)
        self.tables.write_again()

    def write_beside(self, gpa: int, value: int) -> None:
        """By the other vCPU, as the helper stands in the middle of an instruction."""
        self.cpu.write(self.tables.map(0, gpa), value, 1)

    def port_byte(self, cpu: Cpu, answer: int | None = None) -> int:
        """A vCPU's next exit, which must be a port's; what it wrote there, or is answered."""
        outcome = cpu.enter()
        expect(outcome.reason, lib.KVM_EXIT_IO, "the exit of string I/O")
        run = cpu.vcpu.kvm_run
        data = ffi.buffer(ffi.cast("char *", run) + run.io.data_offset, 1)
        if answer is not None:
            data[:] = bytes([answer])
            cpu.keep_answer()
        return int(data[:][0])
