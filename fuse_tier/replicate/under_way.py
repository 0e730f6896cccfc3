"""What is being brought of one volume just now, and who waits for it: so that nothing comes twice.

What the background is about to bring is waited for as long as it comes. What is brought because somebody waits for it
is brought for all who do, whichever of its files they open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import TierError
from fuse_tier.ram.arrival import Arrivals
from fuse_tier.replicate.broadcast import Broadcast

_PATIENCE_SECONDS = 5.0  # with a part of which nothing comes: a stream may still be being opened


class Part:
    """What a peer is asked for by the background."""

    def __init__(self, since: float) -> None:
        self.moved = 0
        self.since = since  # nothing more has come, as far as anybody has looked
        self._seen = 0

    def move(self, size: int) -> None:
        """From any thread."""
        self.moved += size

    def is_coming(self, now: float) -> bool:
        """Whether something of it has come lately."""
        if self.moved != self._seen:
            self._seen, self.since = self.moved, now
        return now - self.since < _PATIENCE_SECONDS


@dataclass(slots=True)
class Urgent:
    """Content that somebody waits for."""

    inodes: list[int]  # of its files that have been opened meanwhile
    ended: trio.Event = field(default_factory=trio.Event)
    error: TierError | None = None


@dataclass(slots=True)
class UnderWay:
    """What is being brought of one volume."""

    sink: Arrivals | None = None  # of the background
    parts: dict[Blob, Part] = field(default_factory=dict)  # of the background, of what it has asked for
    urgent: dict[Blob, Urgent] = field(default_factory=dict)
    left_out: set[Blob] = field(default_factory=set)  # by the background: urgent at some time of this round of its
    ended: Broadcast = field(default_factory=Broadcast)  # something was urgent, and is no longer
    opened: list[int] = field(default_factory=list)  # inodes of the last two that were urgent
    is_behind: bool = False  # something was urgent since the background last chose what to bring

    def is_near(self, blob: Blob) -> bool:
        """Whether the background brings something now, or soon.

        What it is at is waited for, however long that takes: the file is locked meanwhile, so that a second transfer
        could but throw away what comes. A source that stalls ends its stream, and that the lock.
        """
        is_landing = self.sink is not None and self.sink.is_landing(blob)
        return is_landing or (blob in self.parts and self.parts[blob].is_coming(trio.current_time()))

    def begin_part(self, blobs: Collection[Blob]) -> Progress:
        """A peer is asked for these by the background; gives whom to tell of what moves of them."""
        # Where it was asked in vain before, patience goes on: those who are getting something are asked often.
        in_vain = [part.since for blob in blobs if (part := self.parts.get(blob)) is not None and not part.moved]
        part = Part(min(in_vain, default=trio.current_time()))
        self.parts |= dict.fromkeys(blobs, part)
        return part.move

    def begin_urgent(self, blob: Blob, inode: int) -> Urgent:
        """Somebody waits for a file's content, and nobody is bringing that."""
        urgent = self.urgent[blob] = Urgent([inode])
        self.left_out.add(blob)
        self.opened = [*self.opened[-1:], inode]
        self.is_behind = True
        return urgent

    def end_urgent(self, blob: Blob) -> None:
        """It is there, or could not be had, or nobody waits any more."""
        self.urgent.pop(blob).ended.set()
        self.ended.announce()

    def end_round(self) -> None:
        """The background looks anew for what is to come."""
        self.sink = None
        self.parts.clear()
        self.left_out = set(self.urgent)

    def reordering(self, wanted: Mapping[Blob, Sequence[int]]) -> Callable[[Sequence[Blob]], list[Blob] | None]:
        """For what the background wants: the order in which the job will want what of it is left to be asked for."""

        def reorder(blobs: Sequence[Blob]) -> list[Blob] | None:
            is_behind, self.is_behind = self.is_behind, False
            if not is_behind:
                return None
            return as_wanted(wanted, blobs, self.opened)

        return reorder


def as_wanted(waiting: Mapping[Blob, Sequence[int]], blobs: Iterable[Blob], opened: Sequence[int]) -> list[Blob]:
    """In the order in which a job will want them that goes on as it did with the last two that it opened.

    Inodes ascend in the order in which files were made, and a listing of a tmpfs shows the newest first: a job that
    opens what it lists goes backwards.
    """
    last, goes_back = opened[-1], opened[-1] < opened[0]

    def place(blob: Blob) -> tuple[bool, int]:
        ahead = (last - waiting[blob][0]) if goes_back else (waiting[blob][0] - last)
        return ahead < 0, abs(ahead)

    return sorted(blobs, key=place)
