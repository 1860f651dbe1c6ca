"""Which share of the questions a process answers, where several of them share a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cropl.errors import UsageError


@dataclass(frozen=True)
class Part:
    """Part `index`, from 0, of `of` equal ones. Whole images are dealt out: an image is encoded by one process."""

    index: int = 0
    of: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is all there is."""
        return self.of == 1

    def share(self, groups: Sequence[list[int]]) -> list[list[int]]:
        """This part's groups of questions about one image: group i belongs to part i mod `of`."""
        return list(groups[self.index :: self.of])

    @classmethod
    def parse(cls, text: object) -> Part:
        """From "2/8": the third of eight.

        Raises:
            UsageError: it is none.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", str(text))
        if found is None or not int(found[1]) < int(found[2]):
            raise UsageError(f"--part {text}: must be INDEX/COUNT, from 0/8 to 7/8 for eight processes")
        return cls(int(found[1]), int(found[2]))
