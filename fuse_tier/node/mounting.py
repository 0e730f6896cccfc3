"""The steps of a mount and of its end that may block, each under its deadline.

They run in threads. One that waits for a filesystem of ours is set free when its deadline has passed, by ending
that filesystem's daemon or connection; one that waits for somebody else's cannot be, and is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from fuse_tier import errors
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, MountError
from fuse_tier.mount import mountpoint
from fuse_tier.mount.mountpoint import MountpointBusy
from fuse_tier.mount.table import Mount, canonical, mount_at
from fuse_tier.node.holders import find_holders
from fuse_tier.node.processes import Child, describe
from fuse_tier.threads import run_interruptible

log = structlog.get_logger(__name__)

T = TypeVar("T")

_MOST_HOLDERS: Final = 5


async def canonical_path(path: str) -> str:
    """``path`` as the mount table has it. Raises MountError when it is not absolute, or nothing answers there."""
    if not os.path.isabs(path) or "\0" in path:
        raise MountError(f"mountpoint {path!r} is no absolute path: give it from the root")
    return await _outside(partial(canonical, path), path)


async def check(path: str, ram_root: str) -> None:
    """Raises MountError unless a volume can be mounted at the canonical ``path``."""
    await _outside(partial(mountpoint.check_mountpoint, path, ram_root), path)


@dataclass(frozen=True, slots=True)
class Serving:
    """A mount that answers."""

    mount: Mount
    passthrough: bool
    """The kernel bypasses the daemon for file content."""
    plain_reason: str
    """Why it does not; empty when it does."""


async def begin_serving(path: str, child: Child) -> Serving:
    """Waits until the daemon ``child`` serves at ``path``, and sees for itself.

    Raises MountError or what the daemon reports.
    """
    with trio.move_on_after(Deadline.DAEMON_START):
        said = await child.next_line()
        if said is None:
            raise MountError(f"{path} could not be mounted: the keeper {describe(await child.wait())}: see its log")
        if "error" in said:
            raise reported(path, said["error"])
        mount = await run_interruptible(partial(_find_our_mount, path), child.kill, trio.CapacityLimiter(1))
        return Serving(mount, bool(said.get("passthrough")), str(said.get("reason", "")))
    raise DeadlineExceeded(f"{path} was not mounted within {Deadline.DAEMON_START:g} s: see the daemon's log")


def _find_our_mount(path: str) -> Mount:
    mount = mount_at(path)
    if mount is None or not mount.is_ours:
        raise MountError(f"{path} could not be mounted: its daemon serves, but the mount table shows nothing of ours")
    if os.stat(path).st_dev != mount.device:
        raise MountError(f"{path} could not be mounted: another filesystem was mounted over it at the same time")
    os.statvfs(path)  # attributes may come from the kernel's cache, this comes from the daemon
    return mount


def reported(path: str, error: object) -> FuseTierError:
    """What a keeper said that it failed with, as an error of our own."""
    if not isinstance(error, dict):
        return MountError(f"{path} could not be mounted: {error}")
    kind = getattr(errors, str(error.get("type")), None)
    if isinstance(kind, type) and issubclass(kind, FuseTierError) and kind is not errors.SnapshotConflict:
        return kind(error.get("message"))
    return MountError(f"{path} could not be mounted: {error.get('message')}")


async def end(path: str, *, lazy: bool, patience_seconds: float = Deadline.KERNEL_UNMOUNT) -> None:
    """Unmounts ``path``. Raises MountpointBusy when it is in use and not ``lazy``, MountError, DeadlineExceeded."""
    limiter = trio.CapacityLimiter(1)
    work = partial(mountpoint.unmount, path, lazy=lazy)
    with trio.move_on_after(patience_seconds):
        await run_interruptible(work, partial(mountpoint.abort_connection, path), limiter)
        return
    raise DeadlineExceeded(f"{path} was not unmounted within {patience_seconds:g} s: its connection was aborted")


async def detach(path: str) -> bool:
    """Takes the mount at ``path`` out of sight, whatever it takes; says whether nobody used it any more.

    In order, else aside (who has it open keeps it for the time being), else by force. Raises MountError when even
    that was refused.
    """
    try:
        await end(path, lazy=False, patience_seconds=Deadline.DETACH_TRY)
        return True
    except MountpointBusy:
        pass
    except (MountError, DeadlineExceeded) as error:
        log.warning("mount.forced", mountpoint=path, reason=str(error))
        await _outside(partial(mountpoint.abort_connection, path), path, Deadline.DETACH_TRY)
    await end(path, lazy=True, patience_seconds=Deadline.DETACH_TRY)
    return False


async def take_back(path: str) -> None:
    """Takes away what a failed mount has left at ``path``, where no volume was before. Not to be cancelled."""
    with trio.CancelScope(shield=True):
        mount = mount_at(path)
        if mount is not None and mount.is_ours:
            await end(path, lazy=True)


async def name_holders(path: str, complaint: str) -> str:
    """``complaint`` about a busy mount at ``path``, with the processes that keep it so where they can be seen."""
    holders = await trio.to_thread.run_sync(find_holders, path)
    if not holders:
        return complaint
    shown = ", ".join(map(str, holders[:_MOST_HOLDERS]))
    more = f" and {len(holders) - _MOST_HOLDERS} more" if len(holders) > _MOST_HOLDERS else ""
    return f"{complaint} (in use by {shown}{more})"


async def _outside(work: Callable[[], T], path: str, patience_seconds: float = Deadline.CHANNEL_CALL) -> T:
    """What may touch a filesystem that is not ours, and wait for it as long as it likes."""
    with trio.move_on_after(patience_seconds):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    raise MountError(f"mountpoint {path} cannot be used: the filesystem that it lies on does not answer")
