"""The command that tells from where a job would be restored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from fuse_tier.cli.options import JobType, json_option, node_option, print_json
from fuse_tier.deadlines import Deadline

if TYPE_CHECKING:
    from fuse_tier.cli.parts import Parts
    from fuse_tier.wire import control_pb2 as pb


@click.command(short_help="Tell from where a job would be restored.")
@click.option("--job", required=True, type=JobType(), help="Which job.")
@click.option("--step", type=click.IntRange(min=0), help="From which step; the newest complete one without it.")
@click.option("--without", multiple=True, metavar="NODE", help="As if this node were gone; may be given again.")
@node_option
@json_option
def plan(job: str, step: int | None, without: tuple[str, ...], socket: str | None, as_json: bool) -> int:
    """Tells from where each rank of a job would get its files, if it were restored now: nothing is done.

    With --without it is told what the loss of nodes would mean. Of a rank that is mounted nowhere it is assumed that
    it comes to a node that has nothing. One that has lost its part, of a job that declared which ranks hold the same
    state, gets that of such a one. The status is 1 when some rank could not be restored.

    \b
    Example:
      fuse-tier plan --job default/llama
      fuse-tier plan --job default/llama --without node-7 --without node-8
    """
    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.parts import choose_parts
    from fuse_tier.cli.rendering import print_out
    from fuse_tier.cli.reports import plan_view
    from fuse_tier.wire import control_pb2 as pb
    from fuse_tier.wire.standing import standings_from_wire

    with connected(socket) as node:
        standings = node.call("Checkpoints", pb.CheckpointsRequest(job=job), Deadline.LISTING).standings
        listed = node.call("List", pb.ListRequest(), Deadline.LISTING).snapshots
        parts = choose_parts(job, step, standings_from_wire(standings), listed)
        request = pb.PlanRequest(parts=_parts(job, parts, {one.id: one for one in listed}), without=without)
        reply = node.call("Plan", request, Deadline.LISTING)
    facts = _facts(job, parts.step, reply)
    if as_json:
        print_json(facts)
    else:
        print_out(plan_view(facts))
        busiest = max(facts["given"].items(), key=lambda item: item[1], default=None)
        if busiest is not None:
            from fuse_tier.quantities import format_size

            click.echo(f"most is given by {busiest[0]}: {format_size(busiest[1])}")
    return 1 if any(not leg["sources"] for leg in facts["legs"]) else 0


def _parts(job: str, parts: Parts, listed: Mapping[str, pb.Snapshot]) -> Iterator[pb.PlanPart]:
    """What each rank has of its own, then what those have that hold the same state."""
    from fuse_tier.wire import control_pb2 as pb

    for taker in sorted({*parts.numbers, *parts.partners}):
        for replica in (taker, *parts.partners.get(taker, ())):
            one = listed.get(f"{job}/{replica}@{parts.numbers.get(replica, 0)}")
            if one is not None:
                in_bucket = "bucket" in one.tiers
                yield pb.PlanPart(snapshot=one.id, bytes=one.bytes, in_bucket=in_bucket, taker=f"{job}/{taker}")


def _facts(job: str, step: int | None, reply: pb.PlanReply) -> dict[str, Any]:
    legs = [
        {"snapshot": leg.snapshot, "for": leg.taker, "at": leg.at, "sources": [_source(one) for one in leg.sources]}
        for leg in reply.legs
    ]
    return {"job": job, "step": step, "legs": legs, "given": _given(reply.legs), "depth": reply.depth}


def _source(one: pb.PlanSource) -> dict[str, Any]:
    return {"tier": one.tier, "node": one.node, "bytes": one.bytes, "depth": one.depth}


def _given(legs: Iterable[pb.PlanLeg]) -> dict[str, int]:
    """Bytes that each node, and the bucket, sends over the network."""
    given: defaultdict[str, int] = defaultdict(int)
    for leg in legs:
        for one in leg.sources:
            if one.tier != "ram":
                given[one.node or "bucket"] += one.bytes
    return dict(given)
