"""The names by which the kernel knows inodes, and how often it was told of each.

An inode has one name here, or several where it is a file with several that the kernel has asked for; or one that
leads nowhere any more, which ``Nodes`` knows. Pure: nothing here looks at files.
"""

from __future__ import annotations

Name = tuple[int, bytes]
"""The parent's inode number, and the last part."""


class Known:
    """An inode that the kernel knows."""

    __slots__ = ("lookups", "name", "parent")

    def __init__(self, parent: int, name: bytes, lookups: int) -> None:
        self.parent = parent
        self.name = name
        self.lookups = lookups


class KnownNames:
    """All of one mount, by inode number."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}
        self._more: dict[int, set[Name]] = {}  # names of those that have several
        self.get = self._known.get

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, inode: int) -> bool:
        return inode in self._known

    def add(self, inode: int, name: Name, lookups: int) -> None:
        """An inode that was not known."""
        self._known[inode] = Known(*name, lookups)

    def add_name(self, inode: int, name: Name) -> None:
        """A further name of a known inode, or one that it has already."""
        known = self._known[inode]
        if (known.parent, known.name) != name:
            self._more.setdefault(inode, set()).add(name)

    def rename(self, inode: int, name: Name) -> None:
        """This is the one name of a known inode: whatever was known led elsewhere, or nowhere."""
        known = self._known[inode]
        known.parent, known.name = name

    def has_several(self, inode: int) -> bool:
        """Whether several names of an inode are known."""
        return inode in self._more

    def forget(self, inode: int, count: int) -> bool:
        """Takes back what the kernel was told so often; whether it knows the inode no more."""
        known = self._known.get(inode)
        if known is None:
            return False
        known.lookups -= count
        if known.lookups > 0:
            return False
        del self._known[inode]
        self._more.pop(inode, None)
        return True

    def remove_name(self, inode: int, name: Name) -> bool:
        """A name is gone; whether none is left of an inode that is known."""
        known = self._known.get(inode)
        if known is None:
            return False
        others = self._more.get(inode)
        if others is None:
            return True
        others.discard(name)
        if (known.parent, known.name) == name and others:
            known.parent, known.name = others.pop()
        if not others:
            del self._more[inode]
        return False

    def move(self, inode: int, old: Name, new: Name) -> None:
        """One of its names has become another."""
        known = self._known.get(inode)
        if known is None:
            return
        others = self._more.get(inode)
        if others is not None and old in others:
            others.discard(old)
            others.add(new)
        else:
            known.parent, known.name = new
