"""The command that gives up in the bucket what was superseded, now rather than by and by."""

from __future__ import annotations

from typing import Any

import click

from fuse_tier.cli.options import json_option, node_option, print_json
from fuse_tier.cli.reporting import say_error
from fuse_tier.deadlines import Deadline
from fuse_tier.quantities import format_count, format_duration, format_size


@click.command(short_help="Give up old checkpoints in the bucket.")
@node_option
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@json_option
def prune(socket: str | None, dry_run: bool, as_json: bool) -> None:
    """Gives up in the bucket what `keep` in the node's configuration says, and collects what that leaves.

    A node does so by itself; this does it at once. The newest complete checkpoint always stays, and so does what is
    being restored. What the bucket protects (holds, retention policies) is told and left alone; so is soft delete.

    \b
    Example:
      fuse-tier prune --dry-run
    """
    from fuse_tier.cli.node_client import connected, facts_of
    from fuse_tier.cli.progress import watch
    from fuse_tier.cli.rendering import print_out
    from fuse_tier.cli.reports import prune_view
    from fuse_tier.wire import control_pb2 as pb

    with connected(socket) as node:
        facts = facts_of(watch(node.steps("Prune", pb.PruneRequest(dry_run=dry_run), Deadline.VERIFY)))
    if as_json:
        print_json(facts)
        return
    if facts["jobs"]:
        print_out(prune_view(facts))
    for line in _summary(facts):
        click.echo(line)
    for protected in facts["protected"]:
        say_error(f"{protected['object']} stays, because the bucket protects it: {protected['reason']}")


def _summary(facts: dict[str, Any]) -> list[str]:
    would = "would be " if facts["dry_run"] else ""
    dropped = sum(len(job["drop_snapshots"]) for job in facts["jobs"])
    lines = [f"{facts['place']}: {format_count(dropped, 'snapshot')} {would}given up"]
    if facts["freed_later_bytes"]:
        grace = format_duration(facts["grace_seconds"])
        lines[0] += f", of which {format_size(facts['freed_later_bytes'])} {would}freed in {grace}"
    garbage = format_count(facts["garbage_objects"], "object")
    lines.append(f"{format_size(facts['freed_bytes'])} in {garbage} that no snapshot names {would}freed now")
    if facts["soft_delete_seconds"]:
        kept = format_duration(facts["soft_delete_seconds"])
        lines.append(f"soft delete: the bucket keeps what is deleted, unseen and paid for, for {kept}")
    return lines
