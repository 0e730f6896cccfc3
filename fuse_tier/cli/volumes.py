"""Commands that do something with a volume: mount, unmount, wait."""

from __future__ import annotations

import os
from typing import Any

import click

from fuse_tier.cli.options import (
    TIERS,
    IdentityType,
    SecondsType,
    StepPatternType,
    json_option,
    node_option,
    print_json,
)
from fuse_tier.cli.reporting import say_error
from fuse_tier.deadlines import Deadline
from fuse_tier.quantities import format_count, format_duration, format_size

run_option = click.option("--run", default="", help="Which life of the workload this is. [default: its name]")
snapshot_option = click.option(
    "--snapshot", type=click.IntRange(min=1), default=None, metavar="N", help="Restore this one, not the newest."
)
version_option = click.option(
    "--version", metavar="DATE", help="Restore this complete checkpoint in the bucket, such as 2026-01-31_08-30."
)


@click.command(short_help="Mount a volume, restoring what it had.")
@click.argument("directory", metavar="DIR", type=click.Path())
@node_option
@click.option("--identity", required=True, type=IdentityType(), help="Whose volume it is.")
@run_option
@click.option("--owner-uid", default="", metavar="UID", help="The job's uid; recorded with every snapshot.")
@click.option(
    "--world-size", type=click.IntRange(min=0), default=0, help="Ranks of the job; must match what is restored."
)
@click.option("--topology", default="", help="Such as 2x8; must match what is restored.")
@click.option(
    "--step-pattern",
    type=StepPatternType(),
    metavar="NAME",
    help="What the job calls a step at the root, such as model-{step}.pt. [default: as frameworks do]",
)
@snapshot_option
@version_option
@click.option(
    "--restore",
    "mode",
    type=click.Choice(["consistent", "latest"]),
    help="From one step with all other ranks, or the newest of its own. [default: consistent with --world-size]",
)
@click.option("--step", type=click.IntRange(min=0), help="Have all ranks go back to this complete checkpoint.")
@click.option("--read-only", is_flag=True, help="Nothing may be written.")
@json_option
def mount(
    directory: str,
    socket: str | None,
    identity: str,
    run: str,
    owner_uid: str,
    world_size: int,
    topology: str,
    step_pattern: str | None,
    snapshot: int | None,
    version: str | None,
    mode: str | None,
    step: int | None,
    read_only: bool,
    as_json: bool,
) -> None:
    """Mounts a volume at DIR, an empty directory, with everything back that it had.

    What is missing here comes from the nearest place that has it: this node's RAM, a peer's, the bucket. With
    --world-size all ranks of the job go on from the same step: the newest that each of them has.

    \b
    Example:
      fuse-tier mount --identity default/llama/slice-0-3 /ckpt
    """
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.wire import control_pb2 as pb

    if sum(given is not None for given in (snapshot, version, step)) > 1:
        raise click.UsageError("give one of --snapshot, --version and --step")
    request = pb.MountRequest(
        identity=identity,
        mountpoint=os.path.abspath(directory),
        run=run,
        owner_uid=owner_uid,
        world_size=world_size,
        topology=topology,
        step_pattern=step_pattern or "",
        snapshot=snapshot or 0,
        read_only=read_only,
        version=version or "",
        restore=mode or "",
        step=step,
    )
    with connected(socket) as node:
        facts = facts_of(watch(node.steps("Mount", request, Deadline.RESTORE)))
    restored = facts["restored"]
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{facts['identity']} is mounted at {facts['mountpoint']}: {_restored(restored)}")
    tell_losses(restored or {})


def _restored(restored: dict[str, Any] | None) -> str:
    if not restored:
        return "nothing had to be restored"
    source = f" from {restored['from']}" if restored["from"] else ""
    if restored["coming"]:
        return (
            f"snapshot {_number(restored['snapshot'])}, {format_count(restored['files'], 'file')}, of which "
            f"{format_size(restored['coming'])} are coming{source}, what is opened first"
        )
    return (
        f"snapshot {_number(restored['snapshot'])} restored{source}, {format_count(restored['files'], 'file')}, "
        f"{format_size(restored['bytes'])} in {format_duration(restored['seconds'])}"
    )


