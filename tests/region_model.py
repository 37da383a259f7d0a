"""What a region should look like after conversions: a model in plain Python."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from snippets import PAGE, PAGES, PRIVATE, SHARED

from pyvmm import PageState


@dataclass
class RegionModel:
    """States of a region's pages and the counts of conversions."""

    views: int = 2
    states: list[int] = field(default_factory=lambda: [0] * PAGES)
    to_private: int = 0
    to_shared: int = 0
    last_changed: list[int] = field(default_factory=list)

    def convert(self, gpa: int, pages: int, state: int) -> int:
        """The errno that the doorbell answers; changes the states when it is 0."""
        self.last_changed = []
        for view in (PRIVATE, SHARED)[: self.views]:
            if view <= gpa < view + PAGES * PAGE:
                break
        else:
            return errno.EINVAL
        first, rest = divmod(gpa - view, PAGE)
        if rest or not 0 < pages <= PAGES - first or state not in tuple(PageState):
            return errno.EINVAL
        for page in range(first, first + pages):
            if self.states[page] == state:
                continue
            self.states[page] = state
            self.last_changed.append(page)
            if state == PageState.PRIVATE:
                self.to_private += 1
            else:
                self.to_shared += 1
        return 0
