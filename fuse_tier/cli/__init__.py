"""The command line. ``main`` is what ``fuse-tier`` and ``python -m fuse_tier.cli`` run.

What is heavy (gRPC, trio, rich, the parts of a node) is imported by the command that needs it, so that asking a node
something takes no longer than it must.
"""

from __future__ import annotations

import click

from fuse_tier.cli.asking import list_snapshots, show, status, verify
from fuse_tier.cli.examining import doctor
from fuse_tier.cli.exporting import export
from fuse_tier.cli.marking import mark_bad
from fuse_tier.cli.planning import plan
from fuse_tier.cli.pruning import prune
from fuse_tier.cli.reporting import run_and_exit
from fuse_tier.cli.restoring import restore
from fuse_tier.cli.running import bench, coordinator, demo, node
from fuse_tier.cli.tls import tls
from fuse_tier.cli.volumes import mount, unmount, wait


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier")
def commands() -> None:
    """Checkpoint storage at the speed of RAM: plain files, copied to peers' RAM and to a bucket.

    \b
    Try it:       fuse-tier demo
    Run a node:   fuse-tier node --config node.yaml
    Use it:       fuse-tier mount --identity default/llama/0 /ckpt
    Look at it:   fuse-tier status
    """


for _command in (
    demo, node, coordinator, mount, unmount, status, list_snapshots, show, wait, restore, export, plan, mark_bad,
    prune, verify, doctor, bench, tls,
):  # fmt: skip
    commands.add_command(_command)


def main() -> None:
    """Runs the command that was given; ends the process with its status: 0, 1 (failed), 2 (bad usage or config)."""
    run_and_exit(commands)
