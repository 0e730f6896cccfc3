"""Inodes that have no name any more, and that the kernel still knows: each by a descriptor (O_PATH) of its own.

Each is left with the keeper before it loses its last name, so that it outlives this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from fuse_tier.mount.deposits import Deposit, Depositor, Kind, orphan_key


class Orphans:
    """The orphans of one mount, by inode number."""

    def __init__(self, depositor: Depositor) -> None:
        self._depositor = depositor
        self._descriptors: dict[int, int] = {}

    def __contains__(self, inode: int) -> bool:
        return inode in self._descriptors

    def get(self, inode: int) -> int | None:
        """The descriptor of one; None if there is none."""
        return self._descriptors.get(inode)

    def adopt(self, deposits: Iterable[tuple[Deposit, int]]) -> Iterator[int]:
        """Takes over what a daemon before this one had; gives their numbers."""
        for deposit, fd in deposits:
            if deposit.kind is Kind.ORPHAN:
                self._descriptors[deposit.inode] = fd
                yield deposit.inode

    def announce(self, inode: int, fd: int) -> None:
        """Before an inode may lose its last name: leaves its descriptor with the keeper. Raises OSError."""
        self._depositor.leave(Deposit.of_orphan(inode), fd)

    def keep(self, inode: int, fd: int) -> None:
        """An inode that was announced has lost its last name; the descriptor is ours from here on."""
        self._descriptors[inode] = fd

    def withdraw(self, inode: int, fd: int) -> None:
        """An inode that was announced has kept a name."""
        os.close(fd)
        self._depositor.remove(orphan_key(inode))

    def drop(self, inode: int) -> None:
        """The kernel has forgotten an inode, or it has a name again; does nothing for others."""
        fd = self._descriptors.pop(inode, None)
        if fd is not None:
            self.withdraw(inode, fd)

    def close(self) -> None:
        """Closes all descriptors."""
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()
