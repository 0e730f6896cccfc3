"""What comes to the root of a mounted tree and what goes from it, without going through the mount.

It is prepared beside the tree and moved by the mount's daemon, which alone knows what the kernel has been told
(fs/arranging.py). A daemon that dies meanwhile is waited for, and asked again: all of it may be repeated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress

import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError, MountError
from fuse_tier.protocolfiles import ORDER, is_stale, step_in
from fuse_tier.ram.layout import VolumeLayout
from fuse_tier.replicate.tree import remove_tree
from fuse_tier.replicate.volume import Volume
from fuse_tier.wire.channel import ChannelClosed
from fuse_tier.yamlfile import MAX_FILE_BYTES


class Stage:
    """Of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._layout: VolumeLayout = volume.layout

    async def begin(self) -> None:
        """Steps may go out of sight from here on, and no snapshot is taken until ``end``."""
        await trio.to_thread.run_sync(self._make)
        self._volume.is_arranged = True

    def _make(self) -> None:
        for directory in (self._layout.swept, self._layout.staged):  # staged says that something may be swept
            remove_tree(directory)
            os.mkdir(directory, 0o700)

    async def end(self) -> None:
        """All is where it belongs. What was swept is gone; its content stays in snapshots."""
        await trio.to_thread.run_sync(self._remove)
        self._volume.is_arranged = False
        self._volume.news.announce()

    def _remove(self) -> None:
        remove_tree(self._layout.swept)
        remove_tree(self._layout.staged)

    async def put_back(self, texts: dict[bytes, str], away: Collection[str] = ()) -> None:
        """Steps that were swept are in sight again, as they were, and small files appear with them."""
        names = await trio.to_thread.run_sync(self._stage_again)
        await self.write(texts)
        brought = [*names, *(os.fsdecode(name) for name in texts)]
        await self.arrange(away, [(name, name) for name in brought])

    def _stage_again(self) -> list[str]:
        names = []
        for name in sorted(os.listdir(self._layout.swept)):
            path = os.path.join(self._layout.swept, name)
            if _is_content(path) and not os.path.lexists(os.path.join(self._layout.tree, name)):
                _replace(path, os.path.join(self._layout.staged, name))
                names.append(name)
        return names

    async def undo(self) -> None:
        """A tree that is not mounted any more has what was swept, also where something was brought in its place.

        So it is the job's own newest again, of which the last snapshot is about to be taken, and no mix of two.
        """

        def work() -> None:
            for name in sorted(os.listdir(self._layout.swept)):
                path = os.path.join(self._layout.swept, name)
                if _is_content(path):
                    _replace(path, os.path.join(self._layout.tree, name))

        await trio.to_thread.run_sync(work)
        await self.end()

    async def stale(self) -> list[str]:
        """The names at the root that no job that starts may see."""
        names = await trio.to_thread.run_sync(os.listdir, os.fsencode(self._layout.tree))
        return sorted(os.fsdecode(name) for name in names if is_stale(name))

    async def put(self, texts: dict[bytes, str], away: Collection[str] = ()) -> None:
        """Small files appear at the root, whole, after those names have gone from it."""
        await self.write(texts)
        await self.arrange(away, [(os.fsdecode(name), os.fsdecode(name)) for name in texts])

    async def write(self, texts: dict[bytes, str]) -> None:
        """Small files are staged."""
        await trio.to_thread.run_sync(self._write, texts)

    def _write(self, texts: dict[bytes, str]) -> None:
        for name, text in texts.items():
            path = os.path.join(os.fsencode(self._layout.staged), name)
            with suppress(FileNotFoundError):
                os.unlink(path)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o666)  # noqa: S103 - whoever the job runs as reads it, and removes it

    async def arrange(self, away: Collection[str], bring: Collection[tuple[str, str]]) -> None:
        """Has the daemon move names away, then others in. Raises MountError when no daemon has done it in time."""
        volume = self._volume
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while True:
                version = volume.news.version
                if volume.arrange is not None:
                    with suppress(ChannelClosed):
                        return await volume.arrange(away, bring)
                await volume.news.wait_beyond(version)
        raise MountError(f"the mount daemon of {volume.identity} did not answer in {Deadline.SUPERVISOR_CONNECT:g} s")


def _is_content(path: str) -> bool:
    """Whether what was swept is more than a message to a life of the job that has ended."""
    return not is_stale(os.fsencode(os.path.basename(path))) or holds_a_step(path)


def _replace(source: str, target: str) -> None:
    """Moves something to where something else may be, of another kind perhaps."""
    if os.path.isdir(target) and not os.path.islink(target):
        remove_tree(target)
    elif os.path.lexists(target):
        os.unlink(target)
    os.rename(source, target)


def holds_a_step(path: str) -> bool:
    """Whether a stale name is more than a message."""
    is_content = os.path.isdir(path) or os.path.getsize(path) > 0
    return is_content and step_in(os.fsencode(os.path.basename(path))) is not None


def read_order_file(layout: VolumeLayout) -> tuple[os.stat_result, bytes]:
    """What stands at the root under the name of an order. Raises FileNotFoundError, ConfigError. Blocks."""
    path = os.path.join(os.fsencode(layout.tree), ORDER)
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{os.fsdecode(ORDER)}: is no file: write it as one")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return os.fstat(fd), file.read(MAX_FILE_BYTES + 1)
