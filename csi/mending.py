"""What an earlier life of the plugin, of the driver or of the node has left, set right at the start.

Kubelet asks again for what it still wants, so little is to be done: pods that went while nobody listened are taken
down; word of what is no longer mounted is kept as long as its pod lives, because kubelet may still ask for its end.
Nothing that a living pod may hold is touched.
"""

from __future__ import annotations

import glob
from typing import Final

import structlog
import trio

from csi.driver import Driver, ours_at
from csi.publishing import Publisher
from csi.records import Publication, Records
from csi.targets import Target
from fuse_tier.errors import FuseTierError
from fuse_tier.mount.table import read_mounts
from fuse_tier.wire.statuses import StatedError

log = structlog.get_logger(__name__)

_AGAIN_SECONDS: Final = 5.0


async def mend(kubelet: str, driver: Driver, publisher: Publisher, records: Records) -> None:
    """Takes down what belongs to pods that are gone; ends when all of it is. Belongs in a task of its own."""
    while not await _mend_once(kubelet, driver, publisher, records):  # noqa: ASYNC110 - nobody announces it
        await trio.sleep(_AGAIN_SECONDS)


async def _mend_once(kubelet: str, driver: Driver, publisher: Publisher, records: Records) -> bool:
    left = False
    for known in await trio.to_thread.run_sync(list, records):
        if await trio.to_thread.run_sync(_is_orphan, kubelet, known):
            left |= not await _take_down(kubelet, publisher, known)
    for path in await trio.to_thread.run_sync(_mounted_for_nobody, kubelet):
        left |= not await _detach(driver, path)
    return not left


def _is_orphan(kubelet: str, known: Publication) -> bool:
    """Whether kubelet has removed the pod. Blocks."""
    try:
        target = Target.parse(kubelet, known.target)
    except StatedError:  # of another --kubelet than now: its pods are not ours to judge
        return False
    return target.pod_is_gone() or _is_stale(target)


def _is_stale(target: Target) -> bool:
    """After a reboot nothing is mounted, and kubelet may have forgotten the pod before it removed its directory."""
    return ours_at(target.path) is None and not glob.glob(f"{glob.escape(target.pod_directory)}/volumes/*/*")


def _mounted_for_nobody(kubelet: str) -> list[str]:
    """Volumes of ours that are mounted for pods that are gone, of which no word is left. Blocks."""
    found = []
    for mount in read_mounts():
        if mount.is_ours:
            try:
                target = Target.parse(kubelet, mount.path)
            except StatedError:
                continue
            if target.pod_is_gone():
                found.append(mount.path)
    return found


async def _take_down(kubelet: str, publisher: Publisher, known: Publication) -> bool:
    try:
        await publisher.unpublish(known.volume_id, Target.parse(kubelet, known.target))
    except FuseTierError as error:
        log.warning("orphan.not_taken_down", pod=str(known.owner), target=known.target, reason=str(error))
        return False
    log.info("orphan.taken_down", pod=str(known.owner), identity=known.identity)
    return True


async def _detach(driver: Driver, path: str) -> bool:
    try:
        await driver.detach(path)
    except FuseTierError as error:
        log.warning("orphan.not_taken_down", pod="", target=path, reason=str(error))
        return False
    log.info("orphan.taken_down", pod="", target=path)
    return True
