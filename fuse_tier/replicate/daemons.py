"""The worker's side of the channel to the mount daemons.

A daemon says which volume it serves and that the tree has changed; the worker asks it for the tree's version
and to hold changes. A daemon that goes away in an orderly way leaves a quiescent tree; one that is lost leaves
a tree that is not touched until the supervisor says that its mount has ended, or a new daemon says hello.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, InvalidRequest
from fuse_tier.identity import Identity
from fuse_tier.replicate.instant import Quiescent, TreeVersion
from fuse_tier.replicate.room import RoomKeeper
from fuse_tier.replicate.settling import awaited_snapshot
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.walk import Writers
from fuse_tier.tiers.base import TierName
from fuse_tier.wire.channel import Arguments, Channel, Handler

log = structlog.get_logger(__name__)


class DaemonGate:
    """The gate of a mounted tree: its daemon."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def version(self) -> TreeVersion:
        """Asks for the counter and the writers."""
        return _tree_version(await self._channel.call("version", Deadline.CHANNEL_CALL))

    async def hold(self, seconds: float) -> TreeVersion:
        """Asks to keep the tree as it is."""
        return _tree_version(await self._channel.call("hold", Deadline.CHANNEL_CALL, seconds=seconds))

    async def release(self) -> None:
        """Lets changes go on; the daemon does so by itself when the time is over."""
        await self._channel.call("release", Deadline.CHANNEL_CALL)


def _tree_version(reply: dict[str, Any]) -> TreeVersion:
    inodes = frozenset(inode for inode, _ in reply["writers"])
    fsynced = frozenset(inode for inode, synced in reply["writers"] if synced)
    return TreeVersion(reply["counter"], Writers(inodes, fsynced))


class DaemonSession:
    """One daemon's connection."""

    def __init__(
        self,
        find: Callable[[Identity], Volume | None],
        materialize: Callable[[Volume, int], Awaitable[None]],
        ended: Callable[[Volume, bool], Awaitable[None]],
        begin_again: Callable[[Volume], Awaitable[None]],
        replicas: int,
        room: RoomKeeper,
    ) -> None:
        self._find = find
        self._materialize = materialize
        self._ended = ended
        self._begin_again = begin_again
        self._replicas = replicas
        self._room = room
        self._volume: Volume | None = None
        self._gate: DaemonGate | None = None
        self._orderly = False
        self._unreserved = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serves the connection until it closes, then says how it ended."""
        handlers: Mapping[str, Handler] = {
            "hello": self._hello,
            "changed": self._changed,
            "sync": self._sync,
            "state": self._state,
            "materialize": self._fetch,
            "make_room": self._make_room,
            "begin_again": self._begun_again,
            "goodbye": self._goodbye,
        }
        self._channel = Channel(stream, handlers)
        await self._channel.run()
        volume = self._volume
        if volume is not None and volume.gate is self._gate:
            volume.gate = None
            volume.retire = volume.arrange = None
            volume.news.announce()
            await self._ended(volume, self._orderly)

    async def _hello(self, arguments: Arguments) -> dict[str, Any]:
        identity = Identity.parse(arguments["identity"])
        volume = self._find(identity)
        if volume is None or not volume.has_tree:
            raise InvalidRequest(f"{identity} has no live tree on this node: mount it through the node")
        self._volume = volume
        self._gate = DaemonGate(self._channel)
        volume.gate = self._gate
        volume.retire = self._retire
        volume.arrange = self._arrange
        volume.mountpoint = arguments["mountpoint"]
        volume.changes.announce()
        volume.news.announce()
        log.info("volume.serving", identity=str(identity), mountpoint=volume.mountpoint, pid=arguments["pid"])
        return {}

    def _mounted(self) -> Volume:
        if self._volume is None:
            raise InvalidRequest("say hello first")
        return self._volume

    async def _changed(self, arguments: Arguments) -> None:
        volume, unreserved = self._mounted(), int(arguments.get("unreserved", 0))
        if unreserved > self._unreserved:
            volume.unreserved_bytes += unreserved - self._unreserved
            metrics.unreserved(unreserved - self._unreserved)
            self._unreserved = unreserved
        volume.changes.announce()

    async def _sync(self, arguments: Arguments) -> dict[str, Any]:
        volume, tier, seconds = self._mounted(), TierName(arguments["tier"]), float(arguments["deadline_seconds"])
        number = 0
        with trio.move_on_after(seconds):
            volume.changes.announce()
            snapshot = await awaited_snapshot(volume)
            number = snapshot.id.number if snapshot else 0
            await volume.wait_until_on(tier, number, self._replicas)
            return {"snapshot": number}
        raise DeadlineExceeded(f"{volume.identity}@{number or '?'} was not on the {tier} tier within {seconds:g} s")

    async def _state(self, arguments: Arguments) -> dict[str, str]:
        volume, inode = self._mounted(), arguments["inode"]
        if inode is None:
            return {"state": volume.state(), "hash": ""}
        if volume.is_remote(int(inode)):
            return {"state": "remote", "hash": ""}
        blob = volume.pins.known_blob(int(inode))
        if blob is None:
            return {"state": "sealed", "hash": ""}
        return {"state": volume.copies.state_of(blob), "hash": blob.digest.hex()}

    async def _fetch(self, arguments: Arguments) -> dict[str, Any]:
        await self._materialize(self._mounted(), int(arguments["inode"]))
        return {}

    async def _make_room(self, arguments: Arguments) -> dict[str, Any]:
        volume, inode = self._mounted(), arguments.get("inode")
        if inode is not None:
            await self._room.release(volume, int(inode))
        made = await self._room.make_for_job(int(arguments["bytes"]), arguments.get("waited"))
        return {"free": made.free, "coming": made.coming}

    async def _begun_again(self, arguments: Arguments) -> dict[str, Any]:
        await self._begin_again(self._mounted())
        return {}

    async def _retire(self, files: dict[int, Blob]) -> list[int]:
        pairs = [[inode, blob.name] for inode, blob in files.items()]
        retired = await self._channel.call("retire", Deadline.CHANNEL_CALL, files=pairs)
        return [inode for inode in retired["inodes"] if inode in files]

    async def _arrange(self, away: Collection[str], bring: Collection[tuple[str, str]]) -> None:
        names = {"away": list(away), "bring": [list(pair) for pair in bring]}
        await self._channel.call("arrange", Deadline.CHANNEL_CALL, **names)

    async def _goodbye(self, arguments: Arguments) -> None:
        self._orderly = True


def leave_quiescent(volume: Volume) -> None:
    """The volume is not mounted any more."""
    volume.gate = Quiescent()
    volume.mountpoint, volume.tenure.is_at_work = None, False
    volume.changes.announce()
    volume.news.announce()
