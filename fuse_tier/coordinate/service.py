"""The coordinator's calls: who may make them, what is logged and counted of them.

What is concluded is the directory's. The invariant here: a node speaks for itself only, and a refused call
changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import TypeVar

import structlog
import trio

from fuse_tier import failpoints, members, metrics
from fuse_tier.checkpoints import Job
from fuse_tier.coordinate import counts
from fuse_tier.coordinate.addresses import JobAddresses
from fuse_tier.coordinate.attendance import Attendance
from fuse_tier.coordinate.directory import Accepted, Directory
from fuse_tier.coordinate.fencing import Fence
from fuse_tier.coordinate.milestones import Milestones, Observer
from fuse_tier.coordinate.nodes import Change
from fuse_tier.coordinate.restarts import Restarts
from fuse_tier.errors import FuseTierError, IdentityBusy, InvalidRequest, NotAuthorized, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.restarts import Wish
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.grpc import Caller
from fuse_tier.wire.members import (
    MINOR,
    domain_to_wire,
    holdings_to_wire,
    location_to_wire,
    member_to_wire,
    ownerships_to_wire,
    parse_epoch,
    parse_identity,
    picture_to_wire,
)
from fuse_tier.wire.rejections import Rejections
from fuse_tier.wire.reports import report_from_wire
from fuse_tier.wire.restarts import (
    mark_to_wire,
    parse_job,
    question_from_wire,
    resumption_from_wire,
    verdict_to_wire,
)
from fuse_tier.wire.standing import standing_to_wire

log = structlog.get_logger(__name__)

_PROBE_SECONDS = 1.0
_TOLD_AT_MOST = 1000
_LOOK_SECONDS = 5.0


Request = TypeVar("Request")
Reply = TypeVar("Reply")
Call = Callable[["CoordinatorService", Request, Caller], Awaitable[Reply]]


def _marked(call: Call[Request, Reply]) -> Call[Request, Reply]:
    """A call before and after which a test may end the process."""

    @wraps(call)
    async def marked(self: CoordinatorService, request: Request, caller: Caller) -> Reply:
        failpoints.reached(f"coordinator.{call.__name__.lower()}.heard")
        reply = await call(self, request, caller)
        failpoints.reached(f"coordinator.{call.__name__.lower()}.answering")
        return reply

    return marked


class CoordinatorService:
    """The servicer of ``Coordinator`` in control.proto. ``authenticated`` says that callers have certificates."""

    def __init__(
        self,
        cluster: str,
        directory: Directory,
        fence: Fence,
        *,
        authenticated: bool,
        observers: Sequence[Observer] = (),
        wish_of: Callable[[Job], Wish | None] = lambda _: None,
    ) -> None:
        self._cluster = cluster
        self._directory = directory
        self._fence = fence
        self._attendance = Attendance(directory.life)
        self._restarts = Restarts(directory, wish_of)
        self._milestones = Milestones(observers)
        self._job_addresses = JobAddresses()
        self._authenticated = authenticated
        self._refusals_told: set[tuple[str, str]] = set()
        self._rejections = Rejections("peer.refused")

    async def Report(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:  # noqa: N802 - its wire name
        """Of nodes of an earlier minor version: each report by a call of its own."""
        return self.Reports(request, caller)

    def Reports(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:  # noqa: N802 - its wire name
        """Renews a node's lease and answers with everybody's. One message of a node's stream."""
        failpoints.reached("coordinator.report.heard")
        reply = self._answer(request, caller)
        failpoints.reached("coordinator.report.answering")
        return reply

    def _answer(self, request: pb.ReportRequest, caller: Caller) -> pb.ReportReply:
        try:
            self._check_caller(request.node, caller)
            if request.cluster != self._cluster:
                raise TierRefused(
                    f"node {request.node!r} is of cluster {request.cluster!r}, this coordinator of "
                    f"{self._cluster!r}: give the node another coordinator, or the same cluster, in its node.yaml"
                )
            now = trio.current_time()
            self._fence.hear(request.term, is_settled=self._directory.is_settled(now))
            self._fence.check()
            before = self._directory.nodes.last_report(request.node, request.instance, request.since)
            if request.since and before is None:
                return pb.ReportReply(unknown=True, term=self._fence.term)
            report = report_from_wire(request, before)
            self._tell(report, self._directory.report(report, now))
            self._restarts.hear(report)
            self._milestones.hear(report)
            self._job_addresses.hear(report.node, report.facts.job_addresses)
        except FuseTierError as error:
            self._tell_refusal(request, caller, error)
            raise
        counts.report_accepted()
        self._attendance.see(self._directory.nodes.member(report.node, now))
        reply = pb.ReportReply(
            epoch=self._directory.life,
            term=self._fence.term,
            minor=MINOR,
            lease_seconds=self._directory.nodes.lease_seconds,
            pause_seconds=self._directory.nodes.pause_seconds,
            owned=ownerships_to_wire(self._directory.granted(report.node, now)),
            clock=self._directory.clock(now),
            needed=holdings_to_wire(self._restarts.needed(report.node, now)),
            settled=self._directory.is_settled(now),
            marks=map(mark_to_wire, self._restarts.marks(report.node)),
            domain=domain_to_wire(self._directory.nodes.known_domain(report.node)),
        )
        if request.knows_roster:
            reply.roster = self._attendance.since(request.roster_life, request.roster_version, now)
        else:
            reply.members.extend(map(member_to_wire, self._directory.nodes.members(now)))
        return reply

    @_marked
    async def Claim(self, request: pb.ClaimRequest, caller: Caller) -> pb.ClaimReply:  # noqa: N802 - its wire name
        """Grants an identity. TierUnavailable says that asking again will help; IdentityBusy that it won't."""
        self._check_caller(request.node, caller)
        self._fence.check()
        identity, above = parse_identity(request.identity), parse_epoch(request.above)
        goes_on = parse_epoch(request.goes_on) if request.HasField("goes_on") else None
        now = trio.current_time()
        try:
            granted = self._directory.claim(
                identity, request.node, request.instance, request.sequence, now, goes_on=goes_on, above=above
            )
        except IdentityBusy:
            if goes_on is None or self._directory.holder(identity, now) is not None:
                await self._see_that_holder_answers(identity)
            raise
        log.info("coordinator.claim_granted", identity=str(identity), holder=request.node, epoch=granted)
        return pb.ClaimReply(epoch=self._directory.life, granted=granted, term=self._fence.term)

    @_marked
    async def Release(self, request: pb.ReleaseRequest, caller: Caller) -> pb.Empty:  # noqa: N802 - its wire name
        """Takes an identity back."""
        self._check_caller(request.node, caller)
        self._fence.check()
        identity, now = parse_identity(request.identity), trio.current_time()
        self._directory.release(identity, request.node, request.instance, request.sequence, now)
        self._attendance.see(self._directory.nodes.member(request.node, now))
        log.info("coordinator.claim_released", identity=str(identity), holder=request.node)
        return pb.Empty()

    @_marked
    async def Restart(self, request: pb.RestartRequest, caller: Caller) -> pb.RestartReply:  # noqa: N802
        """From which step a job goes on. TierUnavailable says that asking again will help."""
        self._check_caller(request.node, caller)
        self._fence.check()
        question, now = question_from_wire(request), trio.current_time()
        self._directory.nodes.called(request.node, request.instance, request.sequence, now)
        verdict = self._restarts.ask(question, request.node, now)
        log.info(
            "coordinator.step_chosen",
            identity=str(question.identity),
            restart=verdict.restart,
            step=verdict.step,
            snapshot=verdict.number,
            others=verdict.others,
        )
        reply = verdict_to_wire(verdict)
        reply.term = self._fence.term
        return reply

    @_marked
    async def Join(self, request: pb.JoinRequest, caller: Caller) -> pb.JoinReply:  # noqa: N802 - its wire name
        """A rank goes on from the step that was chosen."""
        self._check_caller(request.node, caller)
        self._fence.check()
        (identity, resumption), now = resumption_from_wire(request.resumption), trio.current_time()
        self._directory.nodes.called(request.node, request.instance, request.sequence, now)
        self._restarts.join(identity, request.node, resumption, now)
        self._milestones.joined(identity, resumption)
        return pb.JoinReply(term=self._fence.term)

    @_marked
    async def Locate(self, request: pb.LocateRequest, caller: Caller) -> pb.LocateReply:  # noqa: N802 - its wire name
        """Where a volume's snapshots are."""
        self._fence.check()
        location = self._directory.locate(parse_identity(request.identity), trio.current_time())
        return location_to_wire(location, self._fence.term)

    async def Picture(self, request: pb.Empty, caller: Caller) -> pb.PictureReply:  # noqa: N802 - its wire name
        """Everything, for people."""
        return picture_to_wire(self._directory.picture(trio.current_time()))

    async def Checkpoints(self, request: pb.CheckpointsRequest, caller: Caller) -> pb.CheckpointsReply:  # noqa: N802
        """Complete checkpoints, for people."""
        job = parse_job(request.job) if request.job else None
        return pb.CheckpointsReply(standings=map(standing_to_wire, self.standings(job)))

    async def JobAddress(self, request: pb.JobAddressRequest, caller: Caller) -> pb.JobAddressReply:  # noqa: N802
        """Where a training job's own coordinator is, which its tools have registered on some node."""
        found = self._job_addresses.of(request.job)
        return pb.JobAddressReply(ip=found.address, registered=found.registered) if found else pb.JobAddressReply()

    def standings(self, job: Job | None = None) -> tuple[Standing, ...]:
        """The complete checkpoints of one job, or of all, as far as nodes have told of them."""
        return self._restarts.standings(trio.current_time(), job)

    async def keep_standings(self) -> None:
        """Tells what is complete, and how old the newest of it is, until cancelled."""
        while True:
            await trio.sleep(max(_LOOK_SECONDS, self._directory.nodes.pause_seconds))
            standings = self.standings()
            counts.complete(standings)
            if self._directory.is_settled(trio.current_time()):  # else what has not been heard of would pass for gone
                self._milestones.look(standings, self._job_addresses.all())

    async def keep_leases(self) -> None:
        """Ends leases that were not renewed, until cancelled."""
        while True:
            now = trio.current_time()
            for node in self._directory.expire(now):
                log.warning("coordinator.node_gone", member=node, lease_seconds=self._directory.nodes.lease_seconds)
                self._attendance.see(self._directory.nodes.member(node, now))
            known = self._directory.nodes.names()
            self._attendance.forget_all_but(known)
            self._restarts.forget(known, now)
            alive = self._directory.nodes.alive(known, now)
            self._job_addresses.forget(alive)
            self._milestones.forget(alive)
            counts.nodes_alive(len(alive))
            await trio.sleep(self._directory.nodes.lease_seconds / 5)

    def _check_caller(self, node: str, caller: Caller) -> None:
        if self._authenticated and caller.node != node:
            error = NotAuthorized(
                f"{caller.address} has the certificate of node {caller.node!r} and speaks as {node!r}: "
                f"give it a certificate made for {node!r}, or that name in its node.yaml"
            )
            self._rejections.note("certificate", caller.address, str(error))
            raise error

    async def _see_that_holder_answers(self, identity: Identity) -> None:
        """Raises TierUnavailable when the node that has the identity seems gone, so that the claimer waits.

        That nobody answers is no proof that its mounts are gone, since its worker may be starting again: so
        it shortens no lease.
        """
        holder = self._directory.holder(identity, trio.current_time())
        if holder is None:
            raise TierUnavailable(f"the node that had {identity} mounted has just gone: try again")
        member, lease_seconds = holder
        if not await _answers(member.control, min(_PROBE_SECONDS, self._directory.nodes.lease_seconds / 5)):
            raise TierUnavailable(
                f"{identity} is mounted on node {member.node}, which doesn't answer at {member.control} any more: "
                f"unless it comes back, others can mount it in {lease_seconds:.1f} s"
            )

    def _tell(self, report: members.Report, accepted: Accepted) -> None:
        if accepted.change is not Change.SAME:
            log.info(f"coordinator.node_{accepted.change}", member=report.node, address=report.control)
            self._refusals_told = {told for told in self._refusals_told if told[0] != report.node}
        for conflict in accepted.conflicts:
            metrics.error("mounted-twice")
            log.error(
                "coordinator.mounted_twice",
                identity=str(conflict.identity),
                holder=conflict.holder,
                other=conflict.other,
                remedy=f"unmount it on {conflict.other}: what is written there may be refused as a snapshot",
            )

    def _tell_refusal(self, request: pb.ReportRequest, caller: Caller, error: FuseTierError) -> None:
        counts.report_refused(type(error).__name__)
        if isinstance(error, InvalidRequest | NotAuthorized):
            return  # told by who took the call, and by who looked at its certificate
        told = (request.node, request.instance)
        if told in self._refusals_told:
            return
        if len(self._refusals_told) >= _TOLD_AT_MOST:
            self._refusals_told.clear()
        self._refusals_told.add(told)
        log.warning("coordinator.report_refused", member=request.node, address=caller.address, reason=str(error))


async def _answers(address: str, deadline_seconds: float) -> bool:
    """Whether something takes a TCP connection there."""
    host, _, port = address.rpartition(":")
    with trio.move_on_after(deadline_seconds):
        try:
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False
