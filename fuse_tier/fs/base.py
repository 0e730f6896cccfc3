"""What all operations share: the parts of a mount, and the attributes that the kernel gets."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fuse_tier.fs.arranging import Arranging
from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.backing import Backings
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.content import Content
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.link import Link
from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.fs.requests import Entry, Request
from fuse_tier.fs.reserve import Reservations
from fuse_tier.fs.room import RoomAsker
from fuse_tier.fs.share import Share
from fuse_tier.mount.messages import ENTRY

# Only this process changes the tree, so the kernel may keep what it is told.
_CACHED_SECONDS: Final = 300
# What buffered writers (stdio, Python's open) take as their buffer: each request costs as much as 100 KB of copying.
_BLOCK_BYTES: Final = 1 << 17
_PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID
_BILLION: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What a mount is made of."""

    nodes: Nodes
    handles: Handles
    backings: Backings
    changes: Changes
    content: Content
    attributes: Attributes
    link: Link
    room: RoomAsker
    reservations: Reservations
    share: Share
    arranging: Arranging
    fsync: str
    """What an fsync waits for: ram, peer or bucket."""


class Shared:
    """The parts, at hand for each operation, and what several of them need."""

    def __init__(self, parts: Parts) -> None:
        self._nodes = parts.nodes
        self._handles = parts.handles
        self._backings = parts.backings
        self._changes = parts.changes
        self._content = parts.content
        self._attributes = parts.attributes
        self._link = parts.link
        self._room = parts.room
        self._reservations = parts.reservations
        self._share = parts.share
        self._arranging = parts.arranging
        self._fsync = parts.fsync
        self._chowns = os.geteuid() == 0
        self._ours = (os.geteuid(), os.getegid())

    def _entry_at(self, found: os.stat_result, parent: int, name: bytes) -> Entry:
        """What the kernel shall know of an inode by a name."""
        return self._entry(found, is_kept=parent != ROOT or self._arranging.may_be_kept(name))

    def _entry(self, found: os.stat_result, *, is_kept: bool = True) -> Entry:
        """What the kernel shall know of an inode, and whether it may keep the name."""
        mode = found.st_mode
        links = found.st_nlink
        valid_seconds = _CACHED_SECONDS
        if stat.S_ISREG(mode):
            if links > 1:
                links = self._content.visible_links(found)
            if mode & _PRIVILEGES:
                valid_seconds = 0  # a write may take these bits away, of which the kernel does not hear
        number = self._nodes.number(found.st_ino)
        accessed, accessed_ns = divmod(found.st_atime_ns, _BILLION)
        modified, modified_ns = divmod(found.st_mtime_ns, _BILLION)
        changed, changed_ns = divmod(found.st_ctime_ns, _BILLION)
        return ENTRY.pack(
            number,
            0,
            _CACHED_SECONDS if is_kept else 0,
            valid_seconds,
            0,
            0,
            number,
            found.st_size,
            found.st_blocks,
            accessed,
            modified,
            changed,
            accessed_ns,
            modified_ns,
            changed_ns,
            mode,
            links,
            found.st_uid,
            found.st_gid,
            found.st_rdev,  # as the kernel encodes it, with up to 12 bits of major and 20 of minor
            _BLOCK_BYTES,
            0,
        )

    def _unmake(self, inode: int, parent: int, name: bytes) -> None:
        """Takes back a file that was just made, unless its name is gone by now, and that the kernel knows of it."""
        there = 0
        with suppress(FileNotFoundError):
            there = os.stat(name, dir_fd=self._nodes.directory(parent), follow_symlinks=False).st_ino
        if there == inode:
            with self._nodes.removing(parent, name) as directory:
                os.unlink(name, dir_fd=directory)
            self._changes.record()
        self._nodes.forget([(inode, 1)])

    def _give_away(self, directory: int, name: bytes, mode: int, request: Request) -> os.stat_result:
        """Makes what was just created the caller's own, and gives its status."""
        if self._chowns and (request.uid, request.gid) != self._ours:
            inherits = os.stat(directory).st_mode & stat.S_ISGID  # the tmpfs has set the group already
            os.chown(name, request.uid, -1 if inherits else request.gid, dir_fd=directory, follow_symlinks=False)
            if mode & _PRIVILEGES and stat.S_ISREG(mode):  # chown has taken them away
                os.chmod(name, stat.S_IMODE(mode), dir_fd=directory)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
