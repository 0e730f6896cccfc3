"""The life of a mount daemon: take over what its keeper has, serve, end.

It ends when the kernel says that the mount has ended (``fusermount3 -u``, the last user of a mount that was taken
out of sight), or on SIGTERM, which takes the mount away: at once if nobody uses it, else out of sight, and those who
have files open may go on until ``Deadline.UNMOUNT``. A second SIGTERM ends it there and then. Operations in
flight finish first; no mount stays behind.

However else it ends, the mount stays, and the next daemon goes on with it: nothing here that is not in the tree,
with the keeper or in the kernel is needed for that.
"""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import MountError
from fuse_tier.fs import mounting
from fuse_tier.fs.arranging import Arranging
from fuse_tier.fs.attributes import Attributes
from fuse_tier.fs.backing import Backings
from fuse_tier.fs.base import Parts
from fuse_tier.fs.changes import Changes
from fuse_tier.fs.containers import Containers, pod_of
from fuse_tier.fs.content import Content
from fuse_tier.fs.dispatch import dispatch, opened_handle, owed_answer
from fuse_tier.fs.handles import Handles, perhaps_unanswered
from fuse_tier.fs.link import Link
from fuse_tier.fs.lives import Lives
from fuse_tier.fs.mounting import MadeMount
from fuse_tier.fs.nodes import Nodes
from fuse_tier.fs.operations import Operations
from fuse_tier.fs.requests import Request
from fuse_tier.fs.reserve import Reservations
from fuse_tier.fs.room import RoomAsker
from fuse_tier.fs.session import Answer, Session
from fuse_tier.fs.share import Share
from fuse_tier.fs.spec import MountSpec
from fuse_tier.fs.syscalls import raise_descriptor_limit
from fuse_tier.mount.deposits import Depositor
from fuse_tier.mount.keeper import TOLD, Inheritance
from fuse_tier.ram import lives
from fuse_tier.ram.layout import Layout, VolumeLayout
from fuse_tier.ram.pins import Pins

log = structlog.get_logger(__name__)

# Files known to the kernel are many small objects that refer to nothing in a circle.
_COLLECT_AFTER_OBJECTS: Final = 50_000
_STANDARD_OUTPUT: Final = 1


