"""Commands that run something here until it ends: node, coordinator, demo, bench."""

from __future__ import annotations

from pathlib import Path

import click

from fuse_tier.cli.options import config_option, json_option


@click.command(short_help="Run a node.")
@config_option
@click.option(
    "--part",
    type=click.Choice(("supervisor", "worker")),
    help="Run this alone, where the parts of a node are containers; mounts outlive it. [default: all of it]",
)
def node(config_path: str, part: str | None) -> None:
    """Runs a node: its RAM tier, replication, mounts. Ends in order on SIGTERM.

    \b
    Example:
      fuse-tier node --config node.yaml
    """
    import trio

    from fuse_tier import logs
    from fuse_tier.config import load_node_config
    from fuse_tier.deadlines import check_order
    from fuse_tier.node.parts import run_supervisor_part, run_worker_part
    from fuse_tier.node.supervisor import run_node

    check_order()
    config = load_node_config(config_path)
    logs.configure("supervisor", config.node)
    if part == "supervisor":
        trio.run(run_supervisor_part, config)
    elif part == "worker":
        trio.run(run_worker_part, config, config_path)
    else:
        trio.run(run_node, config, config_path)


@click.command(short_help="Run the coordinator.")
@config_option
def coordinator(config_path: str) -> None:
    """Runs the coordinator: it knows all nodes and what they hold. Ends on SIGTERM.

    \b
    Example:
      fuse-tier coordinator --config coordinator.yaml
    """
    import trio

    from fuse_tier import logs
    from fuse_tier.config import load_coordinator_config
    from fuse_tier.coordinate.server import collect_seldom, run_coordinator
    from fuse_tier.deadlines import check_order

    check_order()
    config = load_coordinator_config(config_path)
    logs.configure("coordinator", "")
    collect_seldom()
    trio.run(run_coordinator, config)


@click.command(short_help="Show it all on this machine.")
@json_option
def demo(as_json: bool) -> int:
    """Shows it all on this machine: three nodes, a coordinator, an emulated bucket.

    Writes a checkpoint, shows it sealed, copied and backed up, loses a node's RAM, restores from a peer and then from
    the bucket, verifies every byte, and cleans up.

    \b
    Example:
      fuse-tier demo
    """
    from functools import partial

    import trio
    from rich.console import Console

    from fuse_tier.demo import run_demo

    return trio.run(partial(run_demo, Console(stderr=as_json), json=as_json))


@click.command(short_help="Measure it on this machine.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "json_file", metavar="FILE", type=click.Path(), help="Also write the rows there.")
def bench(names: tuple[str, ...], json_file: str | None) -> None:
    """Measures this machine and fuse-tier on it, side by side; all rows, or those named.

    \b
    Example:
      fuse-tier bench fs.write.seq1 peer.snapshot --json bench.json
    """
    from fuse_tier import logs
    from fuse_tier.bench import run_bench

    logs.configure("bench", "")
    run_bench(names, Path(json_file) if json_file else None)
