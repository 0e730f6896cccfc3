"""The command that writes a whole job's checkpoint into one directory, a directory in it for each rank."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fuse_tier.cli.options import JobType, bucket_option, endpoint_option, json_option, node_option, print_json
from fuse_tier.deadlines import Deadline
from fuse_tier.quantities import format_count, format_size

if TYPE_CHECKING:
    from fuse_tier.cli.parts import Parts
    from fuse_tier.tiers.bucket import BucketTier

Restore = Callable[[str, int, str], int]
"""Writes a snapshot of a replica into a directory, and gives its bytes."""


@click.command(short_help="Write a checkpoint of all ranks into a directory.")
@click.option("--job", required=True, type=JobType(), help="Whose checkpoint.")
@click.option("--step", type=click.IntRange(min=0), help="Which; the newest without it.")
@node_option
@bucket_option
@endpoint_option
@click.option("--to", "directory", required=True, metavar="DIR", type=click.Path(), help="Where to.")
@json_option
def export(
    job: str,
    step: int | None,
    socket: str | None,
    bucket: str | None,
    endpoint: str | None,
    directory: str,
    as_json: bool,
) -> None:
    """Writes a complete checkpoint into one directory: in DIR a directory for each rank, with its files.

    For a job of another shape, which gets no volume of the old one's, for evaluation, for moving elsewhere. It
    comes from any tier, or with --bucket from there alone, without a node. Every byte is verified. DIR appears when
    all of it is there.

    \b
    Example:
      fuse-tier export --job default/llama --to /data/llama
      fuse-tier export --job default/llama --step 300 --bucket gs://checkpoints/team --to ./llama-300
    """
    if bucket and socket:
        raise click.UsageError("--bucket asks no node: leave --node out")
    if endpoint and not bucket:
        raise click.UsageError("--endpoint goes with --bucket")
    target = os.path.abspath(directory)
    if bucket:
        parts, size = _from_bucket(bucket, endpoint, job, step, target)
    else:
        parts, size = _by_node(socket, job, step, target)
    if as_json:
        print_json(
            {"job": job, "step": parts.step, "ranks": len(parts.numbers), "bytes": size, "to": target}
            | {"snapshots": dict(parts.numbers)}
        )
    else:
        named = "" if parts.step is None else f"step {parts.step} of "
        click.echo(f"{named}{job}: {format_count(len(parts.numbers), 'rank')}, {format_size(size)} in {target}")


def _by_node(socket: str | None, job: str, step: int | None, target: str) -> tuple[Parts, int]:
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.parts import choose_parts
    from fuse_tier.cli.progress import watch
    from fuse_tier.wire import control_pb2 as pb
    from fuse_tier.wire.standing import standings_from_wire

    with connected(socket) as node:
        reply = node.call("Checkpoints", pb.CheckpointsRequest(job=job), Deadline.LISTING)
        listed = node.call("List", pb.ListRequest(), Deadline.LISTING).snapshots
        parts = choose_parts(job, step, standings_from_wire(reply.standings), listed)

        def restore(replica: str, number: int, directory: str) -> int:
            request = pb.RestoreRequest(identity=f"{job}/{replica}", snapshot=number, to=directory, step=parts.step)
            return int(facts_of(watch(node.steps("Restore", request, Deadline.RESTORE)))["bytes"])

        return parts, _write(parts.numbers, target, restore)


def _from_bucket(bucket: str, endpoint: str | None, job: str, step: int | None, target: str) -> tuple[Parts, int]:
    import trio

    from fuse_tier import logs
    from fuse_tier.checkpoints import Job
    from fuse_tier.cli.parts import Parts
    from fuse_tier.cli.progress import working
    from fuse_tier.identity import Identity
    from fuse_tier.replicate.offline import Wanted, find_checkpoint, restore_from_bucket
    from fuse_tier.tiers.bucket import BucketTier

    logs.configure("export", "")
    namespace, _, workload = job.partition("/")
    of_job = Job(namespace, workload)

    async def with_bucket(work: Callable[[BucketTier], Any]) -> Any:
        tier = BucketTier(bucket, endpoint)
        try:
            return await work(tier)
        finally:
            await tier.aclose()

    found = trio.run(with_bucket, lambda tier: find_checkpoint(tier, of_job, step))

    def restore(replica: str, number: int, directory: str) -> int:
        wanted = Wanted(Identity(namespace, workload, replica), number, step=found.step)

        async def work(tier: BucketTier) -> int:
            done = await working(lambda report: restore_from_bucket(tier, wanted, directory, report))
            return done.size

        return int(trio.run(with_bucket, work))

    return Parts(found.step, found.snapshots), _write(found.snapshots, target, restore)


def _write(numbers: Mapping[str, int], target: str, restore: Restore) -> int:
    """All ranks, or nothing. Raises MountError (the target), and what ``restore`` does."""
    with _appearing(target) as unfinished:
        return sum(
            restore(replica, number, os.path.join(unfinished, replica)) for replica, number in sorted(numbers.items())
        )


@contextmanager
def _appearing(target: str) -> Iterator[str]:
    """A directory beside the target, which takes its place when the block ends well, else is removed."""
    from fuse_tier.replicate.tree import check_new_directory, remove_tree

    check_new_directory(target)
    unfinished = f"{target}.{secrets.token_hex(4)}.unfinished"
    os.mkdir(unfinished)
    try:
        yield unfinished
        if os.path.isdir(target):
            shutil.copystat(target, unfinished)
            os.rmdir(target)
        os.rename(unfinished, target)
    except BaseException:
        remove_tree(unfinished)
        raise
