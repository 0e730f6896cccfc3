"""What nodes are told of each other: all of them once, and then who has changed.

With thousands of nodes, each of which reports every few seconds, telling everybody of everybody each time would be
most of what a coordinator does. So each change has a version, and who says which one it knows hears what came after.
Free room is told with the next change of something else: nobody decides by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fuse_tier.members import Member
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import member_to_wire
from fuse_tier.wire.reports import roster_to_wire

_SMALL = 256  # members, or changes, that are put together anew for each who asks
_WHOLE_EVERY_SECONDS = 1.0  # of more, the whole is made so often; what has changed since comes with the next answer
_WHOLES_PER_SECOND = 200.0  # of more, so many are told the whole; the others wait, and go on with what they know


class Attendance:
    """Of one life of a coordinator."""

    def __init__(self, life: str) -> None:
        self._life = life
        self._version = 0
        self._told: dict[str, Member] = {}
        self._changed: dict[str, tuple[int, pb.Member]] = {}  # at which version; the latest change last
        self._forgotten = 0  # the version at which somebody was last left out
        self._whole: tuple[float, int, bytes] = (float("-inf"), -1, b"")
        self._next_whole = 0.0

    def see(self, member: Member) -> None:
        """This is what is known of a node now: with its report, and when its lease has ended."""
        shown = replace(member, free_bytes=0)
        if self._told.get(member.node) == shown:
            return
        self._told[member.node] = shown
        self._version += 1
        self._changed.pop(member.node, None)
        self._changed[member.node] = (self._version, member_to_wire(member))

    def forget_all_but(self, known: Iterable[str]) -> None:
        """Only these nodes are known any more."""
        for node in self._told.keys() - set(known):
            del self._told[node], self._changed[node]
            self._version += 1
            self._forgotten = self._version

    def since(self, life: str, version: int, now: float) -> bytes:
        """A Roster on the wire, for who knows this version of that life; nothing at all for who has to ask again."""
        is_known = life == self._life and self._forgotten <= version <= self._version
        if is_known and self._version - version <= _SMALL:
            news: list[pb.Member] = []
            for changed_at, message in reversed(self._changed.values()):
                if changed_at <= version:
                    break
                news.append(message)
            return roster_to_wire(self._version, news, is_whole=False)
        if len(self._changed) > _SMALL:
            if now < self._next_whole:
                return roster_to_wire(version, (), is_whole=False) if is_known else b""
            self._next_whole = max(self._next_whole, now - 1.0) + 1 / _WHOLES_PER_SECOND
        return self._everybody(now)

    def _everybody(self, now: float) -> bytes:
        made_at, of_version, text = self._whole
        is_late = len(self._changed) <= _SMALL or now - made_at >= _WHOLE_EVERY_SECONDS
        if of_version != self._version and (is_late or of_version < self._forgotten):
            everybody = (message for _, message in self._changed.values())
            text = roster_to_wire(self._version, everybody, is_whole=True)
            self._whole = (now, self._version, text)
        return text
