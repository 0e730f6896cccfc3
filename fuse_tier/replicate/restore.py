"""Bringing a chosen snapshot's files back: from where, and into what. How a live tree is made is in replacing.py.

Nothing unverified is restored: content that comes from elsewhere is hashed when it lands, and content of the
own RAM is hashed again before it is used. What one place cannot give, or gives damaged, the next is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.blobs import Blob, Progress
from fuse_tier.errors import Damaged, NotFound, TierError, TierUnavailable
from fuse_tier.identity import SnapshotId
from fuse_tier.manifest import Entry, Lineage, Manifest
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.fetching import Fetcher
from fuse_tier.replicate.record import read_record
from fuse_tier.replicate.replacing import Trees
from fuse_tier.replicate.restored import Restored, report
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import no_progress
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

AT_ONCE_BYTES = 64 << 20
"""A restore that has less to fetch is whole before its mount; of a larger one the content follows behind."""

_BATCH_BLOBS = 256


class Restorer:
    """Restores volumes of one node."""

    def __init__(
        self,
        layout: Layout,
        ram: RamTier,
        fetcher: Fetcher,
        limiter: trio.CapacityLimiter,
        at_once_bytes: int = AT_ONCE_BYTES,
    ) -> None:
        self._trees = Trees(layout, ram)
        self._ram = ram
        self._fetcher = fetcher
        self._limiter = limiter
        self._at_once_bytes = at_once_bytes

    def is_current(self, volume: Volume, lineage: Lineage, chosen: Chosen) -> bool:
        """Whether the live tree that is here is at least as new as anything else of its run."""
        record = read_record(volume.layout) if volume.has_tree else None
        if record is None or record.superseded or record.is_tentative or record.lineage.run != lineage.run:
            return False
        newest = chosen.manifest
        return newest is None or newest.id.number <= record.number

    async def into_volume(
        self,
        volume: Volume,
        chosen: Chosen,
        lineage: Lineage,
        progress: Progress = no_progress,
        *,
        epoch: int = 0,
        anew: bool = False,
        whole_only: bool = False,
        is_tentative: bool = False,
    ) -> Restored | None:
        """Makes the live tree of a volume anew: from the chosen snapshot, or empty when there is none.

        What stood there gives way: it is in its snapshots. ``epoch``, ``anew`` and ``is_tentative`` as in
        ``Volume.began``.
        Raises TierUnavailable when content could not be had now that may be had later; nothing has changed
        then. Content that is damaged or gone everywhere leaves a placeholder, which gives EIO when it is
        opened; or (``whole_only``) Damaged is raised, and nothing has changed either.
        """
        manifest, started = chosen.manifest, trio.current_time()
        sources: dict[str, int] = {}
        failed: dict[Blob, TierError] = {}
        coming: frozenset[Blob] = frozenset()
        if manifest is not None:
            sources, failed, coming = await self._into_ram(manifest, chosen, progress)
            hopeful = [error for error in failed.values() if not isinstance(error, Damaged | NotFound)]
            if hopeful:
                raise TierUnavailable(
                    f"{manifest.id}: the content of {len(hopeful)} files could not be had ({hopeful[0]}): "
                    "try again later"
                )
            if failed and whole_only:
                raise Damaged(
                    f"{manifest.id}: {len(failed)} files are damaged or gone wherever they were "
                    f"({next(iter(failed.values()))})"
                )
            if chosen.is_part:
                manifest = self._under_own_number(volume, manifest, chosen.highest, epoch)
            elif not failed and not coming:
                await self._ram.commit(manifest)
        failpoints.reached("restore.fetched")
        await trio.to_thread.run_sync(self._trees.replace, volume, manifest, frozenset(failed), coming)
        failpoints.reached("restore.placed")
        volume.began(
            lineage,
            manifest,
            chosen.highest,
            is_whole=not failed,
            coming=chosen if coming else None,
            epoch=epoch,
            anew=anew,
            is_part=chosen.is_part,
            is_tentative=is_tentative,
        )
        if manifest is None:
            return None
        unreadable = tuple(os.fsdecode(entry.path) for entry in manifest.entries if entry.blob in failed)
        for path in unreadable:
            log.error("restore.file_lost", identity=str(volume.identity), snapshot=manifest.id.number, path=path)
        restored = report(manifest, chosen, trio.current_time() - started, sources, unreadable, coming)
        metrics.restored(restored.seconds)
        log.info(
            "volume.restored",
            identity=str(volume.identity),
            snapshot=manifest.id.number,
            bytes=restored.size,
            coming=restored.coming,
            seconds=round(restored.seconds, 3),
            sources=sources,
        )
        return restored

    def _under_own_number(self, volume: Volume, part: Manifest, highest: int, epoch: int) -> Manifest:
        """A part of a snapshot is another tree, which stands under no number that anybody knows."""
        volume.tenure.numbering.heard_of(highest, part.id.number)
        volume.tenure.numbering.own(epoch)
        return replace(part, id=SnapshotId(volume.identity, volume.tenure.numbering.next()), node=self._fetcher.node)

    async def into_stage(
        self,
        volume: Volume,
        chosen: Chosen,
        entries: tuple[Entry, ...],
        target: str,
        progress: Progress = no_progress,
    ) -> dict[str, int]:
        """Makes a tree of ``entries``, whose content is the chosen snapshot's, on the RAM tier beside a live tree.

        Gives the bytes that each place gave. Raises TierUnavailable, Damaged, TierFull, OSError, as ``into_volume``
        does for what must be whole.
        """
        if chosen.manifest is None:
            raise NotFound(f"{volume.identity} has no snapshot to restore")
        part, ram = replace(chosen.manifest, entries=entries), self._ram
        with ram.unfinished():
            absent = await ram.missing(part.blobs)
            unusable = await self._unusable(part.blobs - absent, progress)
            elsewhere = Chosen(part, tuple(place for place in chosen.places if place is not ram))
            sources, failed = await self._fetcher.fetch(part.id, absent | unusable, ram, elsewhere, progress)
            if failed:
                hopeful = [error for error in failed.values() if not isinstance(error, Damaged | NotFound)]
                told = (
                    f"{part.id}: the content of {len(failed)} files could not be had ({next(iter(failed.values()))})"
                )
                raise TierUnavailable(f"{told}: try again later") if hopeful else Damaged(told)
            await trio.to_thread.run_sync(self._trees.build, volume, part, target)
        return sources or {ram.place: part.size}

    async def _into_ram(
        self, manifest: Manifest, chosen: Chosen, progress: Progress
    ) -> tuple[dict[str, int], dict[Blob, TierError], frozenset[Blob]]:
        """Gives the bytes that each place gave, what nobody could give, and what is left to come later."""
        ram = self._ram
        absent = await ram.missing(manifest.blobs)
        here = manifest.blobs - absent
        unusable = await self._unusable(here, progress)
        elsewhere = Chosen(manifest, tuple(place for place in chosen.places if place is not ram))
        wanted = absent | unusable
        own = sum(blob.size for blob in here - unusable)
        if sum(blob.size for blob in wanted) > self._at_once_bytes:
            places = {place.place: 0 for place in elsewhere.places}
            return ({ram.place: own} if own else {}) | places, {}, frozenset(wanted)
        sources, failed = await self._fetcher.fetch(manifest.id, wanted, ram, elsewhere, progress)
        return ({ram.place: own} if own or not sources else {}) | sources, failed, frozenset()

    async def _unusable(self, blobs: Collection[Blob], progress: Progress) -> set[Blob]:
        """Those of our own blobs that have to be brought: they are damaged, and were removed, or have just gone.

        Raises TierRefused when one cannot be read: that says nothing of it.
        """
        ordered = sorted(blobs)
        unusable: set[Blob] = set()
        for start in range(0, len(ordered), _BATCH_BLOBS):
            batch = ordered[start : start + _BATCH_BLOBS]
            unusable |= await trio.to_thread.run_sync(self._check_batch, batch, progress, limiter=self._limiter)
        return unusable

    def _check_batch(self, blobs: Collection[Blob], progress: Progress) -> set[Blob]:
        unusable = set()
        for blob in blobs:
            try:
                self._ram.check(blob, progress)
            except NotFound:
                unusable.add(blob)
            except Damaged as error:
                self._ram.remove(blob)
                unusable.add(blob)
                metrics.error("damaged")
                remedy = "fetched again from another place"
                log.error("ram.content_damaged", blob=blob.name, reason=str(error), remedy=remedy)
        return unusable
