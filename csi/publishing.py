"""Giving a pod its volume and taking it back: what kubelet asks for, again and again, until it is so.

Nothing is remembered but what is on disk and in the mount table, so any call may be repeated, by another process of
the plugin too. Of one volume one call at a time is at work; a second one is told so and changes nothing. Different
volumes do not wait for each other.

The order of a publish: a directory that nobody writes to, word of it on disk, the mount, a look through it, the pod's
group and files; then the answer. The order of an unpublish: the mount, the directory, the word of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from csi.context import Pod, Wishes
from csi.driver import Driver, ours_at
from csi.health import Health
from csi.ownership import give_to_group
from csi.places import Assigner, Place, choose
from csi.pod_files import write_pod_files
from csi.records import Publication, Records
from csi.refusals import busy, contradicted, failed, not_now, ran_out, unavailable, unfit
from csi.targets import Target
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, IdentityBusy, TierUnavailable
from fuse_tier.node.vault import Vault

log = structlog.get_logger(__name__)

_PUBLISHED: Final = "published"
_UNPUBLISHED: Final = "unpublished"


@dataclass(frozen=True, slots=True)
class Order:
    """A publish call, read and found to make sense."""

    volume_id: str
    target: Target
    pod: Pod
    wishes: Wishes
    read_only: bool
    group: int | None
    """The pod's fsGroup."""


