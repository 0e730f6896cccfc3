"""``replication.ReplicationService`` on a loopback address: for tools that call it (docs/frameworks.md).

Of a job's coordinator the address is kept for whoever asks, on any node. To mount what peers or the bucket have there
is nothing here, since copies are made behind the job's own mount: who asks for that is told so, rather than given a
place where nothing becomes of what is written.
"""

from __future__ import annotations

import ipaddress
import re
import time
from typing import Final, NoReturn

import structlog
import trio

from fuse_tier import metrics
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, InvalidRequest, TierRefused
from fuse_tier.members import JobAddress
from fuse_tier.replicate.membership import Membership
from fuse_tier.wire import replication_pb2 as pb
from fuse_tier.wire.grpc import Caller

log = structlog.get_logger(__name__)

_ASK_SECONDS: Final = 0.2
_KNOWN_SECONDS: Final = 1.0  # what others have registered is asked for so long; then this node's clock alone counts
_MOST_JOBS: Final = 1000
_JOB: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")  # it names an object of Kubernetes, too
_ANY: Final = ""  # framework: the caller does not say


class ReplicationService:
    """The servicer. What is registered here stays until it is unregistered, or this worker ends."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self.registered: dict[str, JobAddress] = {}
        """Each job's coordinator, as far as it was registered on this node."""

    async def RegisterCoordinator(  # noqa: N802 - its wire name
        self, request: pb.RegisterCoordinatorRequest, caller: Caller
    ) -> pb.RegisterCoordinatorResponse:
        """Whoever asks for that job's coordinator, on any node, is given this address."""
        job, address = _job(request.job_name), _address(request.ip)
        if len(self.registered) >= _MOST_JOBS and job not in self.registered:
            raise TierRefused(f"{_MOST_JOBS} jobs have registered here: unregister those that are over")
        known = None
        with trio.move_on_after(_KNOWN_SECONDS):
            known = await self._newest(job)
        self.registered[job] = JobAddress(address, time.time_ns()).after(known)
        log.info("replication.registered", job=job, address=address)
        self._membership.report_soon()
        return pb.RegisterCoordinatorResponse()

    async def GetCoordinator(  # noqa: N802
        self, request: pb.GetCoordinatorRequest, caller: Caller
    ) -> pb.GetCoordinatorResponse:
        """The address, as soon as there is one. Raises DeadlineExceeded."""
        job = _job(request.job_name)
        with metrics.node_operation("CoordinatorRegistration", _ANY), trio.move_on_after(Deadline.FRAMEWORK):
            while True:
                if found := await self._newest(job):
                    return pb.GetCoordinatorResponse(job_name=job, ip=found.address)
                await trio.sleep(_ASK_SECONDS)
        raise DeadlineExceeded(f"no coordinator of job {job} was registered within {Deadline.FRAMEWORK:g} s")

    async def _newest(self, job: str) -> JobAddress | None:
        """Since it was registered here, it may have been on another node; or here, and nobody else knows it yet."""
        told = None
        try:
            told = await self._membership.job_address(job)
        except FuseTierError as error:
            log.debug("replication.asked_in_vain", job=job, reason=str(error))
        found = [one for one in (self.registered.get(job), told) if one is not None]
        return max(found, key=lambda one: one.registered, default=None)

    async def UnregisterCoordinator(  # noqa: N802
        self, request: pb.UnregisterCoordinatorRequest, caller: Caller
    ) -> pb.UnregisterCoordinatorResponse:
        """It has none any more, as far as this node is concerned."""
        job = _job(request.job_name)
        if self.registered.pop(job, None) is not None:
            self._membership.report_soon()
        return pb.UnregisterCoordinatorResponse()

    async def SetReplicationPeer(  # noqa: N802
        self, request: pb.SetReplicationPeerRequest, caller: Caller
    ) -> pb.SetReplicationPeerResponse:
        """Raises TierRefused."""
        with metrics.node_operation("PeerMount", _ANY):
            _nothing_to_mount(request.local_mountpoint, f"peer {request.target_ip}")

    async def MountGCSBucket(  # noqa: N802
        self, request: pb.MountGCSBucketRequest, caller: Caller
    ) -> pb.MountGCSBucketResponse:
        """Raises TierRefused."""
        with metrics.node_operation("MountGcsBucket", _ANY):
            _nothing_to_mount(request.local_mountpoint, "the bucket")

    async def UnmountPeer(  # noqa: N802
        self, request: pb.UnmountPeerRequest, caller: Caller
    ) -> pb.UnmountPeerResponse:
        """Nothing of a peer is mounted."""
        return pb.UnmountPeerResponse()

    async def UnmountAllPeers(  # noqa: N802
        self, request: pb.UnmountAllPeersRequest, caller: Caller
    ) -> pb.UnmountAllPeersResponse:
        """Nothing of any peer is mounted."""
        return pb.UnmountAllPeersResponse()


def _nothing_to_mount(mountpoint: str, what: str) -> NoReturn:
    raise TierRefused(
        f"{what} is not mounted at {mountpoint!r}: what a job saves to its own mount is copied to peers and to the "
        "bucket without a mount of theirs; `fuse-tier status` tells where it is"
    )


def _job(name: str) -> str:
    if not _JOB.fullmatch(name):
        raise InvalidRequest(f"job_name {name!r} is no name of an object: give letters, digits, '.' and '-'")
    return name


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise InvalidRequest(f"ip {text!r} is no IP address") from error
