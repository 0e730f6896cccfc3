"""How a file of the live tree becomes immutable content without being copied.

A sealed file and its blob are two names of one inode. That costs no memory and no time, and it is right as
long as nobody writes to the inode; so before a file is opened for writing (or truncated), its content is
copied away, and the blob becomes the copy: ``detach``. The live file keeps its inode.

``pins/<inode>`` says what is known of a live file's content:

* it is not there: nothing; the file may be being written;
* it is a regular file: the same inode, or, after a detach, a copy of what it was. Content that a snapshot
  wants and that has not been hashed yet. Hash it, see that it is still the same inode, then ``adopt``;
* it is a symlink: the content is the blob that the link names. If that blob is the same inode it must be
  detached before a write; if it is another inode (equal content), the link only goes away.

All changes are made under the volume's lock (flock, so the kernel releases it when a process dies). The
invariant: **an inode that may be written has no pin**, and a blob that any manifest names is no such inode.
A worker that starts anew collects garbage before it adopts anything: so a blob left by a crash in the middle
of ``adopt``, which no manifest names yet, is never taken for good.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fuse_tier.blobs import Blob
from fuse_tier.ram.layout import Layout, VolumeLayout

_CHUNK = 64 << 20


class Pins:
    """The pins of one volume. All methods block, briefly unless they copy; any thread may call them."""

    def __init__(self, layout: Layout, volume: VolumeLayout) -> None:
        self._layout = layout
        self._volume = volume

    def path(self, inode: int) -> str:
        """Where the pin of an inode stands, if it is there."""
        return os.path.join(self._volume.pins, str(inode))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the volume's lock. Never taken twice by one thread."""
        fd = os.open(self._volume.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def known_blob(self, inode: int) -> Blob | None:
        """What a live file's content is known to be, and kept as."""
        try:
            target = os.readlink(self.path(inode))
            os.stat(self.path(inode))  # the blob may have been collected
        except OSError:  # ENOENT: nothing is known; EINVAL: a regular file, not hashed yet
            return None
        return Blob.parse(os.path.basename(target))

    def shares_inode(self, inode: int) -> bool:
        """Whether a further name of this inode is held by us: what a job sees as its link count is one less."""
        try:
            return os.stat(self.path(inode)).st_ino == inode
        except FileNotFoundError:
            return False

    def pin(self, path: str, inode: int) -> bool:
        """Keeps the content that a live file has now; says whether it is new, so that it must be hashed.

        The caller makes sure that the file has no writer, before or afterwards (a pin that came too late is
        taken back with ``unpin``). A copy that a detach left, of what the file was, gives way.
        """
        pin = self.path(inode)
        with self.locked():
            if os.path.lexists(pin):
                if os.path.exists(pin) and (os.path.islink(pin) or os.lstat(pin).st_ino == inode):
                    return False
                os.unlink(pin)
            os.link(path, pin, follow_symlinks=False)
            return True

    def unpin(self, inode: int) -> None:
        """Forgets what was known of a live file's content; a blob of that content stays."""
        with self.locked(), suppress(FileNotFoundError):
            os.unlink(self.path(inode))

    def adopt(self, inode: int, hashed: os.stat_result, blob: Blob) -> bool:
        """Names a pin's content, after it was hashed; False if the pin is no longer the file that was hashed.

        ``hashed`` is the fstat of the descriptor that was read.
        """
        pin, target = self.path(inode), self._layout.blob(blob)
        with self.locked():
            try:
                found = os.lstat(pin)
            except FileNotFoundError:
                return False
            if (found.st_dev, found.st_ino) != (hashed.st_dev, hashed.st_ino):
                return False
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with suppress(FileExistsError):  # equal content is here already: that inode serves
                os.link(pin, target)
            if found.st_ino == inode:
                link_to_blob(self._layout, target, pin)
            else:  # detached meanwhile: the live file is being written
                os.unlink(pin)
            return True

    def detach(self, inode: int) -> None:
        """Makes a live file safe to write. Copies its content if, and only if, we hold that very inode.

        Raises OSError (ENOSPC) when there is no room for the copy; nothing has changed then.
        """
        pin = self.path(inode)
        with self.locked():
            try:
                target = os.path.join(os.path.dirname(pin), os.readlink(pin))
                symlink = True
            except FileNotFoundError:
                return
            except OSError:
                target, symlink = pin, False
            try:
                same = os.stat(target).st_ino == inode
            except FileNotFoundError:
                same = False
            if same:
                self._replace_with_copy(target)
            if symlink:
                os.unlink(pin)

    def _replace_with_copy(self, path: str) -> None:
        copy = os.path.join(self._layout.incoming, secrets.token_hex(8))
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(source).st_size
                if size:
                    os.posix_fallocate(target, 0, size)
                while os.sendfile(target, source, None, _CHUNK):
                    continue
            finally:
                os.close(target)
            os.rename(copy, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(copy)
            raise
        finally:
            os.close(source)


def link_to_blob(layout: Layout, target: str, pin: str) -> None:
    """Puts a symlink to a blob in a pin's or placeholder's place, at once."""
    temporary = os.path.join(layout.incoming, secrets.token_hex(8))
    os.symlink(os.path.relpath(target, os.path.dirname(pin)), temporary)
    os.rename(temporary, pin)
