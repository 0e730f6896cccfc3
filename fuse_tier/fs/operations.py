"""All operations of a mount, as pyfuse3 wants them: one object."""

from __future__ import annotations

from collections.abc import Sequence

import pyfuse3

from fuse_tier.fs.directories import DirectoryOperations
from fuse_tier.fs.files import FileOperations
from fuse_tier.fs.guard import guarded
from fuse_tier.fs.names import NameOperations


class Operations(NameOperations, FileOperations, DirectoryOperations):
    """Names, files, directories and, here, extended attributes; each operation raises FUSEError.

    Permissions are the kernel's business (default_permissions).
    """

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Reads an attribute."""
        return await self._attributes.read(inode, name)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Sets an attribute, or waits for a tier."""
        if self._attributes.is_stored(name):
            if self._changes.held:
                await self._changes.passed()
            self._attributes.store(inode, name, value)
            self._changes.record()
        else:
            await self._attributes.request(inode, name, value)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Lists the job's attributes."""
        return self._attributes.names(inode)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Removes an attribute."""
        if self._changes.held:
            await self._changes.passed()
        self._attributes.remove(inode, name)
        self._changes.record()
