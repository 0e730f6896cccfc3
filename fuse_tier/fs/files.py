"""Operations on files and their attributes; what is in open ones is read and written in space.py.

Writers are counted, and the count is visible to the worker, before anything is awaited; only then is the content
made safe to write. ``flush`` is not here: no handle of ours has one, which saves a round trip for each close.

A request that is sent again, because a daemon died before it answered, may have been done: then its outcome is
there, and is the answer. It has opened no handle: one whose answer was owed is answered before (handles.py).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from fuse_tier.fs.attributes import wait_until_durable
from fuse_tier.fs.base import Shared
from fuse_tier.fs.handles import OpenFile, Writing
from fuse_tier.fs.requests import Entry, NewAttributes, Opened, Request
from fuse_tier.fs.syscalls import drop_privileges

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID


class FileOperations(Shared):
    """The operations of FUSE by these names; each raises OSError."""

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, request: Request
    ) -> tuple[Opened, Entry]:
        """Makes a file and opens it."""
        room = self._reservations.expected(parent_inode, name)
        if not self._reservations.is_ready(room):
            room = await self._reservations.prepare(parent_inode, name)
        if self._share.limit:
            await self._share.look()
            room = 0 if self._share.is_used_up else room
        if self._changes.held:
            await self._changes.passed()
        access = flags & os.O_ACCMODE
        directory = self._nodes.directory(parent_inode)
        spare = None
        try:
            if room:
                spare = self._reservations.take_spare(room, access, mode, directory, name)
            fd = os.open(name, access | _CREATE, stat.S_IMODE(mode), dir_fd=directory) if spare is None else spare
        except FileExistsError:
            if request.resent:  # it was made for this very request
                self._give_away(directory, name, mode | stat.S_IFREG, request)
            elif flags & os.O_EXCL:
                raise
            return await self._open_found(parent_inode, name, flags, request)
        try:
            if self._chowns and (request.uid, request.gid) != self._ours:
                found = self._give_away(directory, name, mode | stat.S_IFREG, request)
            else:
                found = os.fstat(fd)
            entry = self._entry_at(found, parent_inode, name)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=directory)
            raise
        self._nodes.seen(found, parent_inode, name)
        writing = None
        if access == os.O_RDONLY:
            self._changes.record()
        else:
            writing = self._begin_writing(found.st_ino, synced=False)
            if room:
                if spare is None:
                    await self._reservations.reserve(fd, room)
                found = os.fstat(fd)
                writing.allocated = found.st_blocks * 512
        seen = writing is not None and self._is_seen(found, room, flags)
        try:
            opened = self._opened(OpenFile(found.st_ino, fd, writing), found.st_mode, flags, request, seen=seen)
        except BaseException:
            self._unmake(found.st_ino, parent_inode, name)
            raise
        return opened, entry

    async def tmpfile(self, parent_inode: int, mode: int, flags: int, request: Request) -> tuple[Opened, Entry]:
        """Makes a file without a name and opens it."""
        path = b"/proc/self/fd/%d" % self._nodes.directory(parent_inode)
        wanted = flags & (os.O_ACCMODE | os.O_EXCL)
        fd = os.open(path, wanted | os.O_TMPFILE | os.O_CLOEXEC, stat.S_IMODE(mode))
        try:
            if self._chowns and (request.uid, request.gid) != self._ours:
                inherits = os.stat(path).st_mode & stat.S_ISGID
                os.fchown(fd, request.uid, -1 if inherits else request.gid)
            found = os.fstat(fd)
            self._nodes.add_nameless(found, fd)
        except BaseException:
            os.close(fd)
            raise
        writing = self._begin_writing(found.st_ino, synced=False)
        file, seen = OpenFile(found.st_ino, fd, writing), self._is_seen(found, 0, flags)
        try:
            return self._opened(file, found.st_mode, flags, request, seen=seen), self._entry(found)
        except BaseException:
            self._nodes.forget([(found.st_ino, 1)])
            raise

    async def _open_found(self, parent: int, name: bytes, flags: int, request: Request) -> tuple[Opened, Entry]:
        """A create whose name is there: somebody was faster."""
        found = os.stat(name, dir_fd=self._nodes.directory(parent), follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # the kernel looks again
        self._nodes.seen(found, parent, name)
        try:
            opened = await self.open(found.st_ino, flags, request)
            now = os.fstat(self._handles.files[opened.handle].fd)
            return opened, self._entry_at(now, parent, name)
        except BaseException:
            self._nodes.forget([(found.st_ino, 1)])
            raise

    async def open(self, inode: int, flags: int, request: Request) -> Opened:
        """Opens a file."""
        access = flags & os.O_ACCMODE
        if access not in (os.O_WRONLY, os.O_RDWR):  # Linux has a fourth, for neither reading nor writing
            if flags & os.O_TRUNC:
                await self._truncate(inode, 0, request, by_open=True)
            while self._content.is_remote(inode):  # once more if it was given up again before we are awake
                await self._content.fetch(inode)
            fd = self._nodes.open(inode, os.O_RDONLY)
            mode = os.fstat(fd).st_mode if self._backings.enabled else 0
            return self._opened(OpenFile(inode, fd, None), mode, flags, request)
        if self._changes.held:
            await self._changes.passed()
        truncates = bool(flags & os.O_TRUNC)
        writing = self._begin_writing(inode, synced=not truncates)
        try:
            await self._content.prepare_for_writing(inode, keep=not truncates)
            fd = self._nodes.open(inode, access)
        except BaseException:
            self._end_writing(inode)
            raise
        try:
            room = 0
            if truncates:
                room = os.fstat(fd).st_size
                os.ftruncate(fd, 0)
                writing.synced = False
                if request.kills_privileges:
                    drop_privileges(fd)
                room = await self._reserve_again(fd, room, writing)
            found = os.fstat(fd)
            if writing.count == 1:
                writing.allocated = found.st_blocks * 512
        except BaseException:
            os.close(fd)
            self._end_writing(inode)
            raise
        file = OpenFile(inode, fd, writing)
        return self._opened(file, found.st_mode, flags, request, seen=self._is_seen(found, room, flags))

    async def _reserve_again(self, fd: int, size: int, writing: Writing) -> int:
        """For a file that was emptied to be written anew; gives what is expected of it."""
        if self._share.limit or writing.count > 1:
            return 0
        room = await self._reservations.prepare_again(size)
        if room:
            await self._reservations.reserve(fd, room)
        return room

    def _is_seen(self, found: os.stat_result, expected: int, flags: int) -> bool:
        """Whether what is written to a file has to come through us, as far as room is concerned."""
        if self._share.is_used_up:
            return True
        appends = bool(flags & os.O_APPEND)
        return self._backings.enabled and not self._reservations.may_pass(found, expected, appends=appends)

    def _opened(self, file: OpenFile, mode: int, flags: int, request: Request, *, seen: bool = False) -> Opened:
        """Answers with an open file, written through us if it is to be ``seen``; closes it if that fails."""
        counted = False
        try:
            # Where the kernel writes by itself, it leaves these bits as they are.
            file.backing = self._backings.open(file.inode, file.fd, allowed=not (seen or mode & _PRIVILEGES))
            counted = True
            if seen and file.backing and file.writing is not None:
                self._reservations.passes(file.inode)
            return self._handles.add_file(file, file.answer_flags(flags), request)
        except BaseException:
            if counted:
                self._backings.close(file.inode)
            os.close(file.fd)
            if file.writing is not None:
                self._end_writing(file.inode)
            raise

    def entry_of(self, handle: int) -> Entry:
        """The attributes of a file that is open."""
        return self._entry(os.fstat(self._handles.files[handle].fd), is_kept=False)

    def _begin_writing(self, inode: int, *, synced: bool) -> Writing:
        writing = self._handles.begin_writing(inode, synced=synced)
        self._changes.opened_for_writing()
        return writing

    def _end_writing(self, inode: int) -> None:
        if self._handles.end_writing(inode):
            self._reservations.ended(inode)
            self._changes.record()

    async def fsync(self, handle: int, data_only: bool) -> None:
        """Waits for as much as the node's configuration says."""
        writing = self._handles.writing.get(self._handles.files[handle].inode)
        # Where the kernel writes by itself, what it wrote since the last one is unknown here.
        if writing is not None and (self._backings.enabled or not writing.synced):
            writing.synced = True
            self._changes.record()
        if self._fsync != "ram":
            await wait_until_durable(self._link, self._fsync)

    def release(self, handle: int) -> None:
        """The last close. Up to the change of the count nothing is awaited: what comes after the close sees it."""
        file = self._handles.remove_file(handle)
        if file is not None:  # else a daemon that died has done it
            self.close(file)

    def close(self, file: OpenFile) -> None:
        """Closes a file whose handle is gone."""
        if file.writing is not None and file.writing.count == 1:
            allocated = self._reservations.closing(file.inode, file.fd)
            if file.backing:  # else all pages are touched by us
                self._share.grew(allocated - file.writing.allocated)
                self._handles.unreserved += max(0, allocated - file.writing.allocated)
        self._backings.close(file.inode)
        os.close(file.fd)
        if file.writing is not None:
            self._end_writing(file.inode)

    def getattr(self, inode: int, request: Request) -> Entry:
        """The attributes of anything."""
        return self._entry(self._nodes.status(inode))

    async def setattr(self, inode: int, wanted: NewAttributes, handle: int | None, request: Request) -> Entry:
        """Changes attributes, in the order in which none undoes another: owner, size, mode, times."""
        if self._changes.held:
            await self._changes.passed()
        if wanted.size is not None:
            file = None if handle is None else self._handles.files.get(handle)
            if file is None or file.writing is None:
                await self._truncate(inode, wanted.size, request)
            else:
                file.writing.synced = False
                os.ftruncate(file.fd, wanted.size)
                if request.kills_privileges:
                    drop_privileges(file.fd)
        if wanted.size is None or wanted.has_more_than_a_size:
            self._set_attributes(inode, wanted)
            self._changes.record()
        return self._entry(self._nodes.status(inode))

    def _set_attributes(self, inode: int, wanted: NewAttributes) -> None:
        with self._nodes.path(inode) as path:
            # A chown(2) that leaves both as they are comes as a request for nothing; it takes setuid bits away.
            if wanted.uid is not None or wanted.gid is not None or not wanted.has_more_than_a_size:
                os.chown(
                    path,
                    -1 if wanted.uid is None else wanted.uid,
                    -1 if wanted.gid is None else wanted.gid,
                )
            if wanted.mode is not None:
                os.chmod(path, stat.S_IMODE(wanted.mode))
            if wanted.accessed_ns is not None or wanted.modified_ns is not None:
                found = os.stat(path)
                accessed = found.st_atime_ns if wanted.accessed_ns is None else wanted.accessed_ns
                modified = found.st_mtime_ns if wanted.modified_ns is None else wanted.modified_ns
                os.utime(path, ns=(accessed, modified))

    async def _truncate(self, inode: int, size: int, request: Request, *, by_open: bool = False) -> None:
        """truncate(2), or open(2) for reading with O_TRUNC: a file that has no writer of the caller's."""
        self._begin_writing(inode, synced=False)
        try:
            await self._content.prepare_for_writing(inode, keep=size > 0)
            if by_open:
                fd = self._nodes.open(inode, os.O_WRONLY)
                try:
                    os.ftruncate(fd, size)
                finally:
                    os.close(fd)
            else:
                with self._nodes.path(inode) as path:
                    os.truncate(path, size)  # unlike ftruncate it leaves the times alone when the size stays
            if request.kills_privileges:
                with self._nodes.path(inode) as path:
                    drop_privileges(path)
        finally:
            self._end_writing(inode)
