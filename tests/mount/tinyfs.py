"""A FUSE filesystem of almost nothing: an empty root directory and one file, ``file``, that can be held open.

Run as ``python tinyfs.py MOUNTPOINT SUBTYPE [UID]``; it prints a line when it is mounted, and ends when that is
unmounted. With SIGUSR1 it stops answering, until its connection is aborted or it is killed.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys

import pyfuse3
import trio

FILE = pyfuse3.ROOT_INODE + 1


class TinyFilesystem(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.stuck = False

    async def _answer(self) -> None:
        if self.stuck:
            await trio.sleep_forever()

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        await self._answer()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.entry_timeout = entry.attr_timeout = 3600.0
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        await self._answer()
        return pyfuse3.StatvfsData()

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, handle: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        if start == 0:
            pyfuse3.readdir_reply(token, b"file", await self.getattr(FILE), 1)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode)


async def serve(filesystem: TinyFilesystem) -> None:
    async def obey() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            sys.stdout.write('{"serving": true}\n')
            sys.stdout.flush()
            async for _ in signals:
                filesystem.stuck = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def main(mountpoint: str, subtype: str, uid: str | None = None) -> None:
    if uid is not None:
        # Here, because an ordinary user may not be able to read this program and its libraries.
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    filesystem = TinyFilesystem()
    pyfuse3.init(filesystem, mountpoint, {"fsname=tiny", f"subtype={subtype}"})
    trio.run(serve, filesystem)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
