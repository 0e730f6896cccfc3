"""The command that looks at all that a node needs, and says how to mend what is not as it should be."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from fuse_tier.cli.options import endpoint_option, json_option, print_json


@click.command(short_help="See what is wrong, and how to mend it.")
@click.option("--config", "config_path", metavar="FILE", type=click.Path(), help="Of the node, running or not.")
@click.option("--bucket", metavar="gs://BUCKET[/PREFIX]", help="Look at this bucket, rather than the node's.")
@click.option("--abort-stuck", is_flag=True, help="End mounts of ours on which nobody answers.")
@endpoint_option
@json_option
def doctor(
    config_path: str | None, bucket: str | None, abort_stuck: bool, endpoint: str | None, as_json: bool
) -> int:
    """Looks at this machine (/dev/fuse, the kernel's passthrough, mounts that hang, the clock), and at what a node's
    configuration names: certificates, the coordinator, peers, and the bucket, in which an object is written, read,
    marked and deleted.

    The exit status is 1 when something does not work.

    \b
    Example:
      fuse-tier doctor --config node.yaml
    """
    import trio

    from fuse_tier.cli.rendering import print_out
    from fuse_tier.cli.reports import findings_view
    from fuse_tier.config import BucketConfig, load_node_config
    from fuse_tier.doctor import State, examine

    if endpoint and not bucket:
        raise click.UsageError("--endpoint goes with --bucket")
    if abort_stuck and not config_path:
        raise click.UsageError("--abort-stuck goes with --config: mounts of that node are ended, and no others")
    config = load_node_config(config_path) if config_path else None
    other = BucketConfig(url=bucket, endpoint=endpoint) if bucket else None
    found = trio.run(partial(examine, config, other, abort_stuck=abort_stuck))
    failed = sum(finding.state is State.FAILED for finding in found)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(finding) for finding in found]})
    else:
        print_out(findings_view([asdict(finding) for finding in found]))
    return 1 if failed else 0
