"""Blobs as files: a source and a sink over ``blobs/`` and ``incoming/`` of the RAM layout.

A blob gets its name by one link, after what landed was hashed: nothing under ``blobs/`` is ever half there, and
what is there is not replaced (a live file may be the same inode, see pins.py). All methods block, in threads.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import structlog

from fuse_tier import failpoints
from fuse_tier.blobs import Blob, Partial, ResumableIncoming
from fuse_tier.errors import Damaged, NotFound, TierFull, TierRefused
from fuse_tier.files import write_new
from fuse_tier.hashing import RunningHash, hash_bytes
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.partials import SMALLEST_KEPT, Kept, Partials
from fuse_tier.ram.spares import LEAST_BYTES, Spares

log = structlog.get_logger(__name__)

_ASIDE = "damaged-"
_OF_CONTENT = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})


class RamContent:
    """The blobs of one RAM tier; ``place`` is its name in messages."""

    def __init__(self, layout: Layout, place: str) -> None:
        self._layout = layout
        self._place = place
        self._spares = Spares(layout)
        self.partials = Partials()

    def open(self, blob: Blob) -> int:
        """A read-only descriptor. Raises NotFound, and Damaged when the size is another.

        If a job writes to the file that this is, the blob becomes a copy of what it was, and the descriptor shows
        what the job writes: whoever reads has to hash what arrives, and open once more when it is something else.
        """
        try:
            fd = os.open(self._layout.blob(blob), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{blob} is not in the {self._place}") from None
        except OSError as error:
            raise TierRefused(f"{blob} in the {self._place} cannot be read: {error.strerror}") from error
        size = os.fstat(fd).st_size
        if size != blob.size:
            os.close(fd)
            log.error("blob.damaged", place=self._place, blob=blob.name, bytes=size)
            raise Damaged(f"{blob} has {size} bytes in the {self._place}: another source is needed")
        return fd

    def create(self, blob: Blob) -> ResumableIncoming:
        """Makes room for a blob, or goes on with what an earlier transfer brought. Raises TierFull."""
        kept = self.partials.take(blob)
        if kept is not None:
            try:
                return self._landing(blob, kept)
            except FileNotFoundError:
                pass  # somebody cleared it away: it is asked for from its start
        try:
            return self._landing(blob)
        except TierFull:
            if not self._give_way():
                raise
        return self._landing(blob)

    def _give_way(self) -> bool:
        """Frees what is only kept because it may be of use; whether there was anything."""
        ready = sum(self._spares.sizes())
        self._spares.give_up()
        return self.partials.give_up() + ready > 0

    def _landing(self, blob: Blob, kept: Kept | None = None) -> _Landing:
        return _Landing(self._layout, self._place, blob, self.partials, self._spares, kept)

    def take(self, blob: Blob, content: memoryview) -> None:
        """Keeps content that is all in memory, if it is the blob. Raises Damaged, TierFull."""
        found = hash_bytes(content)
        if found != blob:
            raise Damaged(f"{found} arrived in the {self._place} in place of {blob}: ask another source")
        try:
            self._keep(blob, content)
        except TierFull:
            if not self._give_way():
                raise
            self._keep(blob, content)

    def _keep(self, blob: Blob, content: memoryview) -> None:
        path = os.path.join(self._layout.incoming, secrets.token_hex(8))
        with room_in(self._place):
            try:
                write_new(path, content)
                failpoints.reached("content.hashed")
                name_blob(path, self._layout.blob(blob), blob)
                failpoints.reached("content.named")
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def partial(self, blob: Blob) -> Partial | None:
        """What is kept of a blob whose transfer broke."""
        return self.partials.of(blob)

    def missing(self, blobs: Collection[Blob]) -> set[Blob]:
        """Which of these are not here with their size."""
        return {blob for blob in blobs if not self.has(blob)}

    def has(self, blob: Blob) -> bool:
        """Whether a blob is here with its size."""
        return is_whole(self._layout.blob(blob), blob)

    def remove(self, blob: Blob) -> None:
        """Removes a blob that was found to be damaged. One that is not there is no error."""
        with suppress(FileNotFoundError):
            os.unlink(self._layout.blob(blob))

    def set_aside(self, blob: Blob) -> None:
        """Takes a damaged blob out of the way, and keeps it for a look until another is, or a new worker begins."""
        for name in os.listdir(self._layout.incoming):
            if name.startswith(_ASIDE):
                os.unlink(os.path.join(self._layout.incoming, name))
        with suppress(FileNotFoundError):
            os.rename(self._layout.blob(blob), os.path.join(self._layout.incoming, f"{_ASIDE}{blob.name}"))

    def clear_incoming(self) -> None:
        """Removes what a worker before this one left half done."""
        for name in os.listdir(self._layout.incoming):
            path = os.path.join(self._layout.incoming, name)
            if os.path.islink(path) or not os.path.isdir(path):
                os.unlink(path)
                continue
            os.chmod(path, stat.S_IRWXU)
            for directory, names, _ in os.walk(path):  # a job's directories, of whatever modes
                for name in names:
                    if not os.path.islink(inner := os.path.join(directory, name)):
                        os.chmod(inner, stat.S_IRWXU)
            shutil.rmtree(path)


def is_whole(path: str, blob: Blob) -> bool:
    """Whether a file is there and has the blob's size."""
    try:
        return os.lstat(path).st_size == blob.size
    except FileNotFoundError:
        return False


