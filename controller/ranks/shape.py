"""The shape of a job: how many slices, and how many workers each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from fuse_tier.errors import InvalidRequest

_WRITTEN: Final = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Ranks are numbered slice by slice: rank = slice * workers + worker. Jobs without slices have one."""

    slices: int
    workers: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what the wire has: ``3x512``. Raises InvalidRequest."""
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise InvalidRequest(f"{text!r} is no shape of a job: slices x workers is meant, such as 3x512")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.slices}x{self.workers}"

    @property
    def ranks(self) -> range:
        """All of them."""
        return range(self.slices * self.workers)

    def slice_ranks(self, number: int) -> range:
        """Those of one slice."""
        return range(number * self.workers, (number + 1) * self.workers)

    def slice_of(self, rank: int) -> int:
        """Which slice a rank is in."""
        return rank // self.workers
