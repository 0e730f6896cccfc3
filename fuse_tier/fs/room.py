"""Asking the worker for room: it gives things up (replicate/room.py), and it knows what will soon be given up.

Who makes a file waits for a moment (``make``), and goes on with what there is. Who writes and finds none waits until
there is some (``obtain``): for as long as the worker says that content is on its way to the bucket, after which it
need not be here, and for a worker that has just been lost. So ENOSPC means that nothing more will come.

A writer that the kernel lets past us cannot be made to wait: reserve.py says which are let past.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
import trio

from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.fs.link import Link
from fuse_tier.mount.deposits import Depositor
from fuse_tier.ram.room import Room, room_of

log = structlog.get_logger(__name__)

_ASK_AGAIN_SECONDS: Final = 0.5
_AT_ONCE_PART: Final = 16  # this part of the tier is asked for at a time, so that not every write has to


class RoomAsker:
    """Of one mount. ``root`` is a descriptor on the RAM tier."""

    def __init__(self, root: int, link: Link, depositor: Depositor) -> None:
        self._root = root
        self._link = link
        self._depositor = depositor
        self._made_in_vain = float("-inf")  # when the worker last had too little to give up
        self._obtained_in_vain = float("-inf")  # and nothing was to come, either

    def look(self) -> Room:
        """What there is."""
        return room_of(self._root)

    async def make(self, size: int, inode: int | None = None) -> None:
        """Asks for so much free room; for a file that is to be written, if its number is given.

        Returns when there is, or when no more can be had at the moment: nothing is raised. What the job has removed
        itself is free before anybody is asked.
        """
        await trio.to_thread.run_sync(self._depositor.settle)
        if not self._link.is_up or self._is_recent(self._made_in_vain) or not self._is_wanted(size, inode):
            return
        with trio.move_on_after(Deadline.ROOM):
            answer = await self._ask(size, inode=inode)
            if answer["free"] < size:
                self._made_in_vain = trio.current_time()

    async def obtain(self, size: int, inode: int | None = None) -> bool:
        """Waits until so much is free; False when no more will come. May be cancelled."""
        await trio.to_thread.run_sync(self._depositor.settle)
        begun = trio.current_time()
        with trio.move_on_after(Deadline.ROOM_COMING):
            while self._is_wanted(size, inode):
                if not self._link.is_expected or self._is_recent(self._obtained_in_vain):
                    break
                wanted = max(size, self.look().capacity // _AT_ONCE_PART)
                answer = await self._ask(wanted, inode=inode, waited=trio.current_time() - begun)
                if answer["free"] < size and not answer["coming"]:
                    self._obtained_in_vain = trio.current_time()
                inode = None  # its content was let go of, if it could be
        return self.look().free >= size

    def _is_wanted(self, size: int, inode: int | None) -> bool:
        room = self.look()
        return size <= room.capacity and (inode is not None or room.free < size)

    def _is_recent(self, moment: float) -> bool:
        return trio.current_time() < moment + _ASK_AGAIN_SECONDS

    async def _ask(self, size: int, **arguments: Any) -> dict[str, Any]:
        try:
            answer = await self._link.call("make_room", Deadline.ROOM_CALL, bytes=size, **arguments)
        except (FuseTierError, OSError) as error:
            log.warning("room.not_made", bytes=size, reason=str(error))
            return {"free": 0, "coming": False}
        return {"coming": False, **answer}  # which a worker of an older version does not say
