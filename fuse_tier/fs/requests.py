"""What an operation is told and what it answers, as values: the border between messages and operations."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

import trio

from fuse_tier.mount.messages import ATTRIBUTES_AT, ATTRIBUTES_VALID, DIRECTORY_ENTRY

Entry = bytes
"""The attributes of a name, as the kernel takes them."""

_VALID_AT: Final = 24  # how long attributes are valid, in an entry
_BILLION: Final = 1_000_000_000


class Request:
    """Who asks, and how."""

    __slots__ = ("ends", "gid", "kills_privileges", "node", "opcode", "pid", "resent", "uid", "unique")

    def __init__(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int) -> None:
        self.opcode = opcode
        self.unique = unique
        self.node = node
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.resent = False
        """A daemon that died has had it before, and may have done it."""
        self.kills_privileges = False
        """Setuid and setgid bits are to go (write(2), truncate(2))."""
        self.ends: trio.CancelScope | None = None
        """What a signal of the one who asks ends, while there is something."""


@dataclass(frozen=True, slots=True)
class NewAttributes:
    """What of an inode's attributes is to change; None for what stays. Times in nanoseconds."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    accessed_ns: int | None
    modified_ns: int | None

    @property
    def has_more_than_a_size(self) -> bool:
        """Whether anything but the size is to change."""
        return (self.mode, self.uid, self.gid, self.accessed_ns, self.modified_ns) != (None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file or directory: its handle, FOPEN flags, and its backing id or 0."""

    handle: int
    flags: int = 0
    backing: int = 0


def attributes_of(entry: Entry) -> bytes:
    """A reply with attributes alone."""
    return (
        ATTRIBUTES_VALID.pack(int.from_bytes(entry[_VALID_AT : _VALID_AT + 8], "little"), 0, 0)
        + (entry[ATTRIBUTES_AT:])
    )


class ListingReply:
    """A part of a listing, as large as the kernel has room for."""

    def __init__(self, room_bytes: int, *, with_attributes: bool) -> None:
        self.content = bytearray()
        self.with_attributes = with_attributes
        """The kernel then knows each inode by its name, and will say so when it forgets it."""
        self._room = room_bytes

    def add(self, name: bytes, number: int, mode: int, entry: Entry, next_offset: int) -> bool:
        """Adds a name; False, and nothing is added, when there is no more room."""
        record = DIRECTORY_ENTRY.pack(number, next_offset, len(name), stat.S_IFMT(mode) >> 12) + name
        record += bytes(-len(record) % 8)
        if self.with_attributes:
            record = entry + record
        if len(self.content) + len(record) > self._room:
            return False
        self.content += record
        return True


def split_ns(nanoseconds: int) -> tuple[int, int]:
    """Seconds, and the nanoseconds beyond."""
    return divmod(nanoseconds, _BILLION)
