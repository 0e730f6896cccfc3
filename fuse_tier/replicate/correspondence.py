"""Reports to a coordinator and its answers: what each side has heard already is not said again.

A report says what has changed since the last one that was answered; whole is the first over a connection, the one
after any other call that changes something, and the one to a coordinator that does not know what this one changes. Of
its members it tells who has changed since the version that is known here.
"""

from __future__ import annotations

from fuse_tier.members import Member, Report
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import member_from_wire
from fuse_tier.wire.reports import report_to_wire, roster_from_wire

FIRST_LEASE_SECONDS = 5.0  # until the coordinator has said how long it is
_PAUSES_IN_A_LEASE = 5


class Correspondence:
    """Of one node with whoever is its coordinator."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self.life = ""  # of the coordinator
        self.heard: frozenset[str] = frozenset()  # the nodes of which it has told in this life
        self.lease_seconds = FIRST_LEASE_SECONDS
        self.pause_seconds = FIRST_LEASE_SECONDS / _PAUSES_IN_A_LEASE  # between reports that have nothing new
        self._told: Report | None = None
        self._minor = 0  # of the coordinator that was told it
        self._roster: dict[str, Member] = {}
        self._roster_life = ""
        self._roster_version = 0

    def request(self, report: Report, term: int) -> pb.ReportRequest:
        """What is sent. ``term`` is the highest that was heard of."""
        request = report_to_wire(report, self._cluster, self._told, self._minor)
        request.term = term
        request.knows_roster = True
        request.roster_life, request.roster_version = self._roster_life, self._roster_version
        return request

    def repeat(self) -> None:
        """The next report is whole: it may go to another coordinator, or what that one has was changed by a call."""
        self._told = None

    def take(self, report: Report, reply: pb.ReportReply) -> tuple[Member, ...]:
        """The answer to a report: everybody who takes part, this node included. Raises InvalidRequest."""
        if reply.epoch != self.life:
            self.heard = frozenset()
        if reply.roster:
            self._roster_life, self._roster_version = reply.epoch, self.enter(reply.roster)
            self._told = report
            self.heard = frozenset(self._roster)
        elif reply.pause_seconds:  # it tells others first: what was known before stays, and is asked for again
            self._told = report
        else:  # one of an earlier minor version, to which each report is whole
            self._roster = {member.node: member for member in map(member_from_wire, reply.members)}
            self.heard = frozenset(self._roster)
        self.life, self._minor = reply.epoch, reply.minor
        self.lease_seconds = reply.lease_seconds or FIRST_LEASE_SECONDS
        self.pause_seconds = reply.pause_seconds or self.lease_seconds / _PAUSES_IN_A_LEASE
        return tuple(self._roster.values())

    def enter(self, roster: bytes) -> int:
        """Takes in who takes part, or who has changed; gives the version. Raises InvalidRequest."""
        version, is_whole, members = roster_from_wire(roster)
        if is_whole:
            self._roster.clear()
        self._roster.update((member.node, member) for member in members)
        return version
