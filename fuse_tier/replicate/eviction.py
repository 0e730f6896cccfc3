"""What a full RAM tier gives up, and in which order.

A pure decision about one node's RAM; room.py carries it out. The order: replicas of snapshots that newer replicas
supersede; own superseded snapshots of which the same or a newer one is verified elsewhere; content of own files that
the bucket has; and, when otherwise a job would get ENOSPC, own superseded snapshots that are nowhere else yet, those
last that are on their way to a peer, which may be slow: the newest one goes there instead. The newest snapshot of a
volume is given up only together with content of files that the bucket has: the tree is still here then, and the
snapshot stays in the worker's mind until other tiers have it. Nothing that is in use is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fuse_tier.blobs import Blob
from fuse_tier.identity import Identity, SnapshotId


@dataclass(frozen=True, slots=True)
class Listed:
    """A snapshot that the RAM tier lists."""

    snapshot: SnapshotId
    blobs: frozenset[Blob]
    own: bool = False  # of a volume whose tree is here
    elsewhere: bool = False  # it, or a newer one, is verified on another tier
    in_use: bool = False  # it goes to the bucket, or is restored, or part of the newest complete checkpoint of a job
    sent: bool = False  # it is on its way to a peer

    @property
    def is_busy(self) -> bool:
        """Whether it is left alone while no job waits."""
        return self.in_use or self.sent


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A closed file of a volume's tree whose content is a blob of ours, and in the bucket as well."""

    identity: Identity
    inode: int
    blob: Blob
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """What to give up, in order; ``freed`` are the bytes that this is expected to free."""

    drop: tuple[SnapshotId, ...] = ()
    files: tuple[LiveFile, ...] = ()
    freed: int = 0


def plan_eviction(
    listed: Collection[Listed],
    live: Collection[LiveFile],
    needed: int,
    *,
    in_tree: Collection[Blob] = (),
    at_any_price: bool = False,
) -> Eviction:
    """As little as frees ``needed`` bytes, in the order above; as much as can be had if that is less.

    ``in_tree`` are blobs that live files share: dropping a snapshot frees nothing of them. ``at_any_price`` says
    that a job waits or is about to: only then are own superseded snapshots given up that are nowhere else.
    """
    plan = _Plan(listed, frozenset(in_tree), needed)
    newest = {identity: max(_numbers(listed, identity)) for identity in {one.snapshot.identity for one in listed}}
    superseded = sorted(
        (one for one in listed if one.snapshot.number < newest[one.snapshot.identity] and not one.in_use),
        key=lambda one: one.snapshot.number,
    )
    own = [one for one in superseded if one.own]
    only_here = [one for one in own if not one.elsewhere]
    plan.drop(one for one in superseded if not one.own)
    plan.drop(one for one in own if one.elsewhere and not one.sent)
    plan.evict(live, frozenset(one.snapshot for one in only_here))
    if at_any_price:
        plan.drop(one for one in own if one.elsewhere)
        plan.drop(one for one in only_here if not one.sent)
        plan.evict(live)
        plan.drop(only_here)
        plan.evict(live, also_sent=True)
    return Eviction(tuple(plan.dropped), tuple(plan.files), plan.freed)


def _numbers(listed: Iterable[Listed], identity: Identity) -> Iterable[int]:
    return (one.snapshot.number for one in listed if one.snapshot.identity == identity)


class _Plan:
    def __init__(self, listed: Collection[Listed], in_tree: frozenset[Blob], needed: int) -> None:
        self._remaining = {one.snapshot: one for one in listed}
        self._names = Counter(blob for one in listed for blob in one.blobs)
        self._in_tree = in_tree
        self._needed = needed
        self.dropped: list[SnapshotId] = []
        self.files: list[LiveFile] = []
        self.freed = 0

    def drop(self, candidates: Iterable[Listed]) -> None:
        for one in candidates:
            if self.freed >= self._needed:
                return
            if one.snapshot in self._remaining:
                self._drop(one)

    def _drop(self, one: Listed) -> None:
        del self._remaining[one.snapshot]
        self.dropped.append(one.snapshot)
        for blob in one.blobs:
            self._names[blob] -= 1
            if not self._names[blob] and blob not in self._in_tree:
                self.freed += blob.size

    def evict(
        self, live: Collection[LiveFile], spared: Collection[SnapshotId] = (), *, also_sent: bool = False
    ) -> None:
        for file in sorted(live, key=lambda file: (file.modified_ns, file.inode)):
            if self.freed >= self._needed:
                return
            holders = [one for one in self._remaining.values() if file.blob in one.blobs]
            if file in self.files or any(
                (one.in_use if also_sent else one.is_busy)
                or one.snapshot in spared
                or one.snapshot.identity != file.identity
                for one in holders
            ):
                continue
            for one in holders:
                self._drop(one)
            self.files.append(file)
            self.freed += file.blob.size
