"""The command that takes a step out of what is restored."""

from __future__ import annotations

import click

from fuse_tier.cli.options import JobType, node_option
from fuse_tier.cli.volumes import run_option
from fuse_tier.deadlines import Deadline


@click.command("mark-bad", short_help="Have a step not restored again.")
@click.argument("step", type=click.IntRange(min=0))
@node_option
@click.option("--job", required=True, type=JobType(), help="Whose step.")
@run_option
def mark_bad(step: int, socket: str | None, job: str, run: str) -> None:
    """Marks a step of a job as bad: at the next restart an older one is taken, on all nodes.

    Only what has been saved of that step so far: when the job comes to it again, that is another one. Its snapshots
    stay where they are; who names one still gets it.

    \b
    Example:
      fuse-tier mark-bad 1200 --job default/llama
    """
    from fuse_tier.cli.node_client import connected
    from fuse_tier.wire import control_pb2 as pb

    with connected(socket) as node:
        node.call("MarkBad", pb.MarkBadRequest(job=job, run=run, step=step), Deadline.CONTROL_CALL)
    click.echo(f"step {step} of {job} will not be restored again: the next restart takes an older one")
