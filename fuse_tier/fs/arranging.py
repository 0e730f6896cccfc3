"""Names at the root of the mount that the worker puts there and takes away, at once for whoever looks.

It does so for the file protocol of training frameworks (protocolfiles.py): what an earlier life of the job left is
moved out of sight, and what was prepared beside the tree is moved in. The kernel is not told of such a change,
because whoever tells it may wait for an operation that waits for this daemon; so it must not keep names that may be
moved. A name keeps what was promised for it when it is renamed, so once somebody has shown to know the protocol, no
name of the root is kept; nor is any where a container that is started again may be given another step (lives.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

from fuse_tier.fs.changes import Changes
from fuse_tier.fs.nodes import ROOT, Nodes
from fuse_tier.protocolfiles import may_be_moved, speaks
from fuse_tier.ram.layout import VolumeLayout


class Arranging:
    """The names of one mount's root."""

    def __init__(self, volume: VolumeLayout, nodes: Nodes, changes: Changes) -> None:
        self._volume = volume
        self._nodes = nodes
        self._changes = changes
        self._is_spoken = os.path.exists(volume.order) or os.path.exists(volume.lives)

    def asked(self, name: bytes) -> None:
        """Somebody asks for a name of the root, be it there or not."""
        self._is_spoken = self._is_spoken or speaks(name)

    def may_be_kept(self, name: bytes) -> bool:
        """Whether the kernel may keep a name of the root."""
        self.asked(name)
        return not self._is_spoken and not may_be_moved(name)

    async def arrange(self, away: Collection[bytes], bring: Collection[tuple[bytes, bytes]]) -> None:
        """Moves names of the root into ``swept``, then names of ``staged`` to the root, with nothing in between.

        What has been done before, by a call that was not answered, is passed over. Raises OSError.
        """
        if self._changes.held:
            await self._changes.passed()
        self._is_spoken = True
        swept = os.open(self._volume.swept, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        staged = os.open(self._volume.staged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            brought = {name for source, name in bring if not _is_there(source, staged)}
            for name in away:
                if name in brought:
                    continue
                with suppress(FileNotFoundError), self._nodes.removing(ROOT, name) as root:
                    os.rename(name, name, src_dir_fd=root, dst_dir_fd=swept)
            for source, name in bring:
                with suppress(FileNotFoundError):
                    os.rename(source, name, src_dir_fd=staged, dst_dir_fd=self._nodes.root)
        finally:
            os.close(swept)
            os.close(staged)
            self._changes.record()


def _is_there(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
