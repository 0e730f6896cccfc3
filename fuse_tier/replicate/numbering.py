"""How one volume's snapshots are numbered: above all that exist anywhere, within the epoch of who owns the volume."""

from __future__ import annotations

from fuse_tier.epochs import number_after, number_before
from fuse_tier.errors import FuseTierError


class Numbering:
    """Begins with nothing; a volume is told what exists."""

    def __init__(self) -> None:
        self.epoch = 0  # under which this node owns the volume, or did last
        self.highest = 0  # of any snapshot of the volume, wherever it is
        self.is_exhausted = False
        """Whether the next number would not be of this epoch: the node needs another one."""

    def heard_of(self, *numbers: int) -> None:
        """There are snapshots of these numbers."""
        self.highest = max(self.highest, *numbers)

    def own(self, epoch: int) -> None:
        """The volume is this node's under an epoch."""
        self.epoch, self.is_exhausted = max(epoch, self.epoch), False

    def next(self) -> int:
        """The number of the next snapshot. Raises FuseTierError when there is none in this epoch."""
        number = max(self.highest, number_before(self.epoch)) + 1
        if number < number_after(self.epoch):
            return number
        self.is_exhausted = True
        raise FuseTierError(
            f"snapshot {self.highest} is of an epoch after this node's ({self.epoch}): none is taken here "
            "before it is clear whose the volume is"
        )
