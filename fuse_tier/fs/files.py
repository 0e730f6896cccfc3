"""Operations on files: their content and their attributes.

Writers are counted, and the count is visible to the worker, before anything is awaited; only then is the content
made safe to write. ``flush`` is not here: answered ENOSYS once, it saves a round trip for each close, and has no
work to do.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

import pyfuse3

from fuse_tier.fs.attributes import wait_until_durable
from fuse_tier.fs.base import Shared
from fuse_tier.fs.guard import guarded
from fuse_tier.fs.handles import OpenFile, Writing

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVILEGES: Final = stat.S_ISUID | stat.S_ISGID


class FileOperations(Shared):
    """The operations that pyfuse3 names so; each raises FUSEError."""

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Makes a file and opens it."""
        if self._changes.held:
            await self._changes.passed()
        access = flags & os.O_ACCMODE
        directory = self._nodes.directory(parent_inode)
        try:
            fd = os.open(name, access | _CREATE, stat.S_IMODE(mode), dir_fd=directory)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return await self._open_found(parent_inode, name, flags, ctx)
        try:
            if self._chowns and (ctx.uid, ctx.gid) != self._ours:
                found = self._give_away(directory, name, mode | stat.S_IFREG, ctx)
            else:
                found = os.fstat(fd)
            entry = self._entry(found)
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=directory)
            raise
        self._nodes.seen(found, parent_inode, name)
        writing = None
        if access == os.O_RDONLY:
            self._changes.record()
        else:
            writing = self._handles.begin_writing(found.st_ino, synced=False)
            self._changes.opened_for_writing()
        return self._opened(OpenFile(found.st_ino, fd, writing)), entry

    async def _open_found(
        self, parent: int, name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """A create whose name is there: somebody was faster."""
        found = os.stat(name, dir_fd=self._nodes.directory(parent), follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # the kernel looks again
        self._nodes.seen(found, parent, name)
        try:
            file = await self._open(found.st_ino, flags, ctx)
            return self._opened(file), self._entry(os.fstat(file.fd))
        except BaseException:
            self._nodes.forget([(found.st_ino, 1)])
            raise

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Opens a file."""
        return self._opened(await self._open(inode, flags, ctx))

    async def _open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> OpenFile:
        access = flags & os.O_ACCMODE
        if access == os.O_RDONLY:
            if flags & os.O_TRUNC:
                await self._truncate(inode, 0, ctx, by_open=True)
            if self._content.is_remote(inode):
                await self._content.fetch(inode)
            return OpenFile(inode, self._nodes.open(inode, os.O_RDONLY), None)
        if self._changes.held:
            await self._changes.passed()
        truncates = bool(flags & os.O_TRUNC)
        writing = self._begin_writing(inode, synced=not truncates)
        try:
            await self._content.prepare_for_writing(inode, keep=not truncates)
            file = OpenFile(inode, self._nodes.open(inode, access), writing)
        except BaseException:
            self._end_writing(inode)
            raise
        try:
            if truncates:
                os.ftruncate(file.fd, 0)
                writing.synced = False
            if ctx.uid != 0:
                file.drops_privileges = bool(os.fstat(file.fd).st_mode & _PRIVILEGES)
                if truncates:
                    _drop_privileges(file.fd)
        except BaseException:
            os.close(file.fd)
            self._end_writing(inode)
            raise
        return file

    def _opened(self, file: OpenFile) -> pyfuse3.FileInfo:
        # Cached pages stay right from one open to the next: nobody else writes.
        return pyfuse3.FileInfo(fh=self._handles.add_file(file), keep_cache=True)

    def _begin_writing(self, inode: int, *, synced: bool) -> Writing:
        writing = self._handles.begin_writing(inode, synced=synced)
        self._changes.opened_for_writing()
        return writing

    def _end_writing(self, inode: int) -> None:
        if self._handles.end_writing(inode):
            self._changes.record()

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Reads."""
        return os.pread(self._handles.files[fh].fd, size, off)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Writes; what there was no room for is not counted."""
        file = self._handles.files[fh]
        if file.drops_privileges:
            file.drops_privileges = False
            _drop_privileges(file.fd)
        writing = file.writing
        if writing is not None:
            writing.synced = False
        return os.pwrite(file.fd, buf, off)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Waits for as much as the node's configuration says."""
        writing = self._handles.writing.get(self._handles.files[fh].inode)
        if writing is not None and not writing.synced:
            writing.synced = True
            self._changes.record()
        if self._fsync != "ram":
            await wait_until_durable(self._link, self._fsync)

    @guarded
    async def release(self, fh: int) -> None:
        """The last close. Up to the change of the count nothing is awaited: what comes after the close sees it."""
        file = self._handles.files.pop(fh)
        os.close(file.fd)
        if file.writing is not None:
            self._end_writing(file.inode)

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """The attributes of anything."""
        return self._entry(self._nodes.status(inode))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Changes attributes, in the order in which none undoes another: owner, size, mode, times."""
        if self._changes.held:
            await self._changes.passed()
        if fields.update_size:
            file = None if fh is None else self._handles.files.get(fh)
            if file is None or file.writing is None:
                await self._truncate(inode, attr.st_size, ctx)
            else:
                file.writing.synced = False
                os.ftruncate(file.fd, attr.st_size)
                if ctx.uid != 0:
                    _drop_privileges(file.fd)
        if fields.update_uid or fields.update_gid or fields.update_mode or fields.update_atime or fields.update_mtime:
            self._set_attributes(inode, attr, fields)
            self._changes.record()
        return self._entry(self._nodes.status(inode))

    def _set_attributes(self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
        with self._nodes.path(inode) as path:
            if fields.update_uid or fields.update_gid:
                os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
            if fields.update_mode:
                os.chmod(path, stat.S_IMODE(attr.st_mode))
            if fields.update_atime or fields.update_mtime:
                found = os.stat(path)
                accessed = attr.st_atime_ns if fields.update_atime else found.st_atime_ns
                modified = attr.st_mtime_ns if fields.update_mtime else found.st_mtime_ns
                os.utime(path, ns=(accessed, modified))

    async def _truncate(self, inode: int, size: int, ctx: pyfuse3.RequestContext, *, by_open: bool = False) -> None:
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
            if ctx.uid != 0:
                with self._nodes.path(inode) as path:
                    _drop_privileges(path)
        finally:
            self._end_writing(inode)


def _drop_privileges(file: int | bytes) -> None:
    """What write(2) and truncate(2) do for a caller who isn't root; as root, the tmpfs doesn't do it for us."""
    mode = stat.S_IMODE(os.stat(file).st_mode)
    kept = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        kept &= ~stat.S_ISGID
    if kept != mode:
        os.chmod(file, kept)
