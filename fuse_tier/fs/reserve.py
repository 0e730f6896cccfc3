"""Room for files that are made: asked for, and allocated by us, before the job writes.

Three things come of it. Pages of a tmpfs are charged to the memory cgroup of whoever touches them first: what is
allocated here is not charged to the job. Pages allocated at once are large ones, and written faster. And room is
asked for when the worker can still give things up for it (replicate/room.py), not when a write fails.

Where a spare of that size is kept (ram/spares.py), the file is made of it: its pages are there already.

How much, is the size of the file's predecessor (sizes.py); of one that is emptied to be written anew, its own. That
is a guess: a create never fails by it, no more is taken than is there, and what was too much is given back when the
last writer closes. So a file has no room beyond its end once it is closed, also if the job itself has reserved some.

With passthrough the kernel writes without asking, and where it finds no room the job gets ENOSPC, though we may have
something to give up. So it is let past us (``may_pass``) only with files that are sure to find room: those for which
it is reserved, and others while plenty is left. All else comes through us, and waits for room if it has to (room.py);
but for a file that somebody has open past us already, because the kernel wants all handles of one to agree.

When all else is full, a new file gets a few pages from the node's reserve (ram/room.py).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

import structlog
import trio

from fuse_tier.fs.nodes import Nodes
from fuse_tier.fs.predecessors import LARGE_BYTES, large_files
from fuse_tier.fs.room import RoomAsker
from fuse_tier.fs.sizes import Sizes
from fuse_tier.fs.spec import MountSpec
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.room import Reserve, Room, allocate, room_of, trim
from fuse_tier.ram.spares import LEAST_BYTES, Spares

log = structlog.get_logger(__name__)

_SMALL_BYTES: Final = 64 << 10  # what any new file gets when the tier is full
_SCARCE_BYTES: Final = 2 << 20  # so little is left when it is full
_LARGER_PART: Final = 64  # a file may become larger than expected by this part
# With less than this part of the tier left, beside what the largest file so far took, a file of unknown size comes
# through us: where files have been of a size that matters, and where nobody knows what is to come.
_PLENTY_PART: Final = 8
_PLENTY_PART_UNKNOWN: Final = 2
_MATTERS_PART: Final = 32
_BLOCK_BYTES: Final = 512  # of st_blocks (stat(2))
_LEARN_SECONDS: Final = 0.1
_AT_ONCE_NS: Final = 2_000_000
_PLENTY_BYTES: Final = 1 << 30  # more than anybody writes in the time below: it is not looked again
_PLENTY_LASTS_NS: Final = 5_000_000


class Reservations:
    """The room of one mount's new files."""

    def __init__(self, spec: MountSpec, nodes: Nodes, room: RoomAsker) -> None:
        layout = Layout(spec.ram_root)
        self._nodes = nodes
        self._room = room
        self._tree = os.fsencode(layout.volume(spec.identity).tree)
        self._reserve = Reserve(layout)
        self._spares = Spares(layout)
        self._sizes = Sizes(spec.expected_sizes)
        self._learned = False
        self._found: list[tuple[bytes, int]] | None = None  # large files of the tree, to be remembered
        self._seen = Room(0, 0)
        self._seen_until = 0
        self._ns_per_byte = float("inf")  # of the last allocation
        self._unbounded: set[int] = set()  # inodes that the kernel writes by itself, and nobody knows how much

    def expected(self, parent: int, name: bytes) -> int:
        """How many bytes to reserve for a file that is about to be made, mostly 0. Raises OSError."""
        if not self._sizes.may_know(name):
            return 0
        return self._sizes.predict(self._path(self._nodes.directory(parent), name))

    def is_ready(self, size: int) -> bool:
        """Whether a file of so many expected bytes can be made at once; else ``prepare`` comes first."""
        return self._learned and self._found is None and self._look(size).free >= size + _margin(size)

    def _look(self, size: int) -> Room:
        """The room, or, if less is expected than anybody would miss, that of a moment ago."""
        now = time.monotonic_ns()
        if size >= _PLENTY_BYTES // 2 or now >= self._seen_until:
            self._seen = self._room.look()
            self._seen_until = now + _PLENTY_LASTS_NS if self._seen.free >= _PLENTY_BYTES else 0
        return self._seen

    async def prepare(self, parent: int, name: bytes) -> int:
        """Before a file is made, and before the gate: sees to room for it; gives the bytes to reserve."""
        await self._learn()
        return await self._make(self.expected(parent, name))

    async def prepare_again(self, size: int) -> int:
        """The same for a file that had so many bytes, and has none now."""
        return await self._make(size) if size >= LARGE_BYTES else 0

    async def _make(self, size: int) -> int:
        wanted = size + _margin(size)
        if self._room.look().free >= wanted:
            return size
        await self._room.make(wanted)
        return max(size, _SMALL_BYTES)

    def may_pass(self, found: os.stat_result, expected: int, *, appends: bool = False) -> bool:
        """Whether a file that is opened for writing will find room, so that the kernel may write it by itself.

        ``expected`` is what was reserved for it; 0 for one whose end nobody knows, such as one that is opened as it
        is, and may be appended to. Such a file is counted until its last writer has gone (``ended``), as large as the
        largest. So what is likely to stay small, and may be open for days, does not pass: it would cost all others
        that room. That is what is only appended to, or is small as it is, if none like it was ever large.
        """
        likely_small = appends or 0 < found.st_size < LARGE_BYTES
        if not expected and likely_small and not self._predicted(found.st_ino):
            return False
        room = self._look(expected)
        if expected and found.st_blocks * _BLOCK_BYTES >= expected:
            return room.free >= _margin(expected)
        unbounded = len(self._unbounded) + (found.st_ino not in self._unbounded)
        is_known = self._sizes.largest >= room.capacity // _MATTERS_PART
        beside = room.capacity // (_PLENTY_PART if is_known else _PLENTY_PART_UNKNOWN)
        plenty = beside + unbounded * self._sizes.largest
        if room.free < plenty and room.free + self.spare_bytes < plenty:
            return False
        self._unbounded.add(found.st_ino)
        return True

    def _predicted(self, inode: int) -> int:
        place = self._nodes.name(inode)
        if place is None or not self._sizes.may_know(place[1]):
            return 0
        return self._sizes.predict(self._path(*place))

    def passes(self, inode: int) -> None:
        """Counts a file that the kernel writes by itself, whatever ``may_pass`` said, or a daemon before this one."""
        self._unbounded.add(inode)

    def ended(self, inode: int) -> None:
        """The last writer of a file has gone, in whatever way."""
        self._unbounded.discard(inode)

    async def _learn(self) -> None:
        """What a daemon before this one has seen, it finds in the tree; nobody waits for long until it has."""
        if not self._learned:
            self._learned = True  # whoever comes meanwhile does without
            with trio.move_on_after(_LEARN_SECONDS):
                await trio.to_thread.run_sync(self._look_for_files, abandon_on_cancel=True)
        if self._found is not None:
            found, self._found = self._found, None
            for path, size in found:
                self._sizes.saw(path, size)

    def _look_for_files(self) -> None:
        self._found = large_files(self._tree)

    @property
    def spare_bytes(self) -> int:
        """What spares take of the room, which is given up as soon as somebody needs it."""
        return sum(self._spares.sizes())

    def take_spare(self, size: int, access: int, mode: int, directory: int, name: bytes) -> int | None:
        """Makes a file of a spare, as open(2) would, and gives its descriptor; None if there is none that fits.

        Raises OSError, FileExistsError among them.
        """
        if size < LEAST_BYTES or _hands_things_on(directory):
            return None
        return self._spares.take(size, access, stat.S_IMODE(mode), directory, name)

    async def reserve(self, fd: int, size: int) -> None:
        """Allocates room for a file that was made, as much as there is."""
        # Huge pages are had in the time that a thread takes to begin; small ones a hundred times slower.
        if size * self._ns_per_byte < _AT_ONCE_NS:
            self._allocate(fd, size)
        else:
            await trio.to_thread.run_sync(self._allocate, fd, size)

    def _allocate(self, fd: int, size: int) -> None:
        try:
            if size > _SMALL_BYTES:
                # Files that are made at the same time may all count on the same room.
                size = min(size, room_of(fd).free - _SCARCE_BYTES)
                if size > 0:
                    begun = time.perf_counter_ns()
                    allocate(fd, 0, size)
                    self._ns_per_byte = (time.perf_counter_ns() - begun) / size
                    return
            self._reserve.write(lambda: allocate(fd, 0, _SMALL_BYTES), _SMALL_BYTES, for_job=True)
        except OSError as error:
            # A create never fails by it: what there is no room for shows when it is written.
            log.info("room.not_reserved", bytes=size, reason=str(error))

    def closing(self, inode: int, fd: int) -> int:
        """The last writer is about to close: gives back what was too much, and remembers what was enough.

        Gives the bytes that the file has then.
        """
        found = os.fstat(fd)
        if trim(fd, found):
            found = os.fstat(fd)
        if found.st_size >= LARGE_BYTES and (place := self._nodes.name(inode)) is not None:
            self._sizes.saw(self._path(*place), found.st_size)
        return found.st_blocks * _BLOCK_BYTES

    def _path(self, directory: int, name: bytes) -> bytes:
        above = os.readlink(b"/proc/self/fd/%d" % directory)
        return (above + b"/" + name).removeprefix(self._tree)


def _margin(size: int) -> int:
    """What has to be free beside what is expected of a file."""
    return size // _LARGER_PART + _SCARCE_BYTES


def _hands_things_on(directory: int) -> bool:
    """Whether a directory gives its group or permissions to what is made in it, which only the kernel does right."""
    path = b"/proc/self/fd/%d" % directory
    if os.stat(path).st_mode & stat.S_ISGID:
        return True
    try:
        os.getxattr(path, "system.posix_acl_default")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return False
    return True
