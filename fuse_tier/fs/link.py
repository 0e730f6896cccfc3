"""The daemon's connection to the node's replication worker.

The worker may be away for seconds at any time, and no file operation minds: the link keeps trying, announces changes
as soon as somebody listens, and repeats calls that a worker's end cut off (all of them may be repeated). Only what
waits for the worker by its nature waits here, each with a deadline.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
import trio

from fuse_tier.blobs import Blob
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError
from fuse_tier.fs.arranging import Arranging
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.spec import MountSpec
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.remote import mark
from fuse_tier.wire.channel import Arguments, Channel, ChannelClosed, Handler, connected

log = structlog.get_logger(__name__)

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_GOODBYE_SECONDS: Final = 1.0


class Link:
    """The connection of one volume. ``run`` keeps it up; everything else may be used at any time."""

    def __init__(
        self,
        spec: MountSpec,
        changes: Changes,
        handles: Handles,
        arranging: Arranging,
        settle: Callable[[], None],
        *,
        passthrough: bool,
    ) -> None:
        """``settle`` blocks until nobody of us has a file open any more that the job has closed."""
        self._spec = spec
        self._changes = changes
        self._handles = handles
        self._arranging = arranging
        self._settle = settle
        self._passthrough = passthrough
        self._channel: Channel | None = None
        self._connected = trio.Event()
        self._has_been_up = False

    @property
    def is_up(self) -> bool:
        """Whether the worker is there."""
        return self._channel is not None

    @property
    def is_expected(self) -> bool:
        """Whether a worker is there or has been, for this daemon or one before it: then another soon will be."""
        return self._has_been_up or os.path.exists(self._spec.worker_socket)

    async def run(self) -> None:
        """Connects again and again, until it is cancelled."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            if await self._serve_once():
                pause = _FIRST_PAUSE_SECONDS
            # Not all daemons of a node at once, when its worker has come back.
            await trio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(_LONGEST_PAUSE_SECONDS, pause * 2)

    async def _serve_once(self) -> bool:
        """One connection from its start to its end; says whether the worker knew us."""
        handlers: Mapping[str, Handler] = {
            "version": self._version,
            "hold": self._hold,
            "release": self._release,
            "retire": self._retire,
            "arrange": self._arrange,
        }
        greeted = False
        try:
            async with connected(self._spec.worker_socket, handlers) as channel:
                greeted = await self._greet(channel)
                if greeted:
                    await self._announce(channel)
        except ChannelClosed as error:
            log.debug("worker.away", reason=str(error))
        finally:
            self._changes.release()
        return greeted

    async def _greet(self, channel: Channel) -> bool:
        try:
            await channel.call(
                "hello",
                Deadline.CHANNEL_CALL,
                identity=str(self._spec.identity),
                pid=os.getpid(),
                mountpoint=self._spec.mountpoint,
                passthrough=self._passthrough,
                counter=self._changes.counter,
            )
        except ChannelClosed:
            raise  # it ended, and refused nothing
        except (FuseTierError, OSError) as error:
            log.warning("worker.refused", identity=str(self._spec.identity), reason=str(error))
            return False
        log.info("worker.connected", identity=str(self._spec.identity))
        return True

    async def _announce(self, channel: Channel) -> None:
        self._channel = channel
        self._has_been_up = True
        self._connected.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce_changes, channel)
                await channel.closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._channel = None
            self._connected = trio.Event()
        log.info("worker.disconnected", identity=str(self._spec.identity))

    async def _announce_changes(self, channel: Channel) -> None:
        while True:
            counter = await self._changes.unannounced()
            try:
                await channel.notify("changed", counter=counter, unreserved=self._handles.unreserved)
            except ChannelClosed:
                self._changes.announce_again()
                return

    async def call(self, name: str, deadline_seconds: float, /, **arguments: Any) -> Any:
        """Calls the worker, once it is there. Raises what it raises, or DeadlineExceeded."""
        with trio.move_on_after(deadline_seconds):
            while True:
                await self._connected.wait()
                channel = self._channel
                if channel is None:  # it was lost in the moment that we were woken
                    await trio.lowlevel.checkpoint()
                    continue
                try:
                    return await channel.call(name, deadline_seconds, **arguments)
                except ChannelClosed:
                    log.info("worker.lost", call=name)
                    await channel.closed.wait()
        raise DeadlineExceeded(
            f"{name!r} was not answered within {deadline_seconds:g} s: see with `fuse-tier status` what it does"
        )

    async def say_goodbye(self) -> None:
        """Tells the worker, if it is there, that the mount has ended in an orderly way."""
        channel = self._channel
        if channel is None:
            return
        with trio.move_on_after(_GOODBYE_SECONDS):
            try:
                await channel.notify("goodbye", counter=self._changes.counter)
            except ChannelClosed as error:
                log.debug("worker.away", reason=str(error))

    async def _version(self, arguments: Arguments) -> dict[str, Any]:
        await trio.to_thread.run_sync(self._settle)
        return {"counter": self._changes.counter, "writers": self._handles.writers()}

    async def _hold(self, arguments: Arguments) -> dict[str, Any]:
        self._changes.hold(float(arguments.get("seconds", Deadline.HOLD)))
        return await self._version({})

    async def _retire(self, arguments: Arguments) -> dict[str, Any]:
        """Marks files whose content is to be given up, unless they are in use."""
        await trio.to_thread.run_sync(self._settle)
        # From here on no await, so that none is opened.
        opened = {file.inode for file in self._handles.files.values()} | set(self._handles.writing)
        layout = Layout(self._spec.ram_root)
        volume = layout.volume(self._spec.identity)
        return {
            "inodes": [
                inode
                for inode, name in arguments["files"]
                if inode not in opened and mark(layout, volume, inode, Blob.parse(name))
            ]
        }

    async def _arrange(self, arguments: Arguments) -> dict[str, Any]:
        """Moves names of the root away, and others to it."""
        await self._arranging.arrange(
            [os.fsencode(name) for name in arguments["away"]],
            [(os.fsencode(source), os.fsencode(name)) for source, name in arguments["bring"]],
        )
        return {}

    async def _release(self, arguments: Arguments) -> dict[str, Any]:
        self._changes.release()
        return {}
