"""Membership through a coordinator.

Calls to it that change something are made one at a time and numbered, and the report after each says everything anew,
claims included: so a call that was lost, or came late, is put right by the next report. Of several coordinators only
the newest is listened to (``terms.py``). The invariant: what
this node claimed stands in every report from the moment the claim is known to be granted until its release,
and in none before.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace

import structlog
import trio

from fuse_tier import epochs
from fuse_tier.checkpoints import Job
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import DeadlineExceeded, FuseTierError, IdentityBusy, TierRefused, TierUnavailable
from fuse_tier.identity import Identity
from fuse_tier.members import Domain, JobAddress, Location, Member, Report
from fuse_tier.ram.layout import Layout
from fuse_tier.replicate.correspondence import Correspondence
from fuse_tier.replicate.locating import Locating
from fuse_tier.replicate.own import OwnNode
from fuse_tier.replicate.reporting import Reporting
from fuse_tier.replicate.roster import RosterMembership
from fuse_tier.replicate.terms import Terms
from fuse_tier.replicate.trouble import Trouble
from fuse_tier.replicate.unheard import Unheard
from fuse_tier.restarts import Mark, Question, Resumption, Verdict
from fuse_tier.standing import Standing
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.control_pb2_grpc import CoordinatorStub
from fuse_tier.wire.grpc import SELDOM_KEEPALIVE_SECONDS, Client
from fuse_tier.wire.members import (
    domain_from_wire,
    holdings_from_wire,
    ownerships_from_wire,
    parse_epoch,
)
from fuse_tier.wire.restarts import (
    mark_from_wire,
    parse_time,
    question_to_wire,
    resumption_to_wire,
    verdict_from_wire,
)
from fuse_tier.wire.standing import standings_from_wire

log = structlog.get_logger(__name__)

_LEAST_PAUSE_SECONDS = 0.05  # between two reports, however many were asked for
_MERGED_PART = 20  # of the pause: news of so long are one report
_CLAIM_PAUSE_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 1.0  # of a report that failed


class CoordinatorMembership(RosterMembership):
    """Implements ``Membership``. ``name`` is whose certificate the coordinator has; None where any will do."""

    def __init__(self, own: OwnNode, address: str, name: str | None, layout: Layout) -> None:
        super().__init__(own)
        self._address = address
        self._client = Client(address, CoordinatorStub, own.tls, name, keepalive_seconds=SELDOM_KEEPALIVE_SECONDS)
        self._sequence = itertools.count(1)
        self._turn = trio.Lock()
        self._wanted = trio.Event()
        self._terms = Terms(layout)
        self._reporting = Reporting(self._client)
        self._letters = Correspondence(own.cluster)
        self._unheard = Unheard()
        self._locating = Locating(self._client, address, own, self._roster, self._terms, self._letters, self._unheard)
        self._clock = 0  # the highest epoch heard of
        self._doubtful: frozenset[Identity] = frozenset()
        self._needed: Mapping[Identity, tuple[int, ...]] | None = None  # parts of newest complete checkpoints
        self._marks: frozenset[Mark] = frozenset()
        self._domain: Domain | None = None  # as the coordinator knows it
        self._trouble = Trouble(address)
        self._left = False

    def own(self) -> Member:
        """See Membership."""
        own = super().own()
        return own if self._domain is None else replace(own, domain=self._domain.or_else(own.domain))

    def heard_domain(self) -> Domain | None:
        """See Membership."""
        return self._domain

    def report_soon(self) -> None:
        """See Membership."""
        self._wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See Membership."""
        started = False
        await trio.to_thread.run_sync(self._terms.load)
        async with self._client, self._reporting:
            while True:
                self._wanted = trio.Event()
                longest_pause = float("inf")
                try:
                    await self._report()
                except FuseTierError as error:
                    longest_pause = _LONGEST_RETRY_SECONDS
                    self._trouble.tell(error, is_first=not self._letters.life)
                if not started:
                    started = True
                    task_status.started()
                pause = self._letters.pause_seconds
                with trio.move_on_after(min(pause, longest_pause)):
                    await self._wanted.wait()
                # What is new seldom comes alone: with many nodes each report counts.
                await trio.sleep(max(_LEAST_PAUSE_SECONDS, min(pause, longest_pause) / _MERGED_PART))

    def is_doubtful(self, identity: Identity) -> bool:
        """See Membership."""
        return identity in self._doubtful

    async def claim(self, identity: Identity, above: int = 0) -> int:
        """See Membership."""
        # Long enough for the lease of a node that is gone, and for a coordinator that has just started.
        patience_seconds = 2 * self._lease_seconds + 1
        reason: FuseTierError = DeadlineExceeded(f"no answer within {patience_seconds:g} s")
        with trio.move_on_after(patience_seconds):
            while True:
                try:
                    await self._change("Claim", pb.ClaimRequest(above=above), identity)
                except (TierUnavailable, DeadlineExceeded) as error:
                    reason = error
                else:
                    self.report_soon()
                    return self.epoch(identity)
                self.report_soon()
                await trio.sleep(_CLAIM_PAUSE_SECONDS)
        raise TierUnavailable(
            f"the coordinator at {self._address} could not tell within {patience_seconds:g} s whether {identity} is "
            f"mounted on another node: {reason}"
        ) from reason

    async def restart(self, question: Question) -> Verdict:
        """See Membership. What this node has is told first."""
        await self._report()
        if unheard := self._unheard.names(trio.current_time()):
            raise TierUnavailable(
                f"the coordinator has just started, and node {' and node '.join(unheard)} has not told it yet what "
                "it holds: a step that is there alone would be passed over; try again in some seconds"
            )
        request = question_to_wire(question)
        async with self._turn:
            request.node, request.instance, request.sequence = *self._caller, next(self._sequence)
            reply = await self._client.call("Restart", request, Deadline.CONTROL_CALL)
            await self._terms.obey(reply.term, self._address)
            return verdict_from_wire(reply)

    async def checkpoints(self, job: Job) -> tuple[Standing, ...]:
        """See Membership."""
        request = pb.CheckpointsRequest(job=str(job))
        return standings_from_wire((await self._client.call("Checkpoints", request, Deadline.CONTROL_CALL)).standings)

    async def job_address(self, job: str) -> JobAddress | None:
        """See Membership."""
        reply = await self._client.call("JobAddress", pb.JobAddressRequest(job=job), Deadline.CONTROL_CALL)
        return JobAddress(reply.ip, parse_time(reply.registered)) if reply.ip else None

    async def join(self, identity: Identity, resumption: Resumption) -> None:
        """See Membership."""
        message = resumption_to_wire(identity, resumption)
        async with self._turn:
            node, instance = self._caller
            request = pb.JoinRequest(node=node, instance=instance, sequence=next(self._sequence), resumption=message)
            reply = await self._client.call("Join", request, Deadline.CONTROL_CALL)
            await self._terms.obey(reply.term, self._address)
            self._letters.repeat()
            self._resumed[identity] = resumption  # before the turn ends, lest a report without it takes it back

    @property
    def agrees_on_steps(self) -> bool:
        """See Membership."""
        return True

    def needed(self, identity: Identity) -> frozenset[int] | None:
        """See Membership."""
        return None if self._needed is None else frozenset(self._needed.get(identity, ()))

    def clock(self) -> int:
        """See Membership."""
        return max(self._clock, super().clock())

    def marks(self) -> frozenset[Mark]:
        """See Membership."""
        return self._marks

    @property
    def _caller(self) -> tuple[str, str]:
        return self._own.node, self._own.instance

    async def confirm(self, identity: Identity, above: int = 0) -> bool:
        """See Membership."""
        goes_on = max(self.epoch(identity), self._own.facts().epochs.get(identity, 0))
        try:
            await self._change("Claim", pb.ClaimRequest(goes_on=goes_on, above=above), identity)
        except IdentityBusy:
            return False
        except (TierRefused, DeadlineExceeded) as error:
            raise TierUnavailable(
                f"{identity}: the coordinator did not confirm that it is this node's: {error}"
            ) from error
        self._doubtful -= {identity}
        return True

    async def release(self, identity: Identity) -> None:
        """See Membership. What was saved is told first: who may mount next must not find an older state, or none."""
        try:
            try:
                await self._report()
            finally:
                self._claimed.discard(identity)
                self._epochs.pop(identity, None)
                self._resumed.pop(identity, None)
            await self._change("Release", pb.ReleaseRequest(), identity)
        except FuseTierError as error:
            log.debug("membership.release_left_to_next_report", identity=str(identity), reason=str(error))
            self.report_soon()

    async def leave(self) -> None:
        """See Membership."""
        if self.mounted():
            return
        self._left = True
        try:
            await self._report(leaving=True)
        except FuseTierError as error:
            log.debug("membership.leave_left_to_lease", reason=str(error))

    async def locate(self, identity: Identity) -> Location:
        """See Membership. Without the coordinator, the peers known from before are asked."""
        return await self._locating.locate(identity)

    async def _report(self, *, leaving: bool = False) -> None:
        async with self._turn:
            if self._left and not leaving:
                return
            reply, report = await self._send(leaving=leaving)
            if reply.unknown:
                self._letters.repeat()
                reply, report = await self._send(leaving=leaving)
            life, known = self._letters.life, [member.node for member in self._roster.members]
            members = self._letters.take(report, reply)
            if life and reply.epoch != life:
                self._unheard.begin(known, trio.current_time())
            self._unheard.see(self._letters.heard)
            self._take_ownerships(report.facts.mounted, reply)
            self._take_needed(reply)
            self._domain = domain_from_wire(reply.domain)
        if not self._trouble.ends() and life and reply.epoch != life:
            log.info("membership.coordinator_restarted", address=self._address, life=reply.epoch, term=reply.term)
        self._roster.update(member for member in members if member.node != self._own.node)

    async def _send(self, *, leaving: bool) -> tuple[pb.ReportReply, Report]:
        if not self._reporting.goes_on:
            self._letters.repeat()
        report = self._own.report(
            self._claimed, self._epochs, self._resumed, self._clock, next(self._sequence), leaving=leaving
        )
        report = replace(report, lease_seconds=self._lease_seconds if self._letters.life else 0.0)
        request = self._letters.request(report, self._terms.highest)
        reply = await self._reporting.send(request, self._report_deadline())
        await self._terms.obey(reply.term, self._address)
        return reply, report

    @property
    def _lease_seconds(self) -> float:
        return self._letters.lease_seconds

    def _take_needed(self, reply: pb.ReportReply) -> None:
        """What the coordinator says must stay; one that has not heard all nodes yet says too little."""
        marks = frozenset(map(mark_from_wire, reply.marks))
        needed = holdings_from_wire(reply.needed)
        if marks - self._marks or (reply.settled and needed != self._needed):
            self._marks |= marks
            self._needed = needed if reply.settled else self._needed
            self._roster.tell()

    def _take_ownerships(self, mounted: Collection[Identity], reply: pb.ReportReply) -> None:
        """What the coordinator says that this node owns of what it has mounted."""
        if not reply.clock:
            return  # one of an earlier minor version, which knows of no epochs
        self._clock = max(self._clock, parse_epoch(reply.clock))
        owned = ownerships_from_wire(reply.owned)
        grown = {one: epoch for one, epoch in owned.items() if one in mounted and epoch > self.epoch(one)}
        doubtful = frozenset(mounted) - owned.keys()
        if grown or doubtful != self._doubtful:
            self._epochs |= grown
            self._doubtful = doubtful
            self._roster.tell()

    def _report_deadline(self) -> float:
        """A report that hangs must leave time for another one within the lease."""
        return min(Deadline.CONTROL_CALL, max(1.0, self._lease_seconds / 2))

    async def _change(self, name: str, request: pb.ClaimRequest | pb.ReleaseRequest, identity: Identity) -> None:
        async with self._turn:
            request.identity, request.node, request.instance = str(identity), self._own.node, self._own.instance
            request.sequence = next(self._sequence)
            self._letters.repeat()
            reply = await self._client.call(name, request, Deadline.CONTROL_CALL)
            if isinstance(reply, pb.ClaimReply):
                await self._terms.obey(reply.term, self._address)
            if isinstance(request, pb.ClaimRequest):
                # Before the turn ends, lest a report without it takes it back.
                self._claimed.add(identity)
                # A coordinator of an earlier minor version grants none.
                unknown = max(epochs.from_the_time(), request.above + 1)
                self._epochs[identity] = max(self.epoch(identity), parse_epoch(reply.granted) or unknown)
