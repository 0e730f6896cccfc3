"""Commands that ask a node something and change nothing: status, ls, show, verify."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fuse_tier.cli.options import (
    TIERS,
    IdentityType,
    JobType,
    SecondsType,
    SnapshotType,
    bucket_option,
    endpoint_option,
    json_option,
    node_option,
    print_json,
)
from fuse_tier.cli.reporting import printable, say_error
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import TierUnavailable

if TYPE_CHECKING:
    from fuse_tier.cli.node_client import NodeClient
    from fuse_tier.errors import MalformedManifest
    from fuse_tier.replicate.offline import Listed


@click.command(short_help="Show tiers, volumes, what is where.")
@node_option
@click.option("--watch", is_flag=True, help="Show it again and again, until interrupted.")
@click.option("--interval", type=SecondsType(), default=1.0, show_default=True, help="How often, with --watch.")
@click.option("--job", type=JobType(), help="The complete checkpoints of a job instead, on all nodes.")
@json_option
def status(socket: str | None, watch: bool, interval: float, job: str | None, as_json: bool) -> None:
    """Shows a node's tiers and volumes, what is durable where, its queue and rates.

    With --job, which checkpoints of that job every rank has, and whether they are in RAM (somewhere), on peers (so
    that any one node may be lost) and in the bucket: as the coordinator knows it, whichever node is asked.

    \b
    Example:
      fuse-tier status --node run/a/node.sock --watch
      fuse-tier status --job default/llama
    """
    from fuse_tier.cli.node_client import connected

    if job is not None:
        if watch:
            raise click.UsageError("--watch shows a node: leave out --job")
        _job_status(socket, job, as_json)
        return
    if watch:
        _watch_status(socket, interval, as_json)
        return
    with connected(socket) as node:
        facts = _status(node)
    if as_json:
        print_json(facts)
    else:
        from fuse_tier.cli.rendering import print_out, status_view

        print_out(status_view(facts))


def _job_status(socket: str | None, job: str, as_json: bool) -> None:
    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.rendering import print_out
    from fuse_tier.cli.reports import standings_view
    from fuse_tier.wire import control_pb2 as pb
    from fuse_tier.wire.standing import standings_from_wire

    with connected(socket) as node:
        reply = node.call("Checkpoints", pb.CheckpointsRequest(job=job), Deadline.LISTING)
    found = standings_from_wire(reply.standings)
    facts = [asdict(one) | {"job": str(one.job), "restorable": one.restorable} for one in found]
    if as_json:
        print_json(facts)
    elif facts:
        print_out(standings_view(facts))
    else:
        click.echo(f"no checkpoint of {job} is complete: `fuse-tier ls` shows what each volume has")


def _status(node: NodeClient) -> dict[str, Any]:
    from fuse_tier.wire import control_pb2 as pb

    return dict(json.loads(node.call("Status", pb.Empty(), Deadline.STATUS).facts))


def _watch_status(socket: str | None, interval: float, as_json: bool) -> None:
    """A node that is away is part of what is watched: it may come back."""
    from rich.live import Live
    from rich.text import Text

    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.rendering import output, status_view

    def look() -> dict[str, Any]:
        try:
            with connected(socket) as node:
                return _status(node)
        except TierUnavailable as error:
            return {"error": str(error)}

    if as_json:
        while True:
            print_json(look(), compact=True)
            time.sleep(interval)
    with Live(console=output(), auto_refresh=False) as live:
        while True:
            facts = look()
            live.update(Text(printable(facts["error"])) if "error" in facts else status_view(facts), refresh=True)
            time.sleep(interval)


@click.command("ls", short_help="List snapshots and where they are.")
@click.argument("identity", type=IdentityType(), required=False)
@node_option
@bucket_option
@endpoint_option
@json_option
def list_snapshots(
    identity: str | None, socket: str | None, bucket: str | None, endpoint: str | None, as_json: bool
) -> int:
    """Lists snapshots, of all volumes or of one, and the tiers that hold them.

    With --bucket no node is asked: lists the complete checkpoints in that bucket, of all jobs or of a volume's.

    \b
    Example:
      fuse-tier ls default/llama/0
      fuse-tier ls --bucket gs://checkpoints/team
    """
    if (bucket and socket) or (endpoint and not bucket):
        raise click.UsageError("--bucket asks no node, and --endpoint goes with it")
    if bucket:
        return _list_checkpoints(identity, bucket, endpoint, as_json)
    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.rendering import print_out, snapshot_facts, snapshots_view
    from fuse_tier.wire import control_pb2 as pb

    with connected(socket) as node:
        reply = node.call("List", pb.ListRequest(identity=identity or ""), Deadline.LISTING)
    facts = [snapshot_facts(snapshot) for snapshot in reply.snapshots]
    if as_json:
        print_json(facts)
    elif facts:
        print_out(snapshots_view(facts))
    else:
        click.echo(f"there is no snapshot of {identity}" if identity else "there are no snapshots")
    return 0


def _list_checkpoints(identity: str | None, url: str, endpoint: str | None, as_json: bool) -> int:
    """Gives the exit status."""
    import trio

    from fuse_tier import logs
    from fuse_tier.cli.rendering import print_out
    from fuse_tier.cli.reports import checkpoints_view
    from fuse_tier.identity import Identity
    from fuse_tier.replicate.offline import list_checkpoints
    from fuse_tier.tiers.bucket import BucketTier

    logs.configure("ls", "")
    wanted = Identity.parse(identity) if identity else None

    async def look() -> tuple[list[Listed], list[MalformedManifest]]:
        bucket = BucketTier(url, endpoint)
        try:
            return await list_checkpoints(bucket, wanted)
        finally:
            await bucket.aclose()

    found, unreadable = trio.run(look)
    facts = [asdict(one) for one in found]
    if as_json:
        print_json(facts)
    elif facts:
        print_out(checkpoints_view(facts))
    elif not unreadable:
        click.echo(f"{url} has no complete checkpoint{f' of {identity}' if identity else ''}")
    for error in unreadable:
        say_error(str(error))
    return 1 if unreadable else 0


@click.command(short_help="Show the files of a snapshot.")
@click.argument("snapshot", type=SnapshotType())
@node_option
@json_option
def show(snapshot: str, socket: str | None, as_json: bool) -> None:
    """Shows the files of one snapshot, and whose it is.

    \b
    Example:
      fuse-tier show default/llama/0@12
    """
    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.rendering import manifest_facts, manifest_view, print_out
    from fuse_tier.manifest import decode
    from fuse_tier.wire import control_pb2 as pb

    with connected(socket) as node:
        reply = node.call("Show", pb.ShowRequest(id=snapshot), Deadline.LISTING)
    manifest = decode(reply.text)
    if as_json:
        print_json(manifest_facts(manifest))
    else:
        print_out(manifest_view(manifest))


@click.command(short_help="Read and check every byte.")
@node_option
@click.option("--tier", type=click.Choice(TIERS), help="Only this tier. [default: all]")
@click.option("--identity", type=IdentityType(), help="Only this volume. [default: all]")
@json_option
def verify(socket: str | None, tier: str | None, identity: str | None, as_json: bool) -> int:
    """Reads and checks every byte that the tiers hold. Damage is listed, and the exit status is 1.

    \b
    Example:
      fuse-tier verify --tier bucket
    """
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.cli.rendering import print_out, verify_view
    from fuse_tier.wire import control_pb2 as pb

    request = pb.NodeVerifyRequest(tier=tier or "", identity=identity or "")
    with connected(socket) as node:
        facts = facts_of(watch(node.steps("Verify", request, Deadline.VERIFY)))
    damaged = [(entry["place"], name) for entry in facts["tiers"] for name in entry["damaged"]]
    if as_json:
        print_json(facts)
    else:
        print_out(verify_view(facts))
    for place, name in damaged:
        say_error(f"damage in {place}: {name}")
    return 1 if damaged else 0
