"""All ranks of a job agree on a step to go on from, as one node's volume sees it.

It asks for the step that was chosen for all (``coordinate/choosing.py``), has it brought, and says that it has.
Whoever is told then that it was chosen again begins once more. How it is brought is the caller's: into a tree that
is not mounted yet, or under the eyes of a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
import trio

from fuse_tier import failpoints, metrics
from fuse_tier.checkpoints import Job
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import Damaged, DeadlineExceeded, FuseTierError, NotFound, TierUnavailable
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.manifest import Lineage
from fuse_tier.replicate.backups_of_job import BackupsOfJob
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.steps import Report
from fuse_tier.replicate.volume import Volume
from fuse_tier.restarts import Question, Resumption, Verdict

log = structlog.get_logger(__name__)

T = TypeVar("T")

_AGAIN_SECONDS = 0.2
_KNOWN_SECONDS = 1.0  # until the coordinator knows of what a node has lost
_TRIES = 3  # with a snapshot that is listed somewhere, and that nobody gives

AskBucketOfJob = Callable[[Identity, Lineage], Awaitable[BackupsOfJob]]


@dataclass(frozen=True, slots=True)
class Agreed:
    """What all ranks go on from, and what the bucket was seen to have."""

    verdict: Verdict
    there: BackupsOfJob

    @property
    def backup(self) -> str:
        """What the complete checkpoint in the bucket is called that has the step; empty where none has."""
        wanted = (self.verdict.number, self.verdict.partner)
        return next((one.name for one in self.there.backups if (one.number, one.partner) == wanted), "")

    def snapshot(self, identity: Identity) -> SnapshotId:
        """What a volume is given: its own, or its partner's. Of a verdict with a number."""
        partner = self.verdict.partner
        owner = Job.of(identity).identity(partner) if partner else identity
        return SnapshotId(owner, self.verdict.number)


class Agreeing:
    """With the other ranks of the jobs of one node's volumes."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.refresh: Callable[[], Awaitable[None]] | None = None  # brings up to date what this node tells
        self.ask_bucket: AskBucketOfJob | None = None  # of a node with a bucket

    async def together(
        self,
        volume: Volume,
        lineage: Lineage,
        report: Report,
        save: Callable[[], Awaitable[None]],
        follow: Callable[[Agreed], Awaitable[T]],
        *,
        step: int | None = None,
        fills: int = 0,
    ) -> T:
        """Agrees with all other ranks on a step, has ``follow`` bring it, and says so: until all of that is done.

        ``save`` is called before each question. ``step`` is what a person wants all to go back to, ``fills`` the
        restart that the volume has joined, for which it is told now whose files it gets. Raises what ``follow`` does:
        Damaged and NotFound only where no other step is to be had, TierUnavailable and DeadlineExceeded after
        ``Deadline.RESTART``.
        """
        give_up = trio.current_time() + Deadline.RESTART
        last = volume.tenure.resumption  # of the files that give way
        lacking: Counter[SnapshotId] = Counter()
        while True:
            wanted: SnapshotId | None = None
            try:
                report.begin("agreeing with the other ranks on a step")
                await save()
                given_up = tuple(one for one, tries in lacking.items() if tries >= _TRIES)
                question = _question(volume.identity, lineage, given_up, fills)
                agreed = await self._ask(question, step)
                wanted = agreed.snapshot(volume.identity) if agreed.verdict.number else None
                followed = await follow(agreed)
                if agreed.verdict.restart:
                    await self._join(volume, lineage, agreed.verdict, last)
                volume.tenure.is_at_work = True
                return followed
            except Damaged as error:
                if wanted is None:
                    raise
                log.error("restart.part_damaged", identity=str(volume.identity), snapshot=str(wanted),
                          reason=str(error))  # fmt: skip
                metrics.error("damaged")
                lacking[wanted] = _TRIES
            except NotFound as error:
                if wanted is None:
                    raise
                log.info("restart.part_not_found", identity=str(volume.identity), snapshot=str(wanted),
                         reason=str(error))  # fmt: skip
                lacking[wanted] += 1
                await trio.sleep(_KNOWN_SECONDS)
            except (TierUnavailable, DeadlineExceeded) as error:  # what was heard all the same may be said again
                if trio.current_time() > give_up:
                    raise
                log.debug("restart.again", identity=str(volume.identity), reason=str(error))
                report.begin(f"waiting: {error}")
            await trio.sleep(_AGAIN_SECONDS)

    async def _ask(self, question: Question, step: int | None) -> Agreed:
        if self.refresh is not None:
            await self.refresh()
        there, silent = BackupsOfJob(), ""
        if self.ask_bucket is not None:
            try:
                there = await self.ask_bucket(question.identity, question.lineage)
            except (NotFound, Damaged):  # restore.version names what is not there
                raise
            except FuseTierError as error:
                silent = str(error)
        forced = step if step is not None else there.forced
        question = replace(
            question, backups=there.backups, bucket_silent=silent, forced=None if question.fills else forced
        )
        return Agreed(await self._membership.restart(question), there)

    async def _join(self, volume: Volume, lineage: Lineage, verdict: Verdict, last: Resumption | None) -> None:
        failpoints.reached("restart.joining")
        epoch = self._membership.epoch(volume.identity)
        known = last.branch_points if last is not None and last.run == lineage.run else ()
        resumption = verdict.followed(lineage.run, epoch, known)
        await self._membership.join(volume.identity, resumption)
        await volume.went_on_from(resumption)
        failpoints.reached("restart.joined")
        log.info(
            "restart.joined", identity=str(volume.identity), restart=verdict.restart, step=verdict.step,
            snapshot=verdict.number,
        )  # fmt: skip


def _question(identity: Identity, lineage: Lineage, lacking: tuple[SnapshotId, ...], fills: int) -> Question:
    return Question(
        identity,
        lineage,
        lacking=tuple(one.number for one in lacking if one.identity == identity),
        fills=fills,
        lacking_partners=tuple(one for one in lacking if one.identity != identity),
    )


async def nothing_to_save() -> None:
    """For who has saved what there is before it was moved."""
    await trio.lowlevel.checkpoint()
