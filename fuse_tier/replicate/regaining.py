"""Content that was lost, and that somebody has after all: a node that comes back with its RAM is asked at once.

Not only when a job opens the file: that node gives up the snapshot that has it once it has got some newer ones. Who
has still to be asked is in lost.py; nothing newer of the volume is sent there meanwhile (fanout.py). That is the
owner's to see to, rather than the holder's: it alone knows what it lacks, and from when on it does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from fuse_tier.errors import Damaged, FuseTierError, NotFound, TierError, TierUnavailable
from fuse_tier.members import Member
from fuse_tier.ram.remote import lost_files
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.lost import Lost
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.returning import try_to_bring_back
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Tier

log = structlog.get_logger(__name__)

_PAUSES = (0.0, 1.0, 2.0, 4.0)  # before each try of a node that is there; then copies go there as before
_FILES_AT_ONCE = 4


class Regaining:
    """Of the volumes of one node."""

    def __init__(self, places: Places, fetcher: Fetcher, make_room: Callable[[int], Awaitable[int]]) -> None:
        self._places = places
        self._fetcher = fetcher
        self._make_room = make_room

    async def keep_asking(self, volume: Volume) -> None:
        """Asks every node once for what is lost, as soon as it is there. Runs until cancelled."""
        turn = trio.Lock()
        async with trio.open_nursery() as nursery:
            while True:
                news, lost = volume.news.version, volume.lost
                if lost is not None and not volume.tenure.superseded:
                    for member in lost.begin(self._places.membership.members()):
                        nursery.start_soon(self._ask, volume, lost, member, turn)
                await volume.news.wait_beyond(news)

    async def _ask(self, volume: Volume, lost: Lost, member: Member, turn: trio.Lock) -> None:
        for pause in _PAUSES:
            await trio.sleep(pause)
            # As it is now: a connection to an instance that has been replaced must not be made again.
            if volume.lost is not lost or member.instance != self._instance_of(member.node):
                break
            place = self._places.peer(member)
            try:
                await self._bring_from(volume, place, turn)
                break
            except (FuseTierError, OSError) as error:
                log.info("lost.not_asked", identity=str(volume.identity), place=place.place, reason=str(error))
        lost.end(member)
        volume.news.announce()

    def _instance_of(self, node: str) -> str | None:
        alive = (member for member in self._places.membership.members() if member.alive)
        return next((member.instance for member in alive if member.node == node), None)

    async def _bring_from(self, volume: Volume, place: Tier, turn: trio.Lock) -> None:
        """All that a place has. Raises FuseTierError, OSError for what may be had if it is asked again."""
        lost = volume.lost
        files = await trio.to_thread.run_sync(lost_files, volume.layout)
        if not files:  # all is here, or was written anew
            if volume.lost is lost:
                volume.lost = None
            return
        has = files.keys() - await place.missing(files)
        if not has:
            return
        async with turn:  # else what two have would be sent twice
            errors = await self._bring(volume, place, [inode for blob in has for inode in files[blob]])
        log.info("volume.regained", identity=str(volume.identity), place=place.place, failed=len(errors))
        if hopeful := [error for error in errors if not isinstance(error, Damaged | NotFound)]:
            raise hopeful[0]

    async def _bring(self, volume: Volume, place: Tier, inodes: Sequence[int]) -> list[TierError]:
        """What failed, and why. Once a place does not answer it is asked for nothing more."""
        pending, errors, ram = iter(inodes), list[TierError](), self._places.ram

        async def bring_some() -> None:
            for inode in pending:
                error = await try_to_bring_back(self._fetcher, ram, volume, inode, self._make_room, (place,))
                if error is not None:
                    errors.append(error)
                if isinstance(error, TierUnavailable):
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(_FILES_AT_ONCE):
                nursery.start_soon(bring_some)
        return errors
