"""One answer to one order: accept it, agree on a step, bring its content, and tell the workers.

The order of events is what clients rely on (docs/frameworks.md): before an order vanishes, all that an earlier life
left is out of sight; a marker appears when all of its content is there. Nothing is swept that is in no snapshot. From
the sweep to the markers nobody takes a snapshot, so that no state of the tree is saved that lacks the step.

Whatever interrupts it, it is begun again: by another order from the start, by another worker from the agreement.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio
import yaml

from fuse_tier import failpoints, metrics
from fuse_tier.checkpoints import step_of
from fuse_tier.epochs import epoch_of
from fuse_tier.errors import ConfigError, FuseTierError, RunMismatch
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.protocolfiles import ERRORS, ORDER, PRERESTORE, marker
from fuse_tier.replicate.agreeing import Agreed, Agreeing, nothing_to_save
from fuse_tier.replicate.choice import Chooser, Chosen
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.protocol import record
from fuse_tier.replicate.protocol.markers import marked, sources
from fuse_tier.replicate.protocol.order import Order
from fuse_tier.replicate.protocol.record import OrderRecord
from fuse_tier.replicate.protocol.stage import Stage
from fuse_tier.replicate.restore import Restorer
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName
from fuse_tier.wire.channel import ChannelClosed

log = structlog.get_logger(__name__)

_BUILT: Final = "built"
_TRIES: Final = 5  # to take a snapshot of a tree that should not change any more
_AGAIN_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Means:
    """What an answer needs of the node."""

    agreeing: Agreeing
    chooser: Chooser
    restorer: Restorer
    membership: Membership
    claim: Callable[[Identity, int], Awaitable[int]]
    has_bucket: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """What is handed to the workers."""

    step: int
    chosen: Chosen
    backup: str = ""  # the name of the complete checkpoint that it comes from; empty: from RAM


class Cycle:
    """The answer to one order of one volume."""

    def __init__(self, volume: Volume, means: Means, stage: Stage) -> None:
        self._volume = volume
        self._means = means
        self._stage = stage

    async def run(self, order: Order) -> None:
        """From an order that has just been read. Raises FuseTierError, OSError: the job cannot go on then."""
        volume = self._volume
        before = await trio.to_thread.run_sync(record.read, volume.layout)
        is_first = before is None or (before.is_first and not before.is_answered)
        noted = OrderRecord(order, is_first)
        self._check_shape(order)
        await wait_until_all_is_here(self._volume)
        async with volume.still:
            if volume.is_arranged:  # an answer was cut off: first as it was before
                await self._stage.put_back({})
            # Who gives an order may write a log all the time: the snapshot has what is swept, steps that were named
            # before the order and messages.
            await saved_in_hand(self._volume)
            await self._stage.begin()
            await trio.to_thread.run_sync(record.write, volume.layout, noted)
            failpoints.reached("replicator.noted")
            stale = await self._stage.stale()
            # The order goes last: who sees that it has gone sees all the rest gone, too.
            stale = [name for name in stale if name.encode() != ORDER] + [ORDER.decode()]
            await volume.declare(order.parallelism or 1, order.node_rank)
            remarks = self._remarks(order)
            await self._stage.put({ERRORS: remarks} if remarks else {}, stale)
            log.info("replicator.accepted", identity=str(volume.identity), job=order.job, node_rank=order.node_rank)
            failpoints.reached("replicator.accepted")
            await self._answer(noted)

    async def go_on(self, noted: OrderRecord) -> None:
        """From an order that another worker has accepted. Raises as ``run`` does."""
        async with self._volume.still:
            await self._answer(noted)

    # ---- before it is accepted ----

    def _check_shape(self, order: Order) -> None:
        size = self._volume.lineage.world_size
        if size and order.nodes != size:
            raise RunMismatch(
                f"nodes: {order.nodes} stands in {ORDER.decode()}, but {self._volume.identity} was mounted as one of "
                f"{size} ranks: give one number in both"
            )
        if not size and order.nodes > 1:
            raise RunMismatch(
                f"nodes: {order.nodes} stands in {ORDER.decode()}, but {self._volume.identity} was mounted without a "
                "number of ranks, so that nobody can tell what the others have: mount it with --world-size, or give "
                "volumeAttributes.ranks"
            )

    def _remarks(self, order: Order) -> str:
        if self._means.has_bucket:
            return ""
        log.info("replicator.no_bucket", identity=str(self._volume.identity), job=order.job)
        return "this node has no bucket: steps are copied to the RAM of peers only\n"

    # ---- the answer ----

    async def _answer(self, noted: OrderRecord) -> None:
        layout, order, began = self._volume.layout, noted.order, trio.current_time()
        if not noted.markers:
            noted = replace(noted, markers=await self._stage_markers(noted))
            await trio.to_thread.run_sync(record.write, layout, noted)
        failpoints.reached("replicator.staged")
        await self._stage.arrange([], [(name, name) for name in noted.markers])
        failpoints.reached("replicator.answered")
        await trio.to_thread.run_sync(record.write, layout, replace(noted, is_answered=True))
        await self._stage.end()
        metrics.goodput_lost(str(self._volume.identity), "restoring", trio.current_time() - began)
        log.info("replicator.answered", identity=str(self._volume.identity), job=order.job, markers=noted.markers)

    async def _stage_markers(self, noted: OrderRecord) -> tuple[str, ...]:
        order = noted.order
        found = await (self._as_mounted(order) if noted.is_first else self._agreed(order))
        if found is not None:
            return tuple(_markers(order, found.step))
        log.info("replicator.nothing_to_restore", identity=str(self._volume.identity), job=order.job,
                 said="No valid checkpoints found anywhere")  # fmt: skip
        await self._stage.put({PRERESTORE: "{}\n"}, [PRERESTORE.decode()])
        names = tuple(_markers(order, 0))
        await self._stage.write({name.encode(): "" for name in names})
        return names

    async def _as_mounted(self, order: Order) -> _Step | None:
        """The step that the mount has brought: all ranks agreed on it then."""
        volume = self._volume
        newest, resumption = volume.newest, volume.tenure.resumption
        if resumption is not None and resumption.step is not None and (newest is None or step_of(newest) is None):
            # Only partners have this rank's part: whose that is can be told now that the order says which rank it is.
            return await self._agreed(order, fills=resumption.restart)
        if newest is None:
            return None
        if resumption is None and order.nodes > 1:
            return await self._agreed(order)
        step = step_of(newest) if resumption is None else resumption.step
        if step is None:
            return None
        if step_of(newest) != step:  # saved since: by a job that said nothing, or in another way
            return await self._agreed(order)
        found = _Step(step, Chosen(newest), volume.backup)
        await self._bring(order, found)
        return found

    async def _agreed(self, order: Order, fills: int = 0) -> _Step | None:
        """The step that all ranks that start again now agree on; or what belongs to one that ``fills`` a restart."""
        volume, means = self._volume, self._means
        if not fills:
            volume.tenure.is_at_work = False
            await volume.renew(await means.claim(volume.identity, epoch_of(volume.tenure.numbering.highest)))

        async def follow(agreed: Agreed) -> _Step | None:
            with metrics.node_operation("RestorePeerMount", order.framework):
                found = await self._find(agreed)
            if found is not None:
                await self._bring(order, found)
            return found

        if not means.membership.agrees_on_steps or volume.lineage.world_size <= 1:
            return await self._own_newest(order)
        with metrics.node_operation("CoordinatorRegistration", order.framework):
            return await means.agreeing.together(
                volume, volume.lineage, Report(), nothing_to_save, follow, fills=fills
            )

    async def _own_newest(self, order: Order) -> _Step | None:
        """With nobody who knows what others have: right for a job of one node."""
        if order.nodes > 1:
            raise ConfigError(
                f"nodes: {order.nodes} have to agree on a step, and this node has no coordinator to ask"
            )
        volume = self._volume
        chosen = await self._means.chooser.choose(volume.identity, volume.lineage, known=volume.newest)
        found = _step(chosen)
        if found is not None:
            await self._bring(order, found)
        return found

    async def _find(self, agreed: Agreed) -> _Step | None:
        volume, verdict = self._volume, agreed.verdict
        if verdict.restart and not verdict.number:
            if verdict.step is not None:
                raise RunMismatch(
                    f"assume-data-parallelism: of step {verdict.step} this rank has nothing, and {ORDER.decode()} "
                    "does not say, as it did when that was saved, which ranks hold the same: say it again, or name "
                    "another run to begin anew"
                )
            return None
        snapshot = agreed.snapshot(volume.identity) if verdict.number else None
        if snapshot is not None and verdict.partner:
            log.info("replicator.partner", identity=str(volume.identity), step=verdict.step, snapshot=str(snapshot))
        chosen = await self._means.chooser.choose(
            volume.identity if snapshot is None else snapshot.identity,
            volume.lineage,
            verdict.number,
            known=volume.newest,
            step=verdict.step,
        )
        return _step(chosen, agreed.backup)

    async def _bring(self, order: Order, found: _Step) -> None:
        """Has the content of a step staged. Raises Damaged, TierUnavailable, TierFull, OSError."""
        what = f"in-cluster checkpoint {found.step}"
        told: dict[str, object] = {"restore-step": found.step}
        if found.backup:
            what = f"backup '{found.backup}', checkpoint {found.step}"
            told["restore-backup"] = found.backup
        log.info("replicator.restoring", identity=str(self._volume.identity), job=order.job,
                 said=f"Restoring from {what}")  # fmt: skip
        await self._stage.put({PRERESTORE: yaml.safe_dump(told, sort_keys=False)}, [PRERESTORE.decode()])
        manifest = found.chosen.manifest
        assert manifest is not None  # noqa: S101 - a step has content
        names = sources(manifest, order, found.step, is_own=manifest.id.identity == self._volume.identity)
        with metrics.node_operation("CheckpointRestore", order.framework):
            if not await self._take_back(manifest, names):
                await self._build(found.chosen, manifest, names)

    async def _take_back(self, manifest: Manifest, names: dict[str, bytes]) -> bool:
        """What was swept a moment ago is as good as what the snapshot has, if it is the same."""
        newest = self._volume.newest
        if newest is None or len(set(names.values())) < len(names):
            return False
        if newest.id != manifest.id and _content(newest, names) != _content(manifest, names):
            return False
        return await trio.to_thread.run_sync(self._rename_back, names)

    def _rename_back(self, names: dict[str, bytes]) -> bool:
        layout = self._volume.layout
        pairs = [
            (os.path.join(os.fsencode(layout.swept), source), os.path.join(layout.staged, name).encode())
            for name, source in names.items()
        ]
        if not all(os.path.lexists(source) or os.path.lexists(target) for source, target in pairs):
            return False
        for source, target in pairs:
            if os.path.lexists(source):
                os.rename(source, target)
        return True

    async def _build(self, chosen: Chosen, manifest: Manifest, names: dict[str, bytes]) -> None:
        layout = self._volume.layout
        if not chosen.places:
            chosen = await self._means.chooser.choose(
                manifest.id.identity, self._volume.lineage, manifest.id.number, known=manifest
            )
        built = os.path.join(layout.staged, _BUILT)
        await self._means.restorer.into_stage(self._volume, chosen, marked(manifest, names), built)

        def unpack() -> None:
            for name in names:
                os.rename(os.path.join(built, name), os.path.join(layout.staged, name))
            os.rmdir(built)

        await trio.to_thread.run_sync(unpack)


async def wait_until_all_is_here(volume: Volume) -> None:
    """A mount may be answered before the content of its files is here; what says that it is here may not."""
    version = volume.news.version
    while volume.coming is not None:
        version = await volume.news.wait_beyond(version)


async def saved_in_hand(volume: Volume) -> bool:
    """A snapshot is taken of what is about to be swept; for who holds ``still``. Raises FuseTierError, OSError.

    Says whether that is all that there is: somebody may change the tree all the time.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            await volume.take_snapshot_in_hand()
        except ChannelClosed:  # its daemon has died, and the next one is asked
            if not tries_left:
                raise
        else:
            if not volume.is_dirty:
                return True
        await trio.sleep(_AGAIN_SECONDS)
    return False


def _markers(order: Order, step: int) -> list[str]:
    return [marker(order.job, step, order.node_rank, worker) for worker in range(order.workers)]


def _step(chosen: Chosen, backup: str = "") -> _Step | None:
    step = None if chosen.manifest is None else step_of(chosen.manifest)
    if step is None:
        return None
    in_ram = any(place.name is not TierName.BUCKET for place in chosen.places)
    return _Step(step, chosen, "" if in_ram else backup)


def _content(manifest: Manifest, names: dict[str, bytes]) -> object:
    try:
        return marked(manifest, names)[1:]
    except StopIteration:
        return None


REFUSALS = (FuseTierError, OSError)
"""What ends an answer: the job is told, and may start again."""
