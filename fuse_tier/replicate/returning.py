"""Content that was given up, or that nobody had when it was asked for, on its way back into its file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from fuse_tier.errors import TierError
from fuse_tier.ram.remote import Refill, marked
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Tier
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


async def bring_back(
    fetcher: Fetcher, ram: RamTier, volume: Volume, inode: int, make_room: Callable[[int], Awaitable[int]]
) -> None:
    """Gets the content of a file of ``remote/`` into that very file. Raises TierError, NotFound."""
    error = await try_to_bring_back(fetcher, ram, volume, inode, make_room)
    if error is not None:
        log.error("restore.content_lost", identity=str(volume.identity), inode=inode, reason=str(error))
        raise error


async def try_to_bring_back(
    fetcher: Fetcher,
    ram: RamTier,
    volume: Volume,
    inode: int,
    make_room: Callable[[int], Awaitable[int]],
    places: tuple[Tier, ...] = (),
) -> TierError | None:
    """The same, from ``places`` alone if there are any; gives why it could not be had, if it is still wanted."""
    async with volume.evicting:  # not while it is still on its way out
        pass
    try:
        blob, is_lost = marked(volume.layout, inode)
    except FileNotFoundError:
        return None  # it has come back, or the file is gone
    await make_room(blob.size)
    own = () if await ram.missing([blob]) else (ram,)
    sink = Refill(volume.layout, inode, ram.place)
    what, chosen = f"inode {inode} of {volume.identity}", Chosen(None, (*own, *places))
    _, failed = await fetcher.fetch(what, [blob], sink, chosen, stays=False, others=not places)
    if failed and volume.is_remote(inode):  # else somebody else has brought it
        return failed[blob]
    if is_lost:
        volume.changes.announce()  # no snapshot has it
    return None
