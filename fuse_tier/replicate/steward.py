"""A node's way to the steward of the bucket, whoever that is now.

The steward is the first of the live nodes in the bucket's order (``election.py``); one that does not answer is
passed over for the next, and in the end this node does it itself. So a node asks the bucket nothing when it mounts,
unless it is the steward, or alone.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio

from fuse_tier.checkpoints import Job
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import (
    DeadlineExceeded,
    FuseTierError,
    InvalidRequest,
    NotAuthorized,
    TierRefused,
    TierUnavailable,
)
from fuse_tier.identity import Identity
from fuse_tier.manifest import Lineage
from fuse_tier.members import Member
from fuse_tier.replicate.backup import Turn
from fuse_tier.replicate.backups_of_job import BackupsOfJob
from fuse_tier.replicate.election import rank
from fuse_tier.replicate.membership import Membership
from fuse_tier.replicate.records import InBucket
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import StewardStub
from fuse_tier.wire.grpc import Client
from fuse_tier.wire.restarts import backup_from_wire
from fuse_tier.wire.tls import TlsFiles

log = structlog.get_logger(__name__)

_ASKED_AT_MOST = 2  # others, before this node does it itself
# Another one may answer. What the bucket itself refuses comes as an answer.
_PASSED_OVER = (TierUnavailable, TierRefused, DeadlineExceeded, InvalidRequest, NotAuthorized)


def stewards(place: str, own: Member, members: tuple[Member, ...]) -> tuple[str, ...]:
    """The nodes in the order in which they look after a bucket, this one among them."""
    return rank(place, {own.node, *(member.node for member in members if member.alive)})


def mounted_replicas(job: Job, own: Member, members: tuple[Member, ...]) -> frozenset[str]:
    """The replicas of a job that are mounted on a live node now."""
    everywhere = own.mounted.union(*(member.mounted for member in members if member.alive))
    return frozenset(identity.replica for identity in everywhere if Job.of(identity) == job)


class Steward:
    """Asks whoever it is. ``own`` is what this node does when it is its turn."""

    def __init__(self, place: str, membership: Membership, own: Stewardship, tls: TlsFiles | None) -> None:
        self._place = place
        self._membership = membership
        self._own = own
        self._tls = tls

    async def in_bucket(self, identity: Identity, version: str = "") -> InBucket:
        """What the bucket lists of a volume, no earlier than now: see ``Stewardship.in_bucket``."""
        request = pb.InBucketRequest(identity=str(identity), version=version, place=self._place)
        reply = await self._ask("InBucket", request, Deadline.STEWARD)
        if reply is None:
            return await self._own.in_bucket(identity, version)
        if reply.trouble:
            raise (TierRefused if reply.refused else TierUnavailable)(reply.trouble)
        return InBucket(tuple(sorted(reply.numbers)), reply.forced, reply.version)

    async def job_in_bucket(self, identity: Identity, lineage: Lineage) -> BackupsOfJob:
        """The complete checkpoints of a volume's job: see ``Stewardship.of_job``."""
        request = pb.JobInBucketRequest(
            identity=str(identity),
            run=lineage.run,
            world_size=lineage.world_size,
            topology=lineage.topology,
            groups=lineage.groups,
            part=lineage.part,
            place=self._place,
        )
        reply = await self._ask("JobInBucket", request, Deadline.STEWARD)
        if reply is None:
            with trio.move_on_after(Deadline.STEWARD):
                return await self._own.of_job(identity, lineage)
            raise TierUnavailable(f"{self._place} did not answer within {Deadline.STEWARD:g} s")
        if reply.trouble:
            raise TierUnavailable(reply.trouble)
        forced = reply.forced if reply.HasField("forced") else None
        return BackupsOfJob(tuple(map(backup_from_wire, reply.backups)), forced)

    async def backed_up(self, identity: Identity) -> None:
        """Says that a snapshot has come to the bucket. Never fails: the steward looks at everything now and then."""
        request = pb.BackedUpRequest(identity=str(identity), place=self._place)
        try:
            reply = await self._ask("BackedUp", request, Deadline.CONTROL_CALL)
        except FuseTierError as error:
            log.info("steward.not_told", identity=str(identity), reason=str(error))
            return
        if reply is None:
            self._own.note(Job.of(identity))

    async def turn(self, identity: Identity, run: str, step: int, every: float) -> Turn:
        """Which step of a volume's job is backed up now. Never fails: without a steward this node says so itself."""
        request = pb.BackupTurnRequest(
            identity=str(identity), run=run, step=step, every_seconds=every, place=self._place
        )
        try:
            reply = await self._ask("BackupTurn", request, Deadline.CONTROL_CALL)
        except FuseTierError as error:
            log.info("steward.turn_not_asked", identity=str(identity), reason=str(error))
            reply = None
        if reply is None:
            return self._own.turn(Job.of(identity), run, step, every)
        return Turn(reply.step if reply.has_step else None, reply.wait_seconds)

    async def _ask(self, name: str, request: Any, deadline_seconds: float) -> Any | None:
        """The steward's answer; None when it is this node's turn. Raises what the steward raised."""
        own = self._membership.own()
        members = {member.node: member for member in self._membership.members() if member.alive}
        for node in stewards(self._place, own, tuple(members.values()))[: _ASKED_AT_MOST + 1]:
            if node == own.node:
                return None
            try:
                async with Client(members[node].control, StewardStub, self._tls, node) as client:
                    return await client.call(name, request, deadline_seconds)
            except _PASSED_OVER as error:
                log.info("steward.passed_over", member=node, reason=str(error))
        await trio.lowlevel.checkpoint()
        return None