def name_blob(landed: str, target: str, blob: Blob) -> None:
    """Gives a file that is the blob its name as well. What is there under it stays: a live file may be that inode.

    Not if it is plainly something else.
    """
    try:
        os.link(landed, target)
    except FileExistsError:
        if not is_whole(target, blob):
            os.replace(landed, target)


@contextmanager
def room_in(place: str) -> Iterator[None]:
    """Turns the errors of a full tmpfs into TierFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise TierFull(f"the {place} is full: {error.strerror}; give it more (ram.size), or keep less") from error


def _allocated(spares: Spares, path: str, size: int) -> int:
    """A new file of ``size`` bytes, all of whose pages are there. Raises OSError."""
    spare = spares.take_for_content(size, path) if size >= LEAST_BYTES else None
    fd = os.open(path, _OF_CONTENT | os.O_CREAT | os.O_EXCL, 0o600) if spare is None else spare
    try:
        if size and spare is None:
            spares.release(size)
            os.posix_fallocate(fd, 0, size)
        failpoints.reached("content.allocated")
    except BaseException:
        os.close(fd)
        os.unlink(path)
        raise
    return fd


class _Landing(ResumableIncoming):
    def __init__(
        self,
        layout: Layout,
        place: str,
        blob: Blob,
        partials: Partials,
        spares: Spares,
        kept: Kept | None,
    ) -> None:
        self._blob = blob
        self._place = place
        self._partials = partials
        self._path = kept.path if kept is not None else os.path.join(layout.incoming, secrets.token_hex(8))
        self._target = layout.blob(blob)
        if kept is not None:
            self.fd = os.open(self._path, _OF_CONTENT)
        else:
            with room_in(place):
                self.fd = _allocated(spares, self._path, blob.size)
        self._hash = RunningHash(self.fd, blob.size, mapped=True)
        if kept is not None:
            self._hash.advance(kept.partial.size)  # memory may have changed since
            if self._hash.digest() != kept.partial.digest:
                self.restart()

    @property
    def offset(self) -> int:
        return self._hash.done

    def restart(self) -> None:
        self._hash.close()
        self._hash = RunningHash(self.fd, self._blob.size, mapped=True)

    def landed(self, offset: int) -> None:
        self._hash.advance(offset)

    def accept(self) -> None:
        try:
            size = os.fstat(self.fd).st_size
            self._hash.advance(min(size, self._blob.size))
            found = Blob(self._hash.digest(), size)
            if found != self._blob:
                raise Damaged(f"{found} arrived in the {self._place} in place of {self._blob}: ask another source")
            failpoints.reached("content.hashed")
            with room_in(self._place):
                name_blob(self._path, self._target, self._blob)
            failpoints.reached("content.named")
        finally:
            self.discard()

    def keep(self) -> None:
        if self.offset < SMALLEST_KEPT:
            self.discard()
            return
        self._close()
        self._partials.keep(self._blob, self._path, Partial(self.offset, self._hash.digest()))

    def discard(self) -> None:
        self._close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _close(self) -> None:
        self._hash.close()
        os.close(self.fd)
