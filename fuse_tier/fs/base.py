"""What all operations share: the parts of a mount, and the attributes that the kernel gets."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.content import Content
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.link import Link
from fuse_tier.fs.nodes import Nodes

# Only this process changes the tree, so the kernel may keep what it is told.
_CACHED_SECONDS: Final = 300
# What buffered writers (stdio, Python's open) take as their buffer: each request costs as much as 100 KB of copying.
_BLOCK_BYTES: Final = 1 << 17
_PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID


@dataclass(frozen=True, slots=True)
class Parts:
    """What a mount is made of."""

    nodes: Nodes
    handles: Handles
    changes: Changes
    content: Content
    attributes: Attributes
    link: Link
    fsync: str
    """What an fsync waits for: ram, peer or bucket."""


class Shared(pyfuse3.Operations):
    """The parts, at hand for each operation, and what several of them need."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self._nodes = parts.nodes
        self._handles = parts.handles
        self._changes = parts.changes
        self._content = parts.content
        self._attributes = parts.attributes
        self._link = parts.link
        self._fsync = parts.fsync
        self._chowns = os.geteuid() == 0
        self._ours = (os.geteuid(), os.getegid())

    def _entry(self, found: os.stat_result) -> pyfuse3.EntryAttributes:
        """What the kernel shall know of an inode."""
        entry = pyfuse3.EntryAttributes()
        mode = found.st_mode
        entry.st_ino = self._nodes.number(found.st_ino)
        entry.st_mode = mode
        links = found.st_nlink
        if links > 1 and stat.S_ISREG(mode):
            links = self._content.visible_links(found)
        entry.st_nlink = links
        entry.st_uid = found.st_uid
        entry.st_gid = found.st_gid
        entry.st_rdev = found.st_rdev
        entry.st_size = found.st_size
        entry.st_blocks = found.st_blocks
        entry.st_blksize = _BLOCK_BYTES
        entry.st_atime_ns = found.st_atime_ns
        entry.st_mtime_ns = found.st_mtime_ns
        entry.st_ctime_ns = found.st_ctime_ns
        entry.entry_timeout = _CACHED_SECONDS
        # A write may take these bits away, which the kernel leaves to us and does not expect.
        entry.attr_timeout = 0 if mode & _PRIVILEGES and stat.S_ISREG(mode) else _CACHED_SECONDS
        return entry

    def _give_away(self, directory: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> os.stat_result:
        """Makes what was just created the caller's own, and gives its status."""
        if self._chowns and (ctx.uid, ctx.gid) != self._ours:
            inherits = os.stat(directory).st_mode & stat.S_ISGID  # the tmpfs has set the group already
            os.chown(name, ctx.uid, -1 if inherits else ctx.gid, dir_fd=directory, follow_symlinks=False)
            if mode & _PRIVILEGES and stat.S_ISREG(mode):  # chown has taken them away
                os.chmod(name, stat.S_IMODE(mode), dir_fd=directory)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
