"""The backups of one node's volumes: which snapshot of each goes to the bucket next, and how far it has come.

What decides is in ``backup.py``; who copies is the fan-out, one snapshot of a volume at a time. What was superseded
while it waited is never begun.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.checkpoints import step_of
from fuse_tier.errors import FuseTierError
from fuse_tier.identity import Identity
from fuse_tier.manifest import Manifest
from fuse_tier.replicate.backup import NOW, WHEN_THERE_IS_MORE, BackupPolicy, Turn, seconds_until_due
from fuse_tier.replicate.volume import Volume
from fuse_tier.tiers.base import TierName
from fuse_tier.tiers.ram import RamTier

log = structlog.get_logger(__name__)

_SHORT_PART = 0.25  # of the RAM tier is free: then what is in the bucket may be given up, so it has to get there


_FAILURES = 3  # one after another, and nobody waits for the bucket any more


@dataclass(slots=True)
class _State:
    """Of one volume."""

    last: Manifest | None = None  # what this life of the worker brought there
    last_at: float = 0.0
    current: Manifest | None = None
    moved: int = 0
    failures: int = 0  # one after another
    failed: str = ""  # why the last one did; empty: it did not
    is_ours: bool = True  # False: another node has the volume mounted, and brings it
    seen: int = 0  # the newest snapshot that was looked at
    due_at: float = WHEN_THERE_IS_MORE
    lock: threading.Lock = field(default_factory=threading.Lock)


class Backups:
    """``turn`` asks which step of a job is backed up now; ``told`` is called after each that came to the bucket."""

    def __init__(
        self,
        policy: BackupPolicy,
        ram: RamTier,
        turn: Callable[[Identity, str, int, float], Awaitable[Turn]],
        told: Callable[[Identity], Awaitable[None]],
    ) -> None:
        self._policy = policy
        self._ram = ram
        self._turn = turn
        self._told = told
        self._states: dict[Identity, _State] = {}
        self.policies: dict[Identity, BackupPolicy] = {}  # of jobs that say themselves what they want

    def _state(self, volume: Volume) -> _State:
        return self._states.setdefault(volume.identity, _State())

    async def choose(self, volume: Volume) -> tuple[Manifest | None, float]:
        """The snapshot to bring to the bucket now, or none and for how many seconds there will be none."""
        state, newest = self._state(volume), volume.newest
        state.due_at = WHEN_THERE_IS_MORE
        if newest is None or volume.copies.durable(TierName.BUCKET) >= newest.id.number:
            return None, WHEN_THERE_IS_MORE
        if volume.copies.durable(TierName.BUCKET) < state.seen < newest.id.number:
            metrics.backed_up("superseded")
        state.seen = newest.id.number
        if volume.copies.durable(TierName.BUCKET) == 0:
            state.last = None  # the tree was made anew, and nothing of it is there yet
        demanded = newest.id.number if self._is_short() else volume.demanded
        policy = self.policies.get(volume.identity, self._policy)
        wait = seconds_until_due(policy, newest, state.last, trio.current_time() - state.last_at, demanded)
        chosen = newest if wait <= NOW else None
        if policy.every is not None and demanded <= volume.copies.durable(TierName.BUCKET):
            chosen, wait = await self._ask(volume, newest, state, policy.every, chosen, wait)
        state.due_at = trio.current_time() + wait
        return chosen, wait

    async def _ask(
        self,
        volume: Volume,
        newest: Manifest,
        state: _State,
        every: float,
        chosen: Manifest | None,
        wait: float,
    ) -> tuple[Manifest | None, float]:
        """By the clock all volumes of a job have to choose the same step: one node says which."""
        step = step_of(newest)
        if step is None or wait == WHEN_THERE_IS_MORE:
            return chosen, wait
        if state.last is not None and chosen is not None and step_of(state.last) == step:
            return chosen, wait  # a save that went on
        turn = await self._turn(volume.identity, newest.lineage.run, step, every)
        if turn.step == step:
            return newest, NOW
        earlier = await self._snapshot_of(volume, turn.step, state) if turn.step is not None else None
        return earlier, NOW if earlier is not None else turn.wait_seconds

    async def _snapshot_of(self, volume: Volume, step: int, state: _State) -> Manifest | None:
        """Our last snapshot of a step, if the RAM tier has it and the bucket does not."""
        backed = max(volume.copies.durable(TierName.BUCKET), state.last.id.number if state.last else 0)
        for snapshot in reversed(await self._ram.snapshots(volume.identity)):
            if snapshot.number <= backed:
                return None
            try:
                manifest = await self._ram.manifest(snapshot)
            except FuseTierError as error:
                log.info("backup.passed_over", snapshot=str(snapshot), reason=str(error))
                continue
            if step_of(manifest) == step and manifest.lineage == volume.lineage:
                return manifest
        return None

    def _is_short(self) -> bool:
        return self._ram.free_bytes() < self._ram.capacity_bytes() * _SHORT_PART

    def brings(self, volume: Volume) -> bool:
        """Whether what this volume has for the bucket comes there from here, as far as it was tried."""
        state = self._state(volume)
        return state.is_ours and state.failures < _FAILURES

    def note_owner(self, volume: Volume, *, is_ours: bool) -> None:
        """Whether it is for this node to bring what a volume has."""
        self._state(volume).is_ours = is_ours

    def begin(self, volume: Volume, manifest: Manifest) -> Callable[[int], None]:
        """A copy begins; gives what is to be told of bytes that were moved, from any thread."""
        state = self._state(volume)
        state.current, state.moved = manifest, 0

        def moved(size: int) -> None:
            with state.lock:
                state.moved += size

        return moved

    async def ended(self, volume: Volume, manifest: Manifest, *, done: bool, reason: str = "") -> None:
        """A copy has ended. One that failed, for that reason, is chosen again, or what is newer then."""
        state = self._state(volume)
        state.current = None
        state.failures = 0 if done else state.failures + 1
        metrics.backed_up("done" if done else "failed")
        if not done:
            state.failed = reason
            return
        state.failed = ""
        state.last, state.last_at = manifest, trio.current_time()
        await self._told(volume.identity)

    def failing(self, volumes: Iterable[Volume]) -> dict[Identity, str]:
        """Those of some volumes whose last backup failed, and why."""
        return {
            volume.identity: state.failed
            for volume in volumes
            if (state := self._states.get(volume.identity)) is not None
            and state.failed
            and not volume.tenure.superseded
        }

    def status(self, volume: Volume) -> dict[str, Any]:
        """For people and programs: docs/operations.md says what it means."""
        state = self._state(volume)
        current, wait = state.current, state.due_at - trio.current_time()
        return {
            "state": "copying" if current else "waiting" if volume.copies.newest_beyond_bucket() else "idle",
            "snapshot": current.id.number if current else None,
            "moved_bytes": state.moved if current else 0,
            "total_bytes": current.size if current else 0,
            "due_in_seconds": round(max(0.0, wait), 1) if wait != WHEN_THERE_IS_MORE else None,
        }
