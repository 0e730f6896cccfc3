"""Giving a volume to a pod and taking it back: the claim, the files, the mount, and the way back.

The order is what matters. Nothing is touched before the mountpoint has been looked at and the identity is
ours; the tree stands whole before the mount is made; after the mount has ended the last snapshot is taken
before the identity is given up, so that whoever mounts it next finds everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.epochs import epoch_of
from fuse_tier.errors import FuseTierError, IdentityBusy, MountError, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.ram import lives
from fuse_tier.ram.room import Reserve
from fuse_tier.replicate.daemons import leave_quiescent
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.preparing import MountOrder, Preparing
from fuse_tier.replicate.restored import Restored
from fuse_tier.replicate.settling import final_snapshot
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.supervisor import Supervisor
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.volumes import Volumes
from fuse_tier.tiers.base import TierName

log = structlog.get_logger(__name__)

_CLAIM_PAUSE_SECONDS = 0.2
_SUPERVISOR_PAUSE_SECONDS = 0.1
_LAST_SNAPSHOT_SECONDS = 5.0  # for it at a drain's end, also where the copies before have taken all the time


class Mounting:
    """Mounts and unmounts volumes of one node."""

    def __init__(
        self, volumes: Volumes, preparing: Preparing, membership: Membership, supervisor: Supervisor
    ) -> None:
        self._volumes = volumes
        self._preparing = preparing
        self._membership = membership
        self._supervisor = supervisor
        self.claimed: set[Identity] = set()  # until the last snapshot after the unmount
        self._found: list[Volume] = []  # mounted when we started
        self.before_mount: Callable[[Volume], Awaitable[None]] | None = None  # an earlier pod's life is over
        self.before_release: Callable[[], Awaitable[None]] | None = None  # brings up to date what this node tells

    async def mount(self, order: MountOrder, report: Report) -> dict[str, Any]:
        """Mounts a volume with the files it had. Raises MountError, IdentityBusy, RunMismatch, TierError.

        What a failed mount leaves is what was there before, or the restored files, not mounted.
        """
        volume = await self._volumes.open(order.identity)
        began = trio.current_time()
        async with volume.mounting:
            mountpoint = await self._supervisor.check(order.identity, order.mountpoint)
            if not volume.has_tree:
                await trio.to_thread.run_sync(Reserve(volume.layout.tier).demand)
            await self._wait_until_ended(volume)
            # An end that is under way gives the claim back at last: after that, not in the middle of this.
            async with volume.ending:
                report.begin("claiming the identity")
                volume.tenure.user = order.user
                epoch = await self.claim(order.identity, epoch_of(volume.tenure.numbering.highest))
                try:
                    if self.before_mount is not None:
                        await self.before_mount(volume)
                    restored = await self._preparing.prepare(volume, order, report, epoch, self.claim)
                    await trio.to_thread.run_sync(self._note_lives, volume, order)
                    report.begin("mounting")
                    volume.gate = None
                    await self._supervisor.mount(order.identity, order.mountpoint, read_only=order.read_only)
                    await self._wait_until_serving(volume)
                    metrics.goodput_lost(str(order.identity), "restoring", trio.current_time() - began)
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await self._undo(volume, mountpoint)
                    raise
        return {
            "identity": str(order.identity),
            "mountpoint": order.mountpoint,
            "restored": _facts(restored) if restored else None,
        }

    def _note_lives(self, volume: Volume, order: MountOrder) -> None:
        """A job that has nothing to agree on yet, since it never saved a step, may when it begins again."""
        if order.goes_with_others and self._membership.agrees_on_steps:
            lives.begin(volume.layout)
        else:
            lives.forget(volume.layout)

    @staticmethod
    async def _wait_until_ended(volume: Volume) -> None:
        """The supervisor sees the end of a mount before we do, now and then."""
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while volume.mountpoint is not None:
                await volume.news.wait_beyond(volume.news.version)
            return
        raise MountError(f"{volume.identity} was mounted at {volume.mountpoint}, and that is still ending: try again")

    async def claim(self, identity: Identity, above: int) -> int:
        """The epoch. An unmount elsewhere may have ended a moment ago, and its last snapshot be under way."""
        give_up = trio.current_time() + Deadline.CLAIM_BUSY
        while True:
            try:
                epoch = await self._membership.claim(identity, above)
            except IdentityBusy:
                if trio.current_time() > give_up:
                    raise
                await trio.sleep(_CLAIM_PAUSE_SECONDS)
            else:
                self.claimed.add(identity)
                return epoch

    async def _undo(self, volume: Volume, mountpoint: str) -> None:
        """After a mount that failed, or that nobody waits for any more."""
        if volume.gate is None:
            with trio.move_on_after(Deadline.UNMOUNT):
                try:
                    if any(mount["mountpoint"] == mountpoint for mount in await self._supervisor.mounts()):
                        await self._supervisor.unmount(mountpoint)
                except FuseTierError as error:
                    log.warning("mount.not_undone", identity=str(volume.identity), reason=str(error))
        leave_quiescent(volume)
        await self.give_up(volume)

    @staticmethod
    async def _wait_until_serving(volume: Volume) -> None:
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while volume.mountpoint is None:
                await volume.news.wait_beyond(volume.news.version)
            return
        raise MountError(
            f"the mount daemon of {volume.identity} did not report within {Deadline.SUPERVISOR_CONNECT:g} s: "
            "see its log"
        )

    async def find_mounted(self) -> None:
        """At a worker's start: what is mounted already stays ours, and is not touched before its daemon reports.

        Raises FuseTierError when the supervisor does not answer in time.
        """
        reason = "nothing came in time"
        with trio.move_on_after(Deadline.SUPERVISOR_CONNECT):
            while True:
                try:
                    return await self._find_mounted()
                except TierUnavailable as error:
                    reason = str(error)
                    await trio.sleep(_SUPERVISOR_PAUSE_SECONDS)
        raise FuseTierError(
            f"the supervisor does not answer on {self._supervisor.socket} ({reason}): start `fuse-tier node`, which "
            "starts this worker itself"
        )

    async def _find_mounted(self) -> None:
        for mount in await self._supervisor.mounts():
            if mount["state"] == "failed":
                continue
            identity = Identity.parse(mount["identity"])
            volume = await self._volumes.open(identity)
            self.claimed.add(identity)
            if volume.mountpoint is None:
                volume.gate = None
                volume.mountpoint, volume.tenure.is_at_work = mount["mountpoint"], True
                self._found.append(volume)

    async def follow_found(self) -> None:
        """A mount that was found may end before its daemon has found us: nobody else would hear of that."""
        async with trio.open_nursery() as nursery:
            for volume in self._found:
                nursery.start_soon(self._follow, volume)

    async def _follow(self, volume: Volume) -> None:
        await self._wait_until_unmounted(volume)
        if volume.gate is None:
            await self._finish(volume)

    async def unmount(self, mountpoint: str, drain_seconds: float) -> Volume:
        """Ends a mount and gives its last snapshot time to be copied. Raises MountError; the data stays."""
        identity = await self._supervisor.unmount(mountpoint)
        volume = await self._volumes.open(identity)
        with trio.move_on_after(Deadline.UNMOUNT):
            while volume.mountpoint is not None:
                await volume.news.wait_beyond(volume.news.version)
            async with volume.ending:  # until the claim has been given back
                pass
        await self.drain(volume, drain_seconds)
        return volume

    async def ended(self, volume: Volume, orderly: bool) -> None:
        """A daemon's connection has closed. A tree without a daemon is ours again; a dead mount is waited for."""
        if not orderly:
            log.warning("volume.daemon_lost", identity=str(volume.identity), mountpoint=volume.mountpoint)
            await self._wait_until_unmounted(volume)
        if volume.gate is None:
            await self._finish(volume)

    async def _wait_until_unmounted(self, volume: Volume) -> None:
        """A mount that has failed counts as ended: nobody can write through it any more."""
        while volume.gate is None:
            try:
                mounts = await self._supervisor.mounts()
            except TierUnavailable:
                mounts = [{"identity": str(volume.identity), "state": "unknown"}]
            if not any(mount["identity"] == str(volume.identity) and mount["state"] != "failed" for mount in mounts):
                return
            with trio.move_on_after(Deadline.HOLD):
                await volume.news.wait_beyond(volume.news.version)

    async def _finish(self, volume: Volume) -> None:
        async with volume.ending:
            if volume.gate is None:
                leave_quiescent(volume)
                await final_snapshot(volume)
                await self.give_up(volume)
                metrics.forget_volume(str(volume.identity))
                volume.news.announce()

    async def give_up(self, volume: Volume) -> None:
        """Others need not be told any more that a volume is this node's; they know what it has saved by then."""
        self.claimed.discard(volume.identity)
        with trio.move_on_after(Deadline.CONTROL_CALL):
            if self.before_release is not None:
                await self.before_release()
            await self._membership.release(volume.identity)

    async def drain(self, volume: Volume, seconds: float) -> None:
        """Waits until the newest snapshot is on every tier that is configured, for so many seconds at most.

        The newest that there is already goes before one is taken of the tree as it is now: a checkpoint that is half
        written must not take the time that is needed for the one that is whole. One tier is enough for that, for
        peers that are alive may have no room. What the bucket lacks is brought there from the start, due or not.
        """
        until = trio.current_time() + seconds
        with trio.move_on_at(until):
            await self._wait_until_on_one(volume)
        left = max(until - trio.current_time(), _LAST_SNAPSHOT_SECONDS)
        await final_snapshot(volume, min(left, Deadline.UNMOUNT))
        with trio.move_on_at(until) as scope:
            await self._wait_until_on_all(volume)
        if scope.cancelled_caught and volume.newest is not None:
            log.warning(
                "drain.ran_out",
                snapshot=str(volume.newest.id),
                seconds=seconds,
                peer=volume.copies.durable(TierName.PEER),
                bucket=volume.copies.durable(TierName.BUCKET),
            )

    async def _wait_until_on_one(self, volume: Volume) -> None:
        number, version = self._demand(volume), volume.news.version
        while (tiers := self._tiers_to_reach()) and not any(self._has(volume, number, *tier) for tier in tiers):
            version = await volume.news.wait_beyond(version)  # who comes, goes or leaves is such news

    async def _wait_until_on_all(self, volume: Volume) -> None:
        number, version = self._demand(volume), volume.news.version
        while not all(self._has(volume, number, *tier) for tier in self._tiers_to_reach()):
            version = await volume.news.wait_beyond(version)

    def _has(self, volume: Volume, number: int, tier: TierName, copies: int) -> bool:
        """Whether a tier has a snapshot, or a newer one; what peers have that leave as well does not count."""
        leaving = [member.node for member in self._membership.members() if not member.stays]
        return volume.copies.durable(tier, copies, apart_from=leaving) >= number

    def _demand(self, volume: Volume) -> int:
        """The newest snapshot's number, 0 for none. It goes to the bucket beside all else."""
        number = volume.newest.id.number if volume.newest is not None else 0
        if any(tier is TierName.BUCKET for tier, _ in self._tiers_to_reach()):
            volume.demand(number)
        return number

    def _tiers_to_reach(self) -> list[tuple[TierName, int]]:
        """Those that can be reached now, the nearest first, each with as many copies as there are peers for."""
        able = sum(member.stays for member in self._membership.members())
        tiers = [
            (tier, min(copies, able) if tier is TierName.PEER else copies)
            for tier, copies in self._volumes.tiers_to_reach()
        ]
        return [(tier, copies) for tier, copies in tiers if copies]


def _facts(restored: Restored) -> dict[str, Any]:
    facts = asdict(restored)
    facts["snapshot"] = str(restored.snapshot)
    facts["bytes"] = facts.pop("size")
    facts["from"] = " and ".join(restored.sources)
    return facts
