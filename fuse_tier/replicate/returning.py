"""Content that was given up, or that a restore could not find, on its way back into its file."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import structlog

from fuse_tier.blobs import Blob
from fuse_tier.ram.remote import Refill
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)


async def bring_back(
    fetcher: Fetcher, ram: RamTier, volume: Volume, inode: int, make_room: Callable[[int], Awaitable[int]]
) -> None:
    """Gets the content of a file of ``remote/`` into that very file. Raises TierError, NotFound."""
    async with volume.evicting:  # not while it is still on its way out
        pass
    marker = os.path.join(volume.layout.remote, str(inode))
    try:
        blob = Blob.parse(os.path.basename(os.readlink(marker)))
    except FileNotFoundError:
        return  # it has come back, or the file is gone
    await make_room(blob.size)
    places = () if await ram.missing([blob]) else (ram,)
    sink = Refill(volume.layout, inode, ram.place)
    what, chosen = f"inode {inode} of {volume.identity}", Chosen(None, places)
    _, failed = await fetcher.fetch(what, [blob], sink, chosen, stays=False)
    if failed and volume.is_remote(inode):  # else somebody else has brought it
        error = failed[blob]
        log.error("restore.content_lost", identity=str(volume.identity), blob=blob.name, reason=str(error))
        raise error
