"""Bringing a chosen snapshot's files back: from where, and into what. How a live tree is made is in replacing.py.

Nothing unverified is restored: content that comes from elsewhere is hashed when it lands, and content of the
own RAM is hashed again before it is used. What one place cannot give, or gives damaged, the next is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.blobs import Blob, Progress, Sink
from fuse_tier.errors import Damaged, NotFound, TierError, TierRefused, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Entry, Lineage, Manifest
from fuse_tier.ram.layout import Layout
from fuse_tier.ram.remote import Refill
from fuse_tier.replicate.choice import Chosen
from fuse_tier.replicate.gather import Reorder, gather, nobody_else
from fuse_tier.replicate.hopes import Hopes
from fuse_tier.replicate.places import Places
from fuse_tier.replicate.plan import nearest
from fuse_tier.replicate.record import read_record
from fuse_tier.replicate.replacing import Trees
from fuse_tier.replicate.staging import StagingDirectory, lost_paths, make_tree
from fuse_tier.replicate.tree import check_new_directory
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import Fetched, Tier, TierName, no_progress

log = structlog.get_logger(__name__)

AT_ONCE_BYTES = 64 << 20
"""A restore that has less to fetch is whole before its mount; of a larger one the content follows behind."""

_BATCH_BLOBS = 256


@dataclass(slots=True)
class Restored:
    """What a restore did."""

    snapshot: SnapshotId
    files: int
    size: int
    seconds: float
    sources: dict[str, int] = field(default_factory=dict)  # place -> bytes that it gave
    unreadable: tuple[str, ...] = ()  # files whose content no place could give
    passed_over: tuple[int, ...] = ()  # newer snapshots that are damaged or gone
    coming: int = 0  # bytes that come after the mount, first those of what is opened
    is_from_bucket: bool = False  # because no node had it


class Restorer:
    """Restores volumes of one node."""

    def __init__(
        self,
        layout: Layout,
        places: Places,
        node: str,
        limiter: trio.CapacityLimiter,
        at_once_bytes: int = AT_ONCE_BYTES,
    ) -> None:
        self._trees = Trees(layout, places.ram)
        self._places = places
        self._node = node
        self._limiter = limiter
        self._at_once_bytes = at_once_bytes

    async def fetch(
        self,
        what: object,
        blobs: Collection[Blob],
        sink: Sink,
        chosen: Chosen,
        progress: Progress = no_progress,
        *,
        stays: bool = True,
        begins: Callable[[Collection[Blob]], Progress] | None = None,
        reorder: Reorder | None = None,
        gone: Collection[str] = (),
    ) -> tuple[dict[str, int], dict[Blob, TierError]]:
        """Brings blobs into a sink, from those that have the snapshot, nearest first, then from anybody else.

        Gives the bytes that each place gave, and what nobody could give, with the last reason. What ``stays`` in the
        RAM tier others may take from here while it comes: then those that want the same feed each other. ``begins``
        is told of each part that a peer is asked for, and gives the ``progress`` of that: a stream brings all of it,
        in that order, while other places ask the sink before they bring anything. For ``reorder`` see ``gather``.
        Places that are ``gone`` (hopes.py) are asked as well; if one does not answer, that is no reason to hope for
        it.
        """

        async def fetch_from(place: Tier, part: Collection[Blob]) -> Fetched:
            moved = begins(part) if begins is not None and place.name is TierName.PEER else progress
            listed = chosen.manifest if place in chosen.places else None
            try:
                return await self._places.fetch(place, listed, part, sink, moved)
            except (TierUnavailable, TierRefused) as error:
                if place.place not in gone:
                    raise
                raise NotFound(f"{place.place} is gone: {error}") from error

        async def refer(place: Tier, part: Sequence[Blob]) -> Mapping[Blob, Tier]:
            return await self._places.refer(place, part)

        ranks = self._ranks(chosen)
        others = refer if stays else nobody_else
        gathered = await gather(what, blobs, ranks, fetch_from, others, reorder=reorder)
        return gathered.sources, gathered.failed

    def hopes(self, identity: Identity) -> Hopes:
        """For a volume of which content is to come."""
        return Hopes(self._places, identity)

    def _ranks(self, chosen: Chosen) -> list[list[Tier]]:
        """Who is asked, the nearest first: who has the snapshot, anybody else, the bucket."""
        membership = self._places.membership
        alive = [one for one in membership.members() if one.alive and one.node != self._node]
        peers = {self._places.peer(member).place: member for member in alive}
        holders = {place.place: self._places.current(place) for place in chosen.places}
        domains = {place: member.domain for place, member in peers.items() if place in holders}
        # Who has just gone is asked all the same, after the others: it may be back.
        near = nearest(membership.own().domain, domains) if len(domains) > 1 else (tuple(domains),)
        near = (*near, tuple(holders.keys() - domains.keys()))
        ranks = [[place for place in holders.values() if place.name is TierName.RAM]]
        for names in near:
            ranks.append([holders[name] for name in names if holders[name].name is TierName.PEER])
        others = [self._places.peer(member) for place, member in peers.items() if place not in holders]
        return [*ranks, others, [self._places.bucket] if self._places.bucket is not None else []]

    # ---- into a volume ----

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
                await self._places.ram.commit(manifest)
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
        restored = _report(manifest, chosen, trio.current_time() - started, sources, unreadable, coming)
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
        return replace(part, id=SnapshotId(volume.identity, volume.tenure.numbering.next()), node=self._node)

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
        part, ram = replace(chosen.manifest, entries=entries), self._places.ram
        with ram.unfinished():
            absent = await ram.missing(part.blobs)
            unusable = await self._unusable(part.blobs - absent, progress)
            elsewhere = Chosen(part, tuple(place for place in chosen.places if place is not ram))
            sources, failed = await self.fetch(part.id, absent | unusable, ram, elsewhere, progress)
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
        ram = self._places.ram
        absent = await ram.missing(manifest.blobs)
        here = manifest.blobs - absent
        unusable = await self._unusable(here, progress)
        elsewhere = Chosen(manifest, tuple(place for place in chosen.places if place is not ram))
        wanted = absent | unusable
        own = sum(blob.size for blob in here - unusable)
        if sum(blob.size for blob in wanted) > self._at_once_bytes:
            places = {place.place: 0 for place in elsewhere.places}
            return ({ram.place: own} if own else {}) | places, {}, frozenset(wanted)
        sources, failed = await self.fetch(manifest.id, wanted, ram, elsewhere, progress)
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
                self._places.ram.check(blob, progress)
            except NotFound:
                unusable.add(blob)
            except Damaged as error:
                self._places.ram.remove(blob)
                unusable.add(blob)
                metrics.error("damaged")
                remedy = "fetched again from another place"
                log.error("ram.content_damaged", blob=blob.name, reason=str(error), remedy=remedy)
        return unusable

    async def materialize(
        self, volume: Volume, inode: int, make_room: Callable[[int], Awaitable[int]] | None = None
    ) -> None:
        """Gets the content of a file of ``remote/`` into that very file. Raises TierError, NotFound."""
        async with volume.evicting:  # not while it is still on its way out
            pass
        marker = os.path.join(volume.layout.remote, str(inode))
        try:
            blob = Blob.parse(os.path.basename(os.readlink(marker)))
        except FileNotFoundError:
            return  # it has come back, or the file is gone
        if make_room is not None:
            await make_room(blob.size)
        ram = self._places.ram
        places = () if await ram.missing([blob]) else (ram,)
        sink = Refill(volume.layout, inode, ram.place)
        what, chosen = f"inode {inode} of {volume.identity}", Chosen(None, places)
        _, failed = await self.fetch(what, [blob], sink, chosen, stays=False)
        if failed and volume.is_remote(inode):  # else somebody else has brought it
            error = failed[blob]
            log.error("restore.content_lost", identity=str(volume.identity), blob=blob.name, reason=str(error))
            raise error

    # ---- into a directory ----

    async def into_directory(
        self,
        identity: Identity,
        chosen: Chosen,
        target: str,
        progress: Progress = no_progress,
        *,
        partial: bool = False,
    ) -> Restored:
        """Makes a plain tree at ``target``, which must be missing or empty, without using the RAM tier.

        Raises MountError (the target), NotFound, and TierError when content could not be had: nothing is left
        at the target then. A ``partial`` tree lacks only what is damaged or gone on every tier.
        """
        manifest, started = chosen.manifest, trio.current_time()
        if manifest is None:
            others = f"; there are some of run {', '.join(chosen.other_runs)}" if chosen.other_runs else ""
            raise NotFound(f"no snapshot of {identity} was found on any tier{others}: see `fuse-tier ls`")
        await trio.to_thread.run_sync(check_new_directory, target)
        sources: dict[str, int] = {}

        async def fetch(staging: StagingDirectory) -> dict[Blob, TierError]:
            given, failed = await self.fetch(manifest.id, manifest.blobs, staging, chosen, progress, stays=False)
            sources.update(given)
            return failed

        kept = await make_tree(manifest, target, fetch, partial=partial)
        return _report(kept, chosen, trio.current_time() - started, sources, lost_paths(manifest, kept))


def _report(
    manifest: Manifest,
    chosen: Chosen,
    seconds: float,
    sources: dict[str, int],
    unreadable: tuple[str, ...],
    coming: Collection[Blob] = (),
) -> Restored:
    files = sum(1 for entry in manifest.entries if entry.blob is not None)
    later = sum(blob.size for blob in coming)
    bucket_only = all(place.name is TierName.BUCKET for place in chosen.places)
    return Restored(
        manifest.id, files, manifest.size, seconds, sources, unreadable, chosen.passed_over, later, bucket_only
    )
