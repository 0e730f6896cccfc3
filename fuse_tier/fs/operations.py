"""All operations of a mount: one object."""

from __future__ import annotations

from collections.abc import Sequence

from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.directories import DirectoryOperations
from fuse_tier.fs.files import FileOperations
from fuse_tier.fs.names import NameOperations
from fuse_tier.fs.requests import Request
from fuse_tier.fs.space import SpaceOperations


class Operations(NameOperations, FileOperations, SpaceOperations, DirectoryOperations):
    """Names, files, directories and, here, extended attributes; each operation raises OSError.

    Permissions are the kernel's business (default_permissions).
    """

    @staticmethod
    def never_has(name: bytes) -> bool:
        """Whether nothing here has this attribute."""
        return Attributes.is_never_there(name)

    async def getxattr(self, inode: int, name: bytes, request: Request) -> bytes:
        """Reads an attribute."""
        return await self._attributes.read(inode, name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, flags: int, request: Request) -> None:
        """Sets an attribute, or waits for a tier."""
        if self._attributes.is_stored(name):
            if self._changes.held:
                await self._changes.passed()
            self._attributes.store(inode, name, value, flags, request)
            self._changes.record()
        else:
            await self._attributes.request(inode, name, value)

    def listxattr(self, inode: int, request: Request) -> Sequence[bytes]:
        """Lists the job's attributes."""
        return self._attributes.names(inode)

    async def removexattr(self, inode: int, name: bytes, request: Request) -> None:
        """Removes an attribute."""
        if self._changes.held:
            await self._changes.passed()
        self._attributes.remove(inode, name, request)
        self._changes.record()