class Daemon:
    """One daemon of a mount. ``run`` is its life."""

    def __init__(self, spec: MountSpec, made: MadeMount, inheritance: Inheritance) -> None:
        self._spec = spec
        self._made = made
        self._inheritance = inheritance
        layout = Layout(spec.ram_root)
        volume = layout.volume(spec.identity)
        passthrough = inheritance.handshake.passthrough
        depositor = self._depositor = Depositor(inheritance.deposits)
        self._handles = Handles(depositor, inheritance.generation)
        self._changes = Changes(inheritance.generation)
        self._backings = Backings(inheritance.device, enabled=passthrough)
        self._nodes = Nodes(volume.tree, depositor, inherits=inheritance.generation > 0)
        arranging = Arranging(volume, self._nodes, self._changes)
        self._link = Link(spec, self._changes, self._handles, arranging, depositor.settle, passthrough=passthrough)
        room = RoomAsker(self._nodes.root, self._link, depositor)
        self._content = Content(volume, Pins(layout, volume), self._link, room)
        self._reservations = Reservations(spec, self._nodes, room)
        attributes = Attributes(spec, self._nodes, self._handles, self._content, self._link)
        self._operations = Operations(
            Parts(
                nodes=self._nodes,
                handles=self._handles,
                backings=self._backings,
                changes=self._changes,
                content=self._content,
                attributes=attributes,
                link=self._link,
                room=room,
                reservations=self._reservations,
                share=Share(spec.share, volume.tree, self._changes),
                arranging=arranging,
                fsync=spec.fsync,
            )
        )
        self._lives = self._find_lives(volume)
        self._session = Session(inheritance.device, dispatch(self._operations, self._lives), self._undo)
        self._told = False
        self._aborted = False

    def _find_lives(self, volume: VolumeLayout) -> Lives | None:
        """Of a pod's volume that goes on with others; None for one whose containers need not be told apart."""
        writers, pod = lives.read(volume), pod_of(self._spec.mountpoint)
        if writers is None or pod is None:
            return None
        return Lives(volume, Containers(pod), writers, partial(self._link.call, "begin_again", Deadline.BEGIN_AGAIN))

    async def run(self) -> bool:
        """Serves until the end of the mount; says whether that was an orderly one."""
        os.umask(0)  # the kernel has applied the caller's
        raise_descriptor_limit()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
            gc.freeze()
            gc.set_threshold(_COLLECT_AFTER_OBJECTS)
            if self._inheritance.generation:
                self._take_over()
            await self._serve(signals)
            self._close()
        return not self._aborted

    def _take_over(self) -> None:
        safe = self._inheritance.safe
        if not self._depositor.may_serve():
            raise MountError("the mount is another keeper's, which goes on with it")
        deposits = list(safe.contents.values())
        self._handles.adopt(deposits)
        self._nodes.adopt(deposits)
        for file in self._handles.files.values():
            self._backings.adopt(file.inode, file.backing)
            if file.backing and file.writing is not None:
                self._reservations.passes(file.inode)  # what was reserved for it nobody has left word of
        probe = os.memfd_create("probe", os.MFD_CLOEXEC)
        try:
            self._backings.close_lost(safe.highest_backing, probe)
        finally:
            os.close(probe)
        owed = perhaps_unanswered(deposits)
        if owed is not None and self._inheritance.device.answer(owed.unique, owed_answer(self._operations, owed)):
            log.info("open.answered", handle=owed.opened.handle)
        self._inheritance.device.ask_again()
        log.info("mount.taken_over", generation=self._inheritance.generation, open_files=len(self._handles.files))

    def _close(self) -> None:
        self._handles.close()
        self._nodes.close()
        self._content.close()

    def _undo(self, answer: Answer, request: Request) -> None:
        """Closes what an answer opened that nobody has received."""
        handle = opened_handle(request.opcode, answer)
        if handle is not None and (file := self._handles.remove_file(handle)) is not None:
            self._operations.close(file)

    async def _serve(self, signals: AsyncIterator[int]) -> None:
        serving = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_when_serving)
            nursery.start_soon(self._end_when_told, signals, serving)
            nursery.start_soon(self._link.run)
            if self._lives is not None:
                nursery.start_soon(self._lives.run)
            with serving:
                await self._answer_requests()
            # Whoever reads the tree then finds no file open that the job has closed.
            await trio.to_thread.run_sync(self._depositor.settle)
            await self._link.say_goodbye()
            nursery.cancel_scope.cancel()
        if self._told or self._aborted:
            mounting.end_mount(self._spec.mountpoint, self._made.number, at_once=True)
        log.info("mount.ended", identity=str(self._spec.identity), mountpoint=self._spec.mountpoint)

    async def _answer_requests(self) -> None:
        reason = ""
        try:
            await self._session.serve()
        except* OSError as failures:
            reason = str(failures.exceptions[0])
        if not reason and mounting.is_mounted(self._spec.mountpoint, self._made.number):
            reason = "its connection ended while it was mounted: by a forced unmount of a mount in use"
        if reason:
            # ECONNABORTED: by an operator, through /sys/fs/fuse/connections.
            log.error("mount.aborted", mountpoint=self._spec.mountpoint, reason=reason)
            self._aborted = True

    async def _tell_when_serving(self) -> None:
        mountpoint = self._spec.mountpoint
        if not self._inheritance.generation:
            with trio.fail_after(Deadline.MOUNT):
                await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
        say({"serving": True, "passthrough": self._made.handshake.passthrough, "reason": self._made.reason})
        log.info("mount.serving", identity=str(self._spec.identity), mountpoint=mountpoint)

    async def _end_when_told(self, signals: AsyncIterator[int], serving: trio.CancelScope) -> None:
        async for _ in signals:
            break
        self._told = True
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
                    lambda: mounting.end_mount(mountpoint, self._made.number, at_once=False), abandon_on_cancel=True
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
    """Tells who started us, if somebody still listens, in one line of JSON on standard output."""
    with suppress(OSError):
        os.write(_STANDARD_OUTPUT, (json.dumps(fact) + "\n").encode())
