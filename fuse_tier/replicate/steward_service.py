"""The steward's answers to other nodes (control.proto, service Steward): checked, and handed on."""

from __future__ import annotations

import math

from fuse_tier.checkpoints import Job
from fuse_tier.errors import InvalidRequest, TierRefused, TierUnavailable
from fuse_tier.identity import is_name
from fuse_tier.replicate.peer_service import decode_blobs
from fuse_tier.replicate.readers import BLOBS_A_CALL, Readers
from fuse_tier.replicate.stewardship import Stewardship
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import parse_identity
from fuse_tier.wire.restarts import backup_to_wire, parse_lineage


class StewardService:
    """Of a node with a bucket; ``place`` is what it calls it."""

    def __init__(self, stewardship: Stewardship, readers: Readers, place: str) -> None:
        self._stewardship = stewardship
        self._readers = readers
        self._place = place

    async def InBucket(self, request: pb.InBucketRequest, caller: Caller) -> pb.InBucketReply:  # noqa: N802
        """What a volume has in the bucket."""
        identity = parse_identity(request.identity)
        self._check_place(request.place)
        try:
            found = await self._stewardship.in_bucket(identity, request.version)
        except TierUnavailable as error:
            return pb.InBucketReply(trouble=str(error))
        except TierRefused as error:
            return pb.InBucketReply(trouble=str(error), refused=True)
        return pb.InBucketReply(numbers=found.numbers, forced=found.forced, version=found.version)

    async def JobInBucket(self, request: pb.JobInBucketRequest, caller: Caller) -> pb.JobInBucketReply:  # noqa: N802
        """What a job has in the bucket."""
        identity = parse_identity(request.identity)
        self._check_place(request.place)
        lineage = parse_lineage(request)
        try:
            found = await self._stewardship.of_job(identity, lineage)
        except (TierUnavailable, TierRefused) as error:
            return pb.JobInBucketReply(trouble=str(error))
        return pb.JobInBucketReply(backups=map(backup_to_wire, found.backups), forced=found.forced)

    async def BackedUp(self, request: pb.BackedUpRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """Something new has come to the bucket."""
        identity = parse_identity(request.identity)
        self._check_place(request.place)
        self._stewardship.note(Job.of(identity))
        return pb.Empty()

    async def BackupTurn(self, request: pb.BackupTurnRequest, caller: Caller) -> pb.BackupTurnReply:  # noqa: N802
        """Which step of a job is backed up now."""
        identity = parse_identity(request.identity)
        self._check_place(request.place)
        if not is_name(request.run) or not (math.isfinite(request.every_seconds) and request.every_seconds > 0):
            raise InvalidRequest(f"run {request.run!r}, every {request.every_seconds} s: no backup can be timed so")
        turn = self._stewardship.turn(Job.of(identity), request.run, request.step, request.every_seconds)
        return pb.BackupTurnReply(has_step=turn.step is not None, step=turn.step or 0, wait_seconds=turn.wait_seconds)

    async def Readers(self, request: pb.ReadersRequest, caller: Caller) -> pb.ReferReply:  # noqa: N802
        """From whom the caller should take what others are reading out of the bucket."""
        blobs = decode_blobs(request.blobs, BLOBS_A_CALL)
        self._check_place(request.place)
        if not is_name(request.node) or caller.node not in (None, request.node):
            raise InvalidRequest(f"{request.node!r} is not the name of the node that calls")
        referred = self._readers.give_turns(blobs, request.node)
        indices = {blob: index for index, blob in enumerate(blobs)}
        return pb.ReferReply(
            referrals=[pb.Referral(index=indices[blob], node=node) for blob, node in referred.items()]
        )

    def _check_place(self, place: str) -> None:
        if place != self._place:
            raise InvalidRequest(
                f"the bucket here is {self._place}, and {place!r} is asked about: give all nodes of a cluster "
                "the same bucket.url"
            )