def tell_losses(restored: dict[str, Any]) -> None:
    """What could not be restored, on stderr."""
    tell_passed_over(restored)
    for path in restored.get("unreadable", ()):
        say_error(f"{path}: no tier has its content intact: reading it gives an I/O error")


def tell_passed_over(restored: dict[str, Any]) -> None:
    """Which newer snapshots could not be restored, on stderr."""
    for number in restored.get("passed_over", ()):
        say_error(
            f"snapshot {number} is newer, but damaged wherever it is, or gone with its node: it was passed over"
        )


def _number(snapshot: str) -> str:
    """Of ``NAMESPACE/WORKLOAD/REPLICA@NUMBER`` the number, where the rest was said already."""
    return snapshot.rpartition("@")[2]


@click.command(short_help="End a mount.")
@click.argument("directory", metavar="DIR", type=click.Path())
@node_option
@click.option(
    "--drain",
    type=SecondsType(),
    default=None,
    help="How long to wait for copies to be made. [default: as the node is configured]",
)
@json_option
def unmount(directory: str, socket: str | None, drain: float | None, as_json: bool) -> None:
    """Ends the mount at DIR. The data stays where it is, in RAM and in all copies.

    Waits for operations that are under way, and for copies to be made. `fusermount3 -u DIR` does the same.

    \b
    Example:
      fuse-tier unmount /ckpt
    """
    from fuse_tier.cli.node_client import connected
    from fuse_tier.cli.rendering import snapshot_facts
    from fuse_tier.wire import control_pb2 as pb

    mountpoint = os.path.abspath(directory)
    request = pb.UnmountRequest(mountpoint=mountpoint, drain_seconds=-1.0 if drain is None else drain)
    deadline = Deadline.DRAIN if drain is None else drain + Deadline.UNMOUNT + Deadline.CONTROL_CALL
    with connected(socket, directory) as node:
        reply = node.call("Unmount", request, deadline)
    newest = snapshot_facts(reply.newest) if reply.HasField("newest") else None
    if as_json:
        print_json({"identity": reply.identity, "mountpoint": mountpoint, "newest": newest})
    elif newest:
        where = ", ".join(newest["tiers"]) or "no tier"
        click.echo(
            f"{reply.identity} is unmounted from {mountpoint}; its newest snapshot {newest['number']} is on {where}"
        )
    else:
        click.echo(f"{reply.identity} is unmounted from {mountpoint}; there is no snapshot of it")


@click.command(short_help="Wait until a tier has everything.")
@click.argument("directory", metavar="DIR", type=click.Path())
@node_option
@click.option("--tier", required=True, type=click.Choice(TIERS), help="Where everything shall be.")
@click.option(
    "--timeout", type=SecondsType(), default=Deadline.SYNC, show_default=True, help="How long to wait; then status 1."
)
@json_option
def wait(directory: str, socket: str | None, tier: str, timeout: float, as_json: bool) -> None:
    """Returns when everything sealed so far in DIR, a mounted volume, is on a tier.

    \b
    Example:
      fuse-tier wait /ckpt --tier bucket --timeout 5m
    """
    from fuse_tier.cli.node_client import connected, facts_of, identity_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.wire import control_pb2 as pb

    request = pb.WaitRequest(identity=identity_of(directory), tier=tier, timeout_seconds=timeout)
    with connected(socket, directory) as node:
        facts = facts_of(watch(node.steps("Wait", request, timeout + Deadline.CONTROL_CALL)))
    if as_json:
        print_json(facts)
    elif facts["snapshot"] is None:
        click.echo(f"{facts['identity']}: nothing was written yet, so nothing is missing on {facts['tier']}")
    else:
        number, took = _number(facts["snapshot"]), format_duration(facts["seconds"])
        click.echo(f"{facts['identity']}: snapshot {number} is on {facts['tier']} after {took}")
