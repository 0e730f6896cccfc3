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

All changes are made under the volume's lock (flock, so the kernel releases it when a process dies), and in an
order in which a crash between any two steps leaves this true: **an inode that a blob is has a pin that says so,
for as long as anybody may open it for writing.** So the symlink is there before the blob, and goes away after
the blob has become a copy.

Two more rules are kept by those who call. A daemon counts a writer first and detaches then: a worker that pins
in between sees the count when it asks again, and takes the pin back. A worker takes one snapshot of a volume at
a time, so nothing that was hashed before a pin is adopted after it.

Half-made files are called ``<inode>.new`` here, not put into ``incoming/``, which a worker clears at its start
while daemons live on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
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
        self._directory = volume.pins  # put together once: pins are looked at for each file of a tree

    def path(self, inode: int) -> str:
        """Where the pin of an inode stands, if it is there."""
        return f"{self._directory}/{inode}"

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
        """Whether a further name of this inode is held by us: what a job sees as its link count is one less.

        While a pin is being changed, for some microseconds, the answer may be off by one.
        """
        return _inode_of(self.path(inode)) == inode

    def pin(self, path: str, inode: int) -> bool:
        """Keeps the content that a live file has now; False if it is kept already, hashed or not.

        The caller makes sure that the file has no writer, before or afterwards (a pin that came too late is
        taken back with ``unpin``). A copy that a detach left, of what the file was, gives way.
        Raises FileNotFoundError when the path is no longer that inode.
        """
        with self.locked():
            if self._is_kept(inode):
                return False
            fresh = self._fresh(inode)
            os.link(path, fresh, follow_symlinks=False)
            if os.lstat(fresh).st_ino != inode:
                # Another file has taken the name: under this number nobody would ever detach it.
                os.unlink(fresh)
                raise FileNotFoundError(errno.ENOENT, "another file has this name now", path)
            os.rename(fresh, self.path(inode))
            return True

    def unpin(self, inode: int) -> None:
        """Takes back a pin that came too late.

        Not if it is adopted and the blob is that very inode: then only ``detach`` makes it safe to write.
        """
        pin = self.path(inode)
        with self.locked(), suppress(FileNotFoundError):
            if not (os.path.islink(pin) and self.shares_inode(inode)):
                os.unlink(pin)

    def forget(self, inode: int) -> None:
        """Drops the pin of a file that is gone from the tree, unless a blob is that very inode.

        A process may still hold the file open, and open it anew for writing through /proc: then ``detach``
        needs the pin.
        """
        self.unpin(inode)

    def recover(self) -> None:
        """Forgets what was pinned and never hashed: for the start of a worker, before it pins anything."""
        with self.locked():
            for name in os.listdir(self._volume.pins):
                pin = os.path.join(self._volume.pins, name)
                if not (os.path.islink(pin) and os.path.exists(pin)):
                    os.unlink(pin)

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
            if found.st_ino != inode:  # detached meanwhile: the live file is being written
                _name(pin, target, blob)
                os.unlink(pin)
                return True
            fresh = self._fresh(inode)
            os.link(pin, fresh)
            try:
                # The symlink first: it leads nowhere yet, so nothing is known. The other way round, a crash in
                # between would leave a blob that is this inode, and no pin to tell the next writer so.
                link_to_blob(self._layout, target, pin)
                _name(fresh, target, blob)
            finally:
                os.unlink(fresh)
            return True

    def detach(self, inode: int) -> None:
        """Makes a live file safe to write. Copies its content if, and only if, we hold that very inode.

        Raises OSError (ENOSPC) when there is no room for the copy; nothing has changed then.
        """
        pin = self.path(inode)
        with self.locked():
            try:
                target = os.path.join(os.path.dirname(pin), os.readlink(pin))
            except FileNotFoundError:
                return
            except OSError:  # EINVAL: it is a file, not hashed yet
                self._replace_with_copy(pin, inode)
                return
            self._replace_with_copy(target, inode)
            os.unlink(pin)

    def _is_kept(self, inode: int) -> bool:
        pin = self.path(inode)
        try:
            found = os.lstat(pin)
        except FileNotFoundError:
            return False
        return os.path.exists(pin) if stat.S_ISLNK(found.st_mode) else found.st_ino == inode

    def _fresh(self, inode: int) -> str:
        """Where the next pin is made; nothing is there. Under the lock."""
        fresh = f"{self.path(inode)}.new"
        with suppress(FileNotFoundError):  # a process died here
            os.unlink(fresh)
        return fresh

    def _replace_with_copy(self, path: str, inode: int) -> None:
        """Does nothing if another inode is at the path, or none (a blob may be collected at any time)."""
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            status = os.fstat(source)
            if status.st_ino != inode:
                return
            copy = self._fresh(inode)
            try:
                _copy(source, status.st_size, copy)
                os.rename(copy, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(copy)
                raise
        finally:
            os.close(source)


def _copy(source: int, size: int, path: str) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size:
            os.posix_fallocate(target, 0, size)
        while os.sendfile(target, source, None, _CHUNK):
            continue
    finally:
        os.close(target)


def _name(path: str, target: str, blob: Blob) -> None:
    """Gives content its blob's name. If that is here already it serves, unless it is plainly something else."""
    try:
        os.link(path, target)
    except FileExistsError:
        if os.lstat(target).st_size != blob.size:
            os.unlink(target)
            os.link(path, target)


def _inode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def link_to_blob(layout: Layout, target: str, pin: str, *, is_new: bool = False) -> None:
    """Puts a symlink to a blob in a pin's or placeholder's place, at once; ``is_new``: probably nothing is there."""
    link = os.path.relpath(target, os.path.dirname(pin))
    if is_new:
        with suppress(FileExistsError):
            return os.symlink(link, pin)
    temporary = os.path.join(layout.incoming, secrets.token_hex(8))
    os.symlink(link, temporary)
    os.rename(temporary, pin)
    return None
