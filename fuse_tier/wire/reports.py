"""How a node's report travels: whole, or as what has changed since the one before.

What changes is told by volume: of each that is named, everything is said anew, and nothing is left of those that are
``gone``. Parsing is strict, as in ``members.py``, and never takes part of a report.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from fuse_tier.errors import InvalidRequest
from fuse_tier.identity import Identity
from fuse_tier.members import JobAddress, LocalFacts, Member, Report
from fuse_tier.standing import Standing, changed, changes
from fuse_tier.wire import control_pb2 as pb
from fuse_tier.wire.members import (
    MINOR,
    holdings_from_wire,
    holdings_to_wire,
    member_from_wire,
    ownerships_from_wire,
    ownerships_to_wire,
    parse_address,
    parse_domain,
    parse_epoch,
    parse_identity,
    parse_name,
    parse_user,
)
from fuse_tier.wire.restarts import (
    mark_from_wire,
    mark_to_wire,
    parse_time,
    resumption_from_wire,
    resumption_to_wire,
    saves_from_wire,
    saves_to_wire,
)
from fuse_tier.wire.standing import standing_to_wire, standings_from_wire

Said = TypeVar("Said")

_LONGEST_LEASE_SECONDS = 24 * 3600.0
_LONGEST_REASON = 500
_CHANGED_STANDINGS = 8  # the minor version that knows of them
_PACKED_FROM = 256  # members
_LONGEST_ROSTER_BYTES = 64 << 20


def report_to_wire(
    report: Report, cluster: str, before: Report | None = None, minor: int = MINOR
) -> pb.ReportRequest:
    """What a node sends; with the report ``before``, which the coordinator has, only what has changed since.

    ``minor`` is the coordinator's.
    """
    facts, gone = report.facts, frozenset[Identity]()
    standings, standings_gone = list(facts.standings), list[Standing]()
    knows_standings = before is not None and minor >= _CHANGED_STANDINGS
    if before is not None and knows_standings:
        standings, standings_gone = changes(before.facts.standings, facts.standings)
    if before is not None:
        named = _volumes(facts) | _volumes(before.facts)
        other = {one for one in named if _said(facts, one) != _said(before.facts, one)}
        gone = frozenset(other - _volumes(facts))
        facts = _only(facts, other)
    return pb.ReportRequest(
        cluster=cluster,
        node=report.node,
        instance=report.instance,
        sequence=report.sequence,
        since=0 if before is None else before.sequence,
        gone=map(str, gone),
        addresses=pb.Addresses(control=report.control, bulk=report.bulk),
        capacity_bytes=facts.capacity_bytes,
        free_bytes=max(0, facts.free_bytes),
        mounted=sorted(map(str, facts.mounted)),
        holdings=holdings_to_wire(facts.holdings),
        bucket=holdings_to_wire(facts.bucket),
        zone=report.domain.zone,
        pool=report.domain.pool,
        host=report.domain.host,
        leaving=report.leaving,
        owned=ownerships_to_wire(facts.epochs, facts.users),
        clock=report.clock,
        saves=saves_to_wire(facts.saved),
        resumed=[resumption_to_wire(identity, one) for identity, one in facts.resumed.items()],
        marks=map(mark_to_wire, facts.marks),
        standings=map(standing_to_wire, standings),
        standings_since=knows_standings,
        standings_gone=map(standing_to_wire, standings_gone),
        failing=[
            pb.Failing(identity=str(one), reason=reason[:_LONGEST_REASON]) for one, reason in facts.failing.items()
        ],
        job_addresses={job: one.address for job, one in facts.job_addresses.items()},
        job_registered={job: one.registered for job, one in facts.job_addresses.items()},
        lease_seconds=report.lease_seconds,
    )


def report_from_wire(message: pb.ReportRequest, before: Report | None = None) -> Report:
    """A whole report; ``before`` is what it changes, where it says ``since``. Raises InvalidRequest."""
    facts = LocalFacts(
        capacity_bytes=message.capacity_bytes,
        free_bytes=message.free_bytes,
        mounted=frozenset(map(parse_identity, message.mounted)),
        holdings=holdings_from_wire(message.holdings),
        bucket=holdings_from_wire(message.bucket),
        epochs=ownerships_from_wire(message.owned),
        users={parse_identity(one.identity): parse_user(one.user) for one in message.owned if one.user},
        saved=saves_from_wire(message.saves),
        resumed=dict(map(resumption_from_wire, message.resumed)),
        marks=frozenset(map(mark_from_wire, message.marks)),
        standings=standings_from_wire(message.standings),
        failing={parse_identity(one.identity): one.reason[:_LONGEST_REASON] for one in message.failing},
        job_addresses={
            job: JobAddress(address, parse_time(message.job_registered.get(job, 0)))
            for job, address in message.job_addresses.items()
        },
    )
    if not 0 <= message.lease_seconds < _LONGEST_LEASE_SECONDS:
        raise InvalidRequest(f"nobody has a lease of {message.lease_seconds:g} s")
    report = Report(
        node=parse_name(message.node, "node"),
        instance=parse_name(message.instance, "instance"),
        sequence=message.sequence,
        control=parse_address(message.addresses.control),
        bulk=parse_address(message.addresses.bulk),
        facts=facts,
        domain=parse_domain(message.zone, message.pool, message.host),
        clock=parse_epoch(message.clock),
        leaving=message.leaving,
        lease_seconds=message.lease_seconds,
    )
    if before is None:
        return report
    if message.standings_since:
        facts = replace(facts, standings=_standings(message, facts.standings, before.facts.standings))
    told = _volumes(facts) | set(map(parse_identity, message.gone))
    return replace(report, facts=_joined(before.facts, told, facts) if told else _as_before(before.facts, facts))


def _standings(
    message: pb.ReportRequest, news: tuple[Standing, ...], before: tuple[Standing, ...]
) -> tuple[Standing, ...]:
    gone = standings_from_wire(message.standings_gone)
    return changed(before, news, gone) if news or gone else before


def roster_to_wire(version: int, members: Iterable[pb.Member], *, is_whole: bool) -> bytes:
    """Everybody, or those who have changed."""
    roster = pb.Roster(members=members)
    if is_whole and len(roster.members) > _PACKED_FROM:
        roster = pb.Roster(packed=zlib.compress(roster.SerializeToString(), level=1))
    roster.version, roster.whole = version, is_whole
    return roster.SerializeToString()


def roster_from_wire(text: bytes) -> tuple[int, bool, tuple[Member, ...]]:
    """Its version, whether it is of everybody, and who is in it. Raises InvalidRequest."""
    try:
        roster = pb.Roster.FromString(text)
        if roster.packed:
            opening = zlib.decompressobj()
            roster.MergeFromString(opening.decompress(roster.packed, _LONGEST_ROSTER_BYTES))
    except (DecodeError, zlib.error) as error:
        raise InvalidRequest(f"the coordinator's roster cannot be read: {error}") from None
    return roster.version, roster.whole, tuple(map(member_from_wire, roster.members))


def _volumes(facts: LocalFacts) -> set[Identity]:
    return {*facts.mounted, *facts.holdings, *facts.bucket, *facts.epochs, *facts.saved, *facts.resumed}


def _said(facts: LocalFacts, one: Identity) -> tuple[Any, ...]:
    return (
        one in facts.mounted,
        facts.holdings.get(one),
        facts.bucket.get(one),
        facts.epochs.get(one),
        facts.users.get(one),
        facts.saved.get(one),
        facts.resumed.get(one),
    )


def _only(facts: LocalFacts, wanted: Collection[Identity]) -> LocalFacts:
    """What is said of some volumes."""

    def some(of: Mapping[Identity, Said]) -> dict[Identity, Said]:
        return {one: of[one] for one in wanted if one in of}

    return replace(
        facts,
        mounted=facts.mounted.intersection(wanted),
        holdings=some(facts.holdings),
        bucket=some(facts.bucket),
        epochs=some(facts.epochs),
        users=some(facts.users),
        saved=some(facts.saved),
        resumed=some(facts.resumed),
    )


def _as_before(kept: LocalFacts, told: LocalFacts) -> LocalFacts:
    """Where nothing was told of volumes: the very same of each, which shows that nothing has changed."""
    return replace(
        told,
        mounted=kept.mounted,
        holdings=kept.holdings,
        bucket=kept.bucket,
        epochs=kept.epochs,
        users=kept.users,
        saved=kept.saved,
        resumed=kept.resumed,
    )


def _joined(before: LocalFacts, named: Collection[Identity], told: LocalFacts) -> LocalFacts:
    """Of volumes that are named what was told, of the others what was said before."""

    def both(earlier: Mapping[Identity, Said], now: Mapping[Identity, Said]) -> dict[Identity, Said]:
        kept = {one: said for one, said in earlier.items() if one not in named}
        kept.update(now)
        return kept

    return replace(
        told,
        mounted=before.mounted.difference(named) | told.mounted,
        holdings=both(before.holdings, told.holdings),
        bucket=both(before.bucket, told.bucket),
        epochs=both(before.epochs, told.epochs),
        users=both(before.users, told.users),
        saved=both(before.saved, told.saved),
        resumed=both(before.resumed, told.resumed),
    )
