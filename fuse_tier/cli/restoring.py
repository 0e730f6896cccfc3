"""The command that writes a volume's files into a directory: from any tier of a node, or from a bucket alone."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fuse_tier.cli.options import (
    IdentityType,
    bucket_option,
    endpoint_option,
    json_option,
    node_option,
    print_json,
)
from fuse_tier.cli.reporting import say_error
from fuse_tier.cli.volumes import run_option, snapshot_option, tell_losses, version_option
from fuse_tier.deadlines import Deadline
from fuse_tier.quantities import format_count, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from fuse_tier.replicate.offline import RestoredFrom, Wanted


@click.command(short_help="Write a snapshot into a directory.")
@node_option
@bucket_option
@endpoint_option
@click.option("--identity", required=True, type=IdentityType(), help="Whose files.")
@snapshot_option
@version_option
@click.option("--step", type=click.IntRange(min=0), help="With --bucket: the complete checkpoint of this step.")
@run_option
@click.option("--to", "directory", required=True, metavar="DIR", type=click.Path(), help="Where to.")
@json_option
def restore(
    socket: str | None,
    bucket: str | None,
    endpoint: str | None,
    identity: str,
    snapshot: int | None,
    version: str | None,
    step: int | None,
    run: str,
    directory: str,
    as_json: bool,
) -> None:
    """Writes the files of a volume's snapshot into a directory, without a mount, from any tier.

    Every byte is verified. Nothing is left in DIR when it fails. With --bucket no node is asked: a bucket's name
    and an identity are enough, in any cluster or on any machine. Then the newest complete checkpoint is restored.

    \b
    Example:
      fuse-tier restore --identity default/llama/0 --snapshot 12 --to /tmp/step-12
      fuse-tier restore --bucket gs://checkpoints/team --identity default/llama/0 --to ./restored
    """
    if sum(given is not None for given in (snapshot, version, step)) > 1:
        raise click.UsageError("give one of --snapshot, --version and --step")
    if bucket:
        if socket or run:
            raise click.UsageError("--bucket asks no node and takes no --run: leave --node and --run out")
        _restore_from_bucket(bucket, endpoint, identity, snapshot, version, step, os.path.abspath(directory), as_json)
        return
    if endpoint or step is not None:
        raise click.UsageError("--endpoint and --step go with --bucket")
    _restore_by_node(socket, identity, snapshot, version, run, os.path.abspath(directory), as_json)


def _restore_by_node(
    socket: str | None,
    identity: str,
    snapshot: int | None,
    version: str | None,
    run: str,
    directory: str,
    as_json: bool,
) -> None:
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.wire import control_pb2 as pb

    request = pb.RestoreRequest(
        identity=identity, snapshot=snapshot or 0, to=directory, run=run, version=version or ""
    )
    started = time.monotonic()
    with connected(socket) as node:
        facts = facts_of(watch(node.steps("Restore", request, Deadline.RESTORE)))
    if as_json:
        print_json(facts)
        return
    _tell(identity, facts, time.monotonic() - started)
    for place, moved in facts.get("sources", {}).items():
        click.echo(f"  {format_size(moved)} from {place}")
    tell_losses(facts)


def _restore_from_bucket(
    bucket: str,
    endpoint: str | None,
    identity: str,
    snapshot: int | None,
    version: str | None,
    step: int | None,
    directory: str,
    as_json: bool,
) -> None:
    import trio

    from fuse_tier import logs
    from fuse_tier.identity import Identity
    from fuse_tier.replicate.offline import Wanted

    logs.configure("restore", "")
    wanted = Wanted(Identity.parse(identity), snapshot or 0, version or "", step)
    restored = trio.run(_restore, bucket, endpoint, wanted, directory)
    facts = asdict(restored)
    facts |= {
        "snapshot": str(restored.snapshot),
        "to": directory,
        "bytes": facts.pop("size"),
        "sources": {bucket: restored.size},
    }
    if as_json:
        print_json(facts)
        return
    _tell(identity, facts, restored.seconds)
    if restored.checkpoint:
        named = "" if restored.step is None else f", step {restored.step}"
        click.echo(f"  checkpoint {restored.checkpoint}{named}, from {bucket}")
    if restored.newer and not (snapshot or version or step is not None):
        newest = max(restored.newer)
        say_error(f"snapshot {newest} is newer, but part of no complete checkpoint: --snapshot {newest} restores it")


async def _restore(bucket: str, endpoint: str | None, wanted: Wanted, directory: str) -> RestoredFrom:
    from fuse_tier.cli.progress import working
    from fuse_tier.replicate.offline import restore_from_bucket
    from fuse_tier.tiers.bucket import BucketTier

    tier = BucketTier(bucket, endpoint)
    try:
        return await working(lambda report: restore_from_bucket(tier, wanted, directory, report))
    finally:
        await tier.aclose()


def _tell(identity: str, facts: dict[str, Any], seconds: float) -> None:
    files, size = format_count(facts["files"], "file"), facts["bytes"]
    number = facts["snapshot"].rpartition("@")[2]
    click.echo(
        f"{identity}: snapshot {number} restored to {facts['to']}: {files}, {format_size(size)} "
        f"in {format_duration(seconds)} ({format_rate(size / max(seconds, 1e-3))})"
    )
