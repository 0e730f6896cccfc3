"""When snapshots of a local volume are taken: whenever its tree has changed and settled, when somebody waits for one,
and once at its end.
"""

from __future__ import annotations

from math import inf

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import FuseTierError
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.holding import LEFT_ALONE
from fuse_tier.replicate.volume import Volume
from fuse_tier.replicate.walk import TreeChanged
from fuse_tier.wire.channel import ChannelClosed

log = structlog.get_logger(__name__)

_SETTLE_AT_MOST = 10  # times the settle time: then a snapshot is taken of a tree that never settles
_RETRY_SECONDS = 1.0
_LOOK_SECONDS = 0.02
_UNSETTLED_SECONDS = 1.0  # until it is looked again whether a file is still written through a mapping


async def keep_snapshots(volume: Volume) -> None:
    """Takes a snapshot whenever the tree has changed and settled. Runs for as long as the volume is local."""
    at_most = latest_snapshot(volume)
    while True:
        # Nobody tells when a mapping goes.
        with trio.move_on_after(inf if volume.snapshotter.is_settled else _UNSETTLED_SECONDS):
            await volume.changes.wait_beyond(volume.seen)
        tenure = volume.tenure
        if not volume.has_tree or volume.gate is None or tenure.superseded or tenure.is_tentative:
            await volume.news.wait_beyond(volume.news.version)
            continue
        began = trio.current_time()
        if await _wait_until_settled(volume, at_most):
            began += volume.options.settle  # in which nothing was written any more
        metrics.goodput_lost(str(volume.identity), "saving", trio.current_time() - began)
        try:
            await volume.take_snapshot()
        except ChannelClosed as error:  # an unmount, or the daemon died: the keeper tells of that
            log.info("snapshot.interrupted", identity=str(volume.identity), reason=str(error))
            await trio.sleep(_RETRY_SECONDS)
        except (FuseTierError, OSError) as error:
            metrics.error("snapshot")
            log.warning("snapshot.postponed", identity=str(volume.identity), reason=str(error))
            await trio.sleep(_RETRY_SECONDS)
        at_most = max(latest_snapshot(volume), LEFT_ALONE * volume.snapshotter.held_seconds)


def latest_snapshot(volume: Volume) -> float:
    """How many seconds after a change a snapshot is begun at the latest."""
    return volume.options.settle * _SETTLE_AT_MOST


async def _wait_until_settled(volume: Volume, at_most: float) -> bool:
    """Whether it has, within so many seconds."""
    with trio.move_on_after(at_most):
        unsettled = True
        while unsettled:
            with trio.move_on_after(volume.options.settle) as quiet:
                await volume.changes.wait_beyond(volume.changes.version)
            unsettled = not quiet.cancelled_caught
        return True
    return False


async def awaited_snapshot(volume: Volume) -> Manifest | None:
    """The newest snapshot, after one was taken for somebody who waits for it.

    A tree that changes for too long is read again and again: whoever waits says when it is enough. Raises what else
    ``Volume.take_snapshot`` raises.
    """
    while True:
        try:
            return await volume.take_snapshot(is_awaited=True)
        except TreeChanged as error:
            log.info("snapshot.awaited", identity=str(volume.identity), reason=str(error))
        await trio.sleep(_RETRY_SECONDS)


async def final_snapshot(volume: Volume, seconds: float = Deadline.UNMOUNT) -> None:
    """Catches up with the tree after its last writer has gone; what fails is tried again by the volume itself.

    Files that somebody still has open or mapped, of which nobody tells when that ends, are waited for a moment.
    """
    if volume.has_tree and volume.is_dirty:
        with trio.move_on_after(seconds) as scope:
            patient_until = trio.current_time() + Deadline.HOLD
            try:
                await awaited_snapshot(volume)
                while not volume.snapshotter.is_settled and trio.current_time() < patient_until:
                    await trio.sleep(_LOOK_SECONDS)
                    await awaited_snapshot(volume)
            except (FuseTierError, OSError) as error:
                log.warning("snapshot.postponed", identity=str(volume.identity), reason=str(error))
        if scope.cancelled_caught:
            reason = f"its tree could not be read and hashed within {seconds:g} s"
            log.warning("snapshot.postponed", identity=str(volume.identity), reason=reason)
