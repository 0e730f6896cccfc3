"""Who may have what a volume lacks: nodes that were not there, or could not be asked, when nobody had it.

Such a node is asked first (regaining.py). Until then it gets nothing newer of that volume, and nothing is given up
there: a holder lets go of what is superseded.
"""

from __future__ import annotations

from collections.abc import Iterable

from fuse_tier.members import Member


class Lost:
    """Of one volume, of which content is lost. Another one begins when more is, or the tree is made anew."""

    def __init__(self, asked: Iterable[Member] = ()) -> None:
        """``asked`` are those that have none of it."""
        self._asked = {_key(member) for member in asked}
        self._begun: set[tuple[str, str]] = set()

    def may_be_on(self, member: Member) -> bool:
        """Whether a node is there, and has still to be asked."""
        return member.alive and _key(member) not in self._asked

    def begin(self, members: Iterable[Member]) -> list[Member]:
        """Whom to ask now, as each is to be asked once. Who was away is asked again."""
        alive = {_key(member): member for member in members if member.alive}
        self._asked &= alive.keys()
        begun = [member for key, member in alive.items() if key not in self._asked | self._begun]
        self._begun.update(map(_key, begun))
        return begun

    def end(self, member: Member) -> None:
        """A node has given what it has, or cannot be asked."""
        self._begun.discard(_key(member))
        self._asked.add(_key(member))


def _key(member: Member) -> tuple[str, str]:
    return member.node, member.instance
