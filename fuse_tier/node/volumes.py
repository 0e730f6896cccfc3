"""The volumes that are mounted on this node: one keeper each, from the mount call until its mount has gone.

Not here: what is in a volume. It asks no worker, so mounts work and end while the worker is away.

Invariant: of one identity at most one daemon serves. Two on one tree would not know of each other's writers. The
table below keeps to it, and so does the lock that each keeper holds (mount/claim.py), of which a supervisor that is
started anew learns what is mounted already.

Between two awaits the table below is consistent: an entry is made before the first await of a mount, and stays
until its mount is gone. Calls for one mountpoint take turns.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError, IdentityBusy, MountError
from fuse_tier.identity import Identity
from fuse_tier.mount.claim import Record, find_records, is_held
from fuse_tier.mount.mountpoint import MountpointBusy
from fuse_tier.mount.table import mount_at
from fuse_tier.node import mounting
from fuse_tier.node.forge import Forge
from fuse_tier.node.keepers import prepare_place
from fuse_tier.node.mounted import MountedVolume
from fuse_tier.node.settings import DaemonSettings
from fuse_tier.ram.layout import Layout

log = structlog.get_logger(__name__)


class Volumes:
    """The mounted volumes of a node. ``nursery`` owns their tasks; when it is cancelled the keepers go on."""

    def __init__(self, settings: DaemonSettings, nursery: trio.Nursery) -> None:
        self._settings = settings
        self._nursery = nursery
        self._forge = Forge(settings.command, settings.many, nursery)
        self._volumes: dict[str, MountedVolume] = {}
        self._turns: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def adopt(self) -> None:
        """Takes over what a supervisor before this one has left mounted; returns when it is known. Fails for none.

        What is kept by other code than this is then upgraded.
        """
        records = await trio.to_thread.run_sync(self._find_records)
        async with trio.open_nursery() as nursery:
            for _, record in records:
                nursery.start_soon(self._adopt, record)
        await trio.to_thread.run_sync(self._clear_place)
        for volume in self._volumes.values():
            if volume.is_outdated:
                self._nursery.start_soon(self._upgrade, volume)

    def _find_records(self) -> list[tuple[str, Record]]:
        return list(find_records(Layout(self._settings.ram_root)))

    def _clear_place(self) -> None:
        alive = frozenset(record.socket for path, record in self._find_records() if is_held(path))
        prepare_place(self._settings.place, alive)

    async def _adopt(self, record: Record) -> None:
        try:
            identity = Identity.parse(record.identity)
            volume = self._new_volume(identity, record.mountpoint, read_only=False)
            with trio.fail_after(Deadline.SUPERVISOR_CONNECT):
                there = await self._nursery.start(volume.adopt, record)
        except (FuseTierError, OSError, trio.TooSlowError) as error:
            log.error("volume.not_adopted", identity=record.identity, mountpoint=record.mountpoint, reason=str(error))
            return
        if there:
            self._volumes[record.mountpoint] = volume

    async def _upgrade(self, volume: MountedVolume) -> None:
        async with self._turn(volume.mountpoint):
            try:
                await volume.upgrade_at_last()
            except (FuseTierError, OSError):
                log.exception("volume.unclear", identity=str(volume.identity), mountpoint=volume.mountpoint)

    def _new_volume(self, identity: Identity, path: str, *, read_only: bool) -> MountedVolume:
        return MountedVolume(identity, path, self._settings, self._forge, self._nursery, read_only=read_only)

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
            volume = self._volumes[path] = self._new_volume(identity, path, read_only=read_only)
            try:
                await mounting.check(path, self._settings.ram_root)
                await trio.to_thread.run_sync(partial(os.makedirs, self._settings.place, 0o700, exist_ok=True))
                await self._nursery.start(volume.start)
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

    async def detach(self, mountpoint: str) -> bool:
        """Ends whatever volume is mounted there, within ``Deadline.DETACH``; says whether it has ended for good.

        Who still uses it is cut off a while later: until then its identity stays taken. Raises MountError when the
        kernel refuses, or something else than a volume is mounted there; nothing mounted is no error.
        """
        path = await mounting.canonical_path(mountpoint)
        async with self._turn(path):
            volume = self._volumes.get(path)
            found = mount_at(path)
            if found is not None and not found.is_ours:
                raise MountError(
                    f"{path} has another filesystem mounted ({found.filesystem} from {found.source}): unmount that"
                )
            while found is not None:  # the uppermost first, should there be several
                await mounting.detach(path)
                found = mount_at(path)
            if volume is not None:
                with trio.move_on_after(Deadline.DETACH_TRY / 2):
                    await volume.ended.wait()
                if not volume.ended.is_set():
                    self._nursery.start_soon(self._abandon, volume)
            self._forget_ended()
            return volume is None or volume.ended.is_set()

    async def _abandon(self, volume: MountedVolume) -> None:
        """Those who use a mount that is out of sight get a while; then its identity must be free again."""
        with trio.move_on_after(Deadline.ABANDON):
            await volume.ended.wait()
        if not volume.ended.is_set():
            log.warning(
                "volume.cut_off",
                identity=str(volume.identity),
                mountpoint=volume.mountpoint,
                reason=f"it was still in use {Deadline.ABANDON:g} s after it was detached",
            )
            if volume.keeper is not None:
                await volume.keeper.destroy()
        self._forget_ended()

    def listing(self) -> list[dict[str, Any]]:
        """The volumes, as the supervisor's call ``mounts`` answers."""
        self._forget_ended()
        return [volume.listed() for volume in self._volumes.values() if volume.kept]

    async def end_all(self, hurry: trio.Event) -> None:
        """Ends every mount, those in use lazily; their data stays in the RAM tier. Fails for none."""
        async with trio.open_nursery() as nursery:
            for volume in list(self._volumes.values()):
                nursery.start_soon(self._end, volume, hurry)

    async def _end(self, volume: MountedVolume, hurry: trio.Event) -> None:
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
                    if volume.keeper is not None and not volume.ended.is_set():
                        await volume.keeper.end(Deadline.HURRIED_STOP, hurry)
                await self._await_end(volume)
            except (FuseTierError, OSError) as error:
                log.error("volume.left_mounted", **about, reason=str(error))

    async def _await_end(self, volume: MountedVolume) -> None:
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
            if volume.keeper is not None:
                await volume.keeper.destroy()
        self._forget_ended()

    async def _let_end(self, identity: Identity, path: str) -> None:
        """A daemon whose mount was just taken away is given a moment: usually it has nothing more to do."""
        with trio.move_on_after(Deadline.HURRIED_STOP):
            for volume in list(self._volumes.values()):
                concerns = volume.mountpoint == path or volume.identity == identity
                if concerns and volume.device and not volume.mounted():
                    await volume.ended.wait()
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Dead mounts are also taken away by hand, which nobody tells us."""
        for path, volume in list(self._volumes.items()):
            if volume.ended.is_set() and not volume.mounted():
                del self._volumes[path]
                volume.forget()

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