class Publisher:
    """Publishes and unpublishes the volumes of one node."""

    def __init__(
        self,
        driver: Driver,
        records: Records,
        assigner: Assigner,
        vault: Vault,
        health: Health,
        *,
        jax_init_info: bool,
    ) -> None:
        self._driver = driver
        self._vault = vault
        self._health = health
        self._records = records
        self._assigner = assigner
        self._jax_init_info = jax_init_info
        self._doing: dict[str, str] = {}

    @asynccontextmanager
    async def _alone(self, volume_id: str, target: Target, doing: str) -> AsyncIterator[None]:
        """Of one volume, and of one target, one call at a time."""
        keys = (volume_id, target.path)
        for key in keys:
            if key in self._doing:
                raise busy(volume_id, self._doing[key])
        self._doing |= dict.fromkeys(keys, doing)
        try:
            yield
        finally:
            for key in keys:
                del self._doing[key]

    async def publish(self, order: Order) -> None:
        """Returns when a look through the mount has shown the pod's volume. Raises StatedError, FuseTierError."""
        async with self._alone(order.volume_id, order.target, _PUBLISHED):
            with trio.move_on_after(Deadline.PUBLISH_ANSWER):
                if ours_at(order.target.path) is not None:
                    await self._confirm(order)
                else:
                    await self._publish(order)
                return
            raise ran_out(
                f"the volume of {order.pod} was not ready within {Deadline.PUBLISH_ANSWER:g} s"
                + (f": all its files are given to group {order.group} (fsGroup) first" if order.group else "")
                + "; it is tried again, and goes on from where it is"
            )

    async def _confirm(self, order: Order) -> None:
        """What an earlier call has published, or left half done."""
        path = order.target.path
        known = await trio.to_thread.run_sync(self._records.find, order.volume_id)
        if known is None or known.target != path or known.pod_uid != order.pod.uid:
            raise contradicted(f"{path} has a volume mounted that is not {order.volume_id}: unpublish that one first")
        if known.read_only != order.read_only:
            was = "read-only" if known.read_only else "for writing"
            raise contradicted(f"volume {order.volume_id} is published at {path} already, {was}: unpublish it first")
        reason = await self._why_dead(path)
        if reason:
            raise not_now(
                f"the mount of {known.identity} at {path} is dead ({reason}), and {order.pod} may hold it: delete "
                "the pod; its files are in the RAM tier, and the next pod of that name gets them"
            )
        # Who asks again may have been cut off before the pod's files were written.
        place = await self._choose(order) if self._jax_init_info else None
        await self._make_fit(order, place)

    async def _why_dead(self, path: str) -> str:
        mounted = await self._driver.find(path)
        if mounted is not None and mounted.reason:
            return mounted.reason
        return await self._health.look_through(path)

    async def _publish(self, order: Order) -> None:
        path = order.target.path
        started = trio.current_time()
        place = await self._choose(order)
        if place.rank is None and not order.wishes.workload:
            log.info("identity.after_pod", pod=str(order.pod), identity=str(place.identity),
                     reason="neither a coordinator nor volumeAttributes.workload names another")  # fmt: skip
        publication = Publication(
            order.volume_id,
            path,
            order.pod.namespace,
            order.pod.name,
            order.pod.uid,
            str(place.identity),
            order.read_only,
        )
        await trio.to_thread.run_sync(order.target.prepare)
        await trio.to_thread.run_sync(self._records.write, publication)
        try:
            await self._driver.mount(place, order.pod, path, read_only=order.read_only)
        except IdentityBusy as error:
            raise not_now(await self._name_holder(place, error)) from error
        reason = await self._health.look_through(path)
        if reason:
            raise failed(
                f"{place.identity} was mounted at {path}, but a look through the mount shows: {reason}; see the log "
                "of the fuse container; it is tried again"
            )
        await self._make_fit(order, place)
        try:
            await self._vault.hold(place.identity)
        except DeadlineExceeded as error:
            log.warning("volume.without_copy", pod=str(order.pod), identity=str(place.identity), reason=str(error))
        log.info(
            "volume.published",
            pod=str(order.pod),
            identity=str(place.identity),
            seconds=round(trio.current_time() - started, 3),
        )

    async def _choose(self, order: Order) -> Place:
        return choose(order.pod, order.wishes, await self._assigner.rank_of(order.pod))

    async def _make_fit(self, order: Order, place: Place | None) -> None:
        """What the pod finds in its volume besides its files; None leaves what was written for it before."""
        if order.read_only:
            return
        path, group = order.target.path, order.group

        def work() -> None:
            if place is not None:
                write_pod_files(path, place.rank if self._jax_init_info else None)
            if group is not None:
                give_to_group(path, group)

        try:
            await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        except OSError as error:
            raise unfit(f"{path} cannot be made ready for {order.pod}", error) from error

    async def _name_holder(self, place: Place, error: IdentityBusy) -> str:
        """Who has the identity, by the name of the pod where it is one of this node's."""
        identity = str(place.identity)
        for known in await trio.to_thread.run_sync(list, self._records):
            if known.identity == identity and ours_at(known.target) is not None:
                return (
                    f"{identity} is the volume of {known.owner} on node {self._driver.node}: delete that pod, or "
                    "give this one another volumeAttributes.replica"
                )
        return f"{error}; where a pod has it, delete that pod, or give this one another volumeAttributes.replica"

    async def unpublish(self, volume_id: str, target: Target) -> None:
        """Returns when nothing of the volume is left in the pod's directory. Raises StatedError, MountError."""
        async with self._alone(volume_id, target, _UNPUBLISHED):
            with trio.move_on_after(Deadline.UNPUBLISH):
                await self._unpublish(volume_id, target)
                return
            raise ran_out(
                f"volume {volume_id} could not be taken down within {Deadline.UNPUBLISH:g} s: see `fuse-tier status` "
                "on the node; it is tried again"
            )

    async def _unpublish(self, volume_id: str, target: Target) -> None:
        known = await trio.to_thread.run_sync(self._records.find, volume_id)
        if known is None or known.target != target.path:
            await self._refuse_anothers(volume_id, target)
            known = None
        try:
            # Asked for also when the table shows nothing: a mount may be half made.
            if known is not None or ours_at(target.path) is not None:
                await self._driver.detach(target.path)
        except TierUnavailable as error:
            raise unavailable(
                f"volume {volume_id} cannot be taken down while the driver's fuse container is not running on this "
                f"node ({error}): it is tried again"
            ) from error
        await trio.to_thread.run_sync(target.remove)
        if known is not None:
            await trio.to_thread.run_sync(self._records.forget, volume_id)
            log.info("volume.unpublished", pod=str(known.owner), identity=known.identity)

    async def _refuse_anothers(self, volume_id: str, target: Target) -> None:
        """A volume that is known to be another's is never taken down; one that nobody knows of is, by its path."""
        for known in await trio.to_thread.run_sync(list, self._records):
            if known.target == target.path and known.volume_id != volume_id:
                raise not_now(
                    f"{target.path} has volume {known.volume_id} of {known.owner}, and not {volume_id}: nothing was "
                    "taken down; ask for the end of that one"
                )
