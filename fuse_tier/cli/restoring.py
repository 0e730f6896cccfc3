"""The command that writes a volume's files into a directory: from any tier of a node, or from a bucket alone."""

from __future__ import annotations

import os
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
from fuse_tier.cli.volumes import run_option, snapshot_option, tell_passed_over, version_option
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
@click.option("--step", type=click.IntRange(min=0), help="The newest snapshot of this step.")
@run_option
@click.option("--partial", is_flag=True, help="Leave out files whose content is damaged or gone, and name them.")
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
    partial: bool,
    directory: str,
    as_json: bool,
) -> int:
    """Writes the files of a volume's snapshot into a directory, without a mount, from any tier.

    Every byte is verified. Nothing is left in DIR when it fails; with --partial all that is intact is restored, and
    the exit status is 1 when that is not everything. With --bucket no node is asked: a bucket's name
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
        facts = _from_bucket(
            bucket, endpoint, identity, snapshot, version, step, os.path.abspath(directory), partial=partial
        )
        return _tell(identity, facts, as_json=as_json)
    if endpoint:
        raise click.UsageError("--endpoint goes with --bucket")
    facts = _by_node(socket, identity, snapshot, version, step, run, os.path.abspath(directory), partial=partial)
    return _tell(identity, facts, as_json=as_json)


def _by_node(
    socket: str | None,
    identity: str,
    snapshot: int | None,
    version: str | None,
    step: int | None,
    run: str,
    directory: str,
    *,
    partial: bool,
) -> dict[str, Any]:
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.wire import control_pb2 as pb

    request = pb.RestoreRequest(
        identity=identity,
        snapshot=snapshot or 0,
        to=directory,
        run=run,
        version=version or "",
        partial=partial,
        step=step,
    )
    with connected(socket) as node:
        return facts_of(watch(node.steps("Restore", request, Deadline.RESTORE)))


def _from_bucket(
    bucket: str,
    endpoint: str | None,
    identity: str,
    snapshot: int | None,
    version: str | None,
    step: int | None,
    directory: str,
    *,
    partial: bool,
) -> dict[str, Any]:
    import trio

    from fuse_tier import logs
    from fuse_tier.identity import Identity
    from fuse_tier.replicate.offline import Wanted

    logs.configure("restore", "")
    wanted = Wanted(Identity.parse(identity), snapshot or 0, version or "", step)
    restored = trio.run(_restore, bucket, endpoint, wanted, directory, partial)
    facts = asdict(restored)
    facts |= {
        "snapshot": str(restored.snapshot),
        "to": directory,
        "bytes": facts.pop("size"),
        "sources": {bucket: restored.size},
    }
    if snapshot or version or step is not None:
        facts["newer"] = ()
    return facts


async def _restore(bucket: str, endpoint: str | None, wanted: Wanted, directory: str, partial: bool) -> RestoredFrom:
    from fuse_tier.cli.progress import working
    from fuse_tier.replicate.offline import restore_from_bucket
    from fuse_tier.tiers.bucket import BucketTier

    tier = BucketTier(bucket, endpoint)
    try:
        return await working(lambda report: restore_from_bucket(tier, wanted, directory, report, partial=partial))
    finally:
        await tier.aclose()


def _tell(identity: str, facts: dict[str, Any], *, as_json: bool) -> int:
    """Gives the exit status."""
    lost = facts.get("unreadable", ())
    if as_json:
        print_json(facts)
        return 1 if lost else 0
    files, size, seconds = format_count(facts["files"], "file"), facts["bytes"], facts["seconds"]
    number = facts["snapshot"].rpartition("@")[2]
    click.echo(
        f"{identity}: snapshot {number} restored to {facts['to']}: {files}, {format_size(size)} "
        f"in {format_duration(seconds)} ({format_rate(size / max(seconds, 1e-3))})"
    )
    if checkpoint := facts.get("checkpoint"):
        named = "" if facts["step"] is None else f", step {facts['step']}"
        why = ", which restore.version in the bucket names" if facts.get("is_forced") else ""
        click.echo(f"  checkpoint {checkpoint}{named}{why}")
    for place, moved in facts.get("sources", {}).items():
        click.echo(f"  {format_size(moved)} from {place}")
    if newer := facts.get("newer"):
        newest = max(newer)
        say_error(
            f"snapshot {newest} is newer, but part of no complete checkpoint that can be read: --snapshot {newest} "
            "restores it"
        )
    tell_passed_over(facts)
    for path in lost:
        say_error(f"{path}: left out, because its content is damaged or gone wherever it was")
    return 1 if lost else 0
