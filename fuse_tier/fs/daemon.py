"""The life of a mount daemon: mount, serve, end.

It ends when the kernel says that the mount has ended (``fusermount3 -u``, the last user of a mount that was taken
out of sight), or on SIGTERM, which takes the mount away: at once if nobody uses it, else out of sight, and those who
have files open may go on until ``Deadline.UNMOUNT``. A second SIGTERM ends it there and then. Operations in
flight finish first; no mount stays behind.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Final

import pyfuse3
import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.fs import mounting
from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.base import Parts
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.content import Content
from fuse_tier.fs.handles import Handles
from fuse_tier.fs.link import Link
from fuse_tier.fs.nodes import Nodes
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.spec import MountSpec
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.fs.turns import shorten_turns
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.pins import Pins

log = structlog.get_logger(__name__)

# pyfuse3 makes a task for each request that comes while others wait, and ends those beyond the first number that are
# idle: with few of those a busy mount would do little else. The second number bounds how many may wait at a time,
# say for a tier in an fsync: were it reached, nothing at all would be answered.
_IDLE_TASKS: Final = 10
_MOST_TASKS: Final = 10_000
# What reading /dev/fuse fails with after the end; the second when that came in the middle of a request.
_ENDED: Final = frozenset({errno.ENODEV, errno.ECONNABORTED})
# Files known to the kernel are many small objects that refer to nothing in a circle.
_COLLECT_AFTER_OBJECTS: Final = 50_000


class Daemon:
    """One mount. ``run`` is its life."""

    def __init__(self, spec: MountSpec) -> None:
        self._spec = spec
        layout = Layout(spec.ram_root)
        volume = layout.volume(spec.identity)
        if not os.path.isdir(volume.tree):
            raise MountError(
                f"volume {spec.identity} has no tree at {volume.tree}: it must be restored or made first"
            )
        self._handles = Handles()
        self._changes = Changes()
        self._link = Link(spec, self._changes, self._handles)
        self._content = Content(volume, Pins(layout, volume), self._link)
        self._nodes = Nodes(volume.tree)
        self._device = 0
        self._aborted = False

    async def run(self) -> bool:
        """Mounts, prints that it serves, and serves until the end; says whether that was an orderly one.

        Raises MountError when there is no mount to serve.
        """
        os.umask(0)  # the kernel has applied the caller's
        raise_descriptor_limit()
        with (
            mounting.libfuse_heard() as heard,
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals,
        ):
            shorten_turns()
            mounting.mount(self._operations(), self._spec, heard)
            gc.freeze()
            gc.set_threshold(_COLLECT_AFTER_OBJECTS)
            try:
                await self._serve(signals)
            finally:
                pyfuse3.close(unmount=False)
                self._close()
                if said := heard():
                    log.info("libfuse.said", text=said)
        return not self._aborted

    def _operations(self) -> Operations:
        attributes = Attributes(self._spec, self._nodes, self._handles, self._content, self._link)
        return Operations(
            Parts(
                nodes=self._nodes,
                handles=self._handles,
                changes=self._changes,
                content=self._content,
                attributes=attributes,
                link=self._link,
                fsync=self._spec.fsync,
            )
        )

    def _close(self) -> None:
        self._handles.close()
        self._nodes.close()
        self._content.close()

    async def _serve(self, signals: AsyncIterator[int]) -> None:
        serving = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_when_serving)
                nursery.start_soon(self._end_when_told, signals, serving)
                nursery.start_soon(self._link.run)
                with serving:
                    await self._answer_requests()
                await self._link.say_goodbye()
                nursery.cancel_scope.cancel()
        finally:
            # Also when it was never seen to serve: a mount whose process has ended is in everybody's way.
            if self._device:
                mounting.end_mount(self._spec.mountpoint, self._device, at_once=True)
        log.info("mount.ended", identity=str(self._spec.identity), mountpoint=self._spec.mountpoint)

    async def _answer_requests(self) -> None:
        reason, lost = "the kernel ended the connection", False
        try:
            await pyfuse3.main(min_tasks=_IDLE_TASKS, max_tasks=_MOST_TASKS)
        except* OSError as failures:
            failure = failures.exceptions[0]
            reason = str(failure)
            lost = not isinstance(failure, OSError) or failure.errno not in _ENDED
        # An abort through /sys/fs/fuse/connections looks like an unmount, but for the mount that is still there.
        self._aborted = lost or mounting.is_mounted(self._spec.mountpoint, self._device)
        if self._aborted:
            log.error("mount.aborted", mountpoint=self._spec.mountpoint, reason=reason)

    async def _tell_when_serving(self) -> None:
        mountpoint = self._spec.mountpoint
        self._device = mounting.device_of(mountpoint)
        with trio.fail_after(Deadline.MOUNT):
            await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        say({"serving": True})
        log.info("mount.serving", identity=str(self._spec.identity), mountpoint=mountpoint)

    async def _end_when_told(self, signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
        async for _ in signals:
            break
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_in_order, serving)
            async for _ in signals:
                log.warning("mount.cut_short", mountpoint=self._spec.mountpoint)
                serving.cancel()
                nursery.cancel_scope.cancel()

    async def _end_in_order(self, serving: trio.CancelScope) -> None:
        mountpoint = self._spec.mountpoint
        with trio.move_on_after(Deadline.UNMOUNT):
            try:
                unused = await trio.to_thread.run_sync(
                    lambda: mounting.end_mount(mountpoint, self._device, at_once=False), abandon_on_cancel=True
                )
            except MountError as error:
                log.error("mount.not_ended", mountpoint=mountpoint, reason=str(error))
                unused = False
            if not unused:
                log.info("mount.in_use", mountpoint=mountpoint, seconds=Deadline.UNMOUNT)
            await trio.sleep_forever()
        # The end of the mount would have ended this task.
        log.warning("mount.users_cut_off", mountpoint=mountpoint, open_files=len(self._handles.files))
        serving.cancel()


def say(fact: dict[str, object]) -> None:
    """Tells who started us, in one line of JSON on standard output."""
    sys.stdout.write(json.dumps(fact) + "\n")
    sys.stdout.flush()
