"""The volumes that are mounted on this node: one keeper each, from the mount call until its mount has gone.

Not here: what is in a volume. It asks no worker, so mounts work and end while the worker is away.

Invariant: of one identity at most one daemon serves. Two on one tree would not know of each other's writers.

A keeper starts its volume's daemon again when that dies, and nobody notices. A keeper that ends before its mount, or
gives up, leaves the mount in place, dead: the job then gets ENOTCONN from every call. Were the mount
taken away, the job would write on into the bare directory below, and lose that without an error; and one more
mount over it would not reach containers that run already. So only an unmount ends it.

Between two awaits the table below is consistent: an entry is made before the first await of a mount, and stays
until its mount is gone. Calls for one mountpoint take turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, IdentityBusy, MountError
from fuse_tier.identity import Identity
from fuse_tier.mount.mountpoint import MountpointBusy
from fuse_tier.mount.table import Mount, mount_at
from fuse_tier.node import mounting
from fuse_tier.node.processes import Child, describe, running

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """What every daemon of a node is started with."""

    command: Sequence[str]
    ram_root: str
    worker_socket: str
    fsync: str
    passthrough: str = "auto"
    expected_sizes: Sequence[tuple[str, int]] = ()


@dataclass(slots=True, eq=False)
class _Volume:
    identity: Identity
    mountpoint: str
    read_only: bool
    passthrough: bool = False
    plain_reason: str = ""
    """Why there is no passthrough."""
    mount: Mount | None = None
    kept: bool = False
    """It has been mounted, and outlives the call that mounted it."""
    child: Child | None = None
    reason: str = ""
    """Why it has failed; empty while it has not."""
    ended: trio.Event = field(default_factory=trio.Event)
    """Its daemon has ended, and what that means is known."""

    def mounted(self) -> bool:
        """Whether its mount is still in place, alive or dead. Reads the mount table, which never hangs."""
        found = mount_at(self.mountpoint)
        return found is not None and self.mount is not None and found.number == self.mount.number


class Volumes:
    """The mounted volumes of a node. ``nursery`` owns their tasks; when it is cancelled the daemons are killed."""

    def __init__(self, settings: DaemonSettings, nursery: trio.Nursery) -> None:
        self._settings = settings
        self._nursery = nursery
        self._volumes: dict[str, _Volume] = {}
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def check(self, identity: Identity, mountpoint: str) -> str:
        """Whether ``mount`` could succeed, before anything is prepared for it; gives the canonical mountpoint.

        Raises MountError, IdentityBusy or DeadlineExceeded.
        """
        path = await mounting.canonical_path(mountpoint)
        async with self._turn(path):
            await self._let_end(identity, path)
            self._refuse_taken(identity, path)
            await mounting.check(path, self._settings.ram_root)
        return path

    async def mount(self, identity: Identity, mountpoint: str, *, read_only: bool) -> None:
        """Mounts a volume; returns when a stat through the mount shows it.

        Raises MountError, IdentityBusy or DeadlineExceeded; then nothing is mounted.
        """
        path = await mounting.canonical_path(mountpoint)
        async with self._turn(path):
            await self._let_end(identity, path)
            self._refuse_taken(identity, path)
            volume = self._volumes[path] = _Volume(identity, path, read_only)
            try:
                await mounting.check(path, self._settings.ram_root)
                await self._nursery.start(self._keep, volume)
            except BaseException:
                if not volume.kept:
                    del self._volumes[path]
                raise

    async def unmount(self, mountpoint: str) -> Identity:
        """Ends a mount in order: operations in flight finish, and so does its daemon.

        A dead mount is taken away whoever still has files open in it. Raises MountError when it is in use or
        none of ours; then nothing has changed.
        """
        path = await mounting.canonical_path(mountpoint)
        async with self._turn(path):
            volume = self._volumes.get(path)
            if volume is None:
                raise MountError(f"no volume of this node is mounted at {path}: see `fuse-tier status`")
            try:
                await mounting.end(path, lazy=bool(volume.reason))
            except MountpointBusy as busy:
                raise MountError(await mounting.name_holders(path, str(busy))) from busy
            await self._await_end(volume)
            return volume.identity

    def listing(self) -> list[dict[str, Any]]:
        """The volumes, as the supervisor's call ``mounts`` answers."""
        self._forget_ended()
        return [
            {
                "identity": str(volume.identity),
                "mountpoint": volume.mountpoint,
                "pid": volume.child.pid if volume.child is not None else None,
                "passthrough": volume.passthrough,
                "plain_reason": volume.plain_reason,
                "state": "failed" if volume.reason else "serving",
                "reason": volume.reason,
            }
            for volume in self._volumes.values()
            if volume.kept
        ]

    async def end_all(self, hurry: trio.Event) -> None:
        """Ends every mount, those in use lazily; their data stays in the RAM tier. Fails for none."""
        async with trio.open_nursery() as nursery:
            for volume in list(self._volumes.values()):
                nursery.start_soon(self._end, volume, hurry)

    async def _end(self, volume: _Volume, hurry: trio.Event) -> None:
        about = {"identity": str(volume.identity), "mountpoint": volume.mountpoint}
        async with self._turn(volume.mountpoint):
            if self._volumes.get(volume.mountpoint) is not volume:
                return  # meanwhile it was unmounted, or its mount taken back
            try:
                try:
                    await mounting.end(volume.mountpoint, lazy=bool(volume.reason))
                except MountpointBusy as busy:
                    log.warning(
                        "volume.cut_off", **about, reason=await mounting.name_holders(volume.mountpoint, str(busy))
                    )
                    await mounting.end(volume.mountpoint, lazy=True)
                    if volume.child is not None:
                        await volume.child.end(Deadline.HURRIED_STOP, hurry)
                await self._await_end(volume)
            except (FuseTierError, OSError) as error:
                log.error("volume.left_mounted", **about, reason=str(error))

    async def _await_end(self, volume: _Volume) -> None:
        with trio.move_on_after(Deadline.DAEMON_STOP):
            await volume.ended.wait()
        if not volume.ended.is_set():
            log.error(
                "volume.daemon_hung",
                identity=str(volume.identity),
                mountpoint=volume.mountpoint,
                seconds=Deadline.DAEMON_STOP,
                reason="its mount has gone, but it goes on: it is killed",
            )
            if volume.child is not None:
                await volume.child.destroy()
        self._forget_ended()

    async def _keep(self, volume: _Volume, task_status: trio.TaskStatus[None]) -> None:
        """Runs the volume's daemon: up to ``started`` errors are the caller's, then they are this volume's alone."""
        told = json.dumps(
            {
                "ram_root": self._settings.ram_root,
                "identity": str(volume.identity),
                "mountpoint": volume.mountpoint,
                "worker_socket": self._settings.worker_socket,
                "read_only": volume.read_only,
                "fsync": self._settings.fsync,
                "passthrough": self._settings.passthrough,
                "expected_sizes": list(self._settings.expected_sizes),
            }
        )
        started = trio.current_time()
        async with running(self._settings.command, "daemon", told=told) as child:
            volume.child = child
            try:
                serving = await mounting.begin_serving(volume.mountpoint, child)
                volume.mount, volume.passthrough = serving.mount, serving.passthrough
                volume.plain_reason = serving.plain_reason
                task_status.started()
                # If the caller went away at this very moment, this task is still the caller's, and cancelled.
                await trio.lowlevel.checkpoint_if_cancelled()
                volume.kept = True
            except BaseException:
                await child.destroy()
                await mounting.take_back(volume.mountpoint)
                raise
            log.info(
                "volume.mounted",
                identity=str(volume.identity),
                mountpoint=volume.mountpoint,
                pid=child.pid,
                passthrough=volume.passthrough,
                seconds=round(trio.current_time() - started, 3),
            )
            status = await child.wait()
        try:
            self._note_end(volume, status)
        except OSError:
            log.exception("volume.unclear", identity=str(volume.identity), mountpoint=volume.mountpoint)

    def _note_end(self, volume: _Volume, status: int) -> None:
        about = {"identity": str(volume.identity), "mountpoint": volume.mountpoint}
        if volume.mounted():
            volume.reason = f"its daemon {describe(status)}: every access answers ENOTCONN until it is unmounted"
            log.error("volume.failed", **about, reason=volume.reason)
        elif status != 0:
            log.warning("volume.unmounted", **about, reason=f"its daemon {describe(status)}")
        else:
            log.info("volume.unmounted", **about)
        volume.ended.set()
        self._forget_ended()

    async def _let_end(self, identity: Identity, path: str) -> None:
        """A daemon whose mount was just taken away is given a moment: usually it has nothing more to do."""
        with trio.move_on_after(Deadline.HURRIED_STOP):
            for volume in list(self._volumes.values()):
                concerns = volume.mountpoint == path or volume.identity == identity
                if concerns and volume.mount is not None and not volume.mounted():
                    await volume.ended.wait()
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Dead mounts are also taken away by hand, which nobody tells us."""
        for path, volume in list(self._volumes.items()):
            if volume.ended.is_set() and not volume.mounted():
                del self._volumes[path]

    def _refuse_taken(self, identity: Identity, path: str) -> None:
        if (volume := self._volumes.get(path)) is not None:
            if volume.reason:
                raise MountError(
                    f"mountpoint {path} holds the dead mount of {volume.identity} ({volume.reason}): "
                    f"remove it with `fuse-tier unmount {path}`, then mount again"
                )
            if not volume.mounted():
                raise MountError(
                    f"{volume.identity} was taken away from {path} while it was in use, and still is: "
                    "end the processes that use it, then mount again"
                )
            raise MountError(
                f"{volume.identity} is mounted at {path} already: end that with `fuse-tier unmount {path}`"
            )
        for volume in self._volumes.values():
            if volume.identity == identity and not volume.reason:
                raise IdentityBusy(
                    f"{identity} is mounted on this node already, at {volume.mountpoint}: "
                    f"end that with `fuse-tier unmount {volume.mountpoint}`"
                )

    def _turn(self, path: str) -> trio.Lock:
        return self._turns.setdefault(path, trio.Lock())
