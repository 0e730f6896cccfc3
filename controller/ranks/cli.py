"""``fuse-tier-ranks``: the ranks and coordinator server's command line."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from csi.services import DRIVER_NAME
from fuse_tier.cli.reporting import run_and_exit

if TYPE_CHECKING:
    from controller.ranks.server import Serving


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier-ranks")
@click.option("--config", "config_path", metavar="FILE", required=True, type=click.Path(), help="coordinator.yaml.")
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option("--namespace", default="gke-managed-checkpointing", show_default=True,
              help="Of this server's pod, and of the lease.")  # fmt: skip
@click.option("--pod-name", default="", metavar="NAME", help="Of this server's pod.  [default: the host's name]")
@click.option("--leader-election", is_flag=False, flag_value=True, type=bool, default=False,
              help="Serve only while holding a lease: for more than one replica.")  # fmt: skip
@click.option("--ranks-server-port", type=click.IntRange(1, 65535), default=None,
              help="Listen there.  [default: as coordinator.yaml says]")  # fmt: skip
@click.option("--kubeconfig-path", metavar="FILE", default="", help="Without it: the pod's own service account.")
@click.option("--k8s-api-qps", type=click.FloatRange(min=1), default=150, show_default=True,
              help="Calls of the API server a second, at most.")  # fmt: skip
def ranks(config_path: str, **flags: Any) -> None:
    """Serves nodes: which pod has which rank of its job, who is alive, who holds what. Ends on SIGTERM.

    \b
    Example:
      fuse-tier-ranks --config coordinator.yaml
    """
    import trio

    from controller.ranks.server import run_ranks_server
    from controller.watching import connect
    from fuse_tier import logs
    from fuse_tier.coordinate.server import collect_seldom
    from fuse_tier.deadlines import check_order

    check_order()
    serving = serving_of(config_path, flags)
    logs.configure("ranks", "")
    collect_seldom()
    with connect(flags["kubeconfig_path"], "fuse-tier-ranks") as api:
        trio.run(run_ranks_server, api, serving)


def serving_of(config_path: str, flags: Mapping[str, Any]) -> Serving:
    """What the file and the flags say, by their names. Raises ConfigError."""
    from controller.ranks.server import Serving
    from fuse_tier.config import Address, load_coordinator_config

    config = load_coordinator_config(config_path)
    if flags["ranks_server_port"] is not None:
        listen = Address(config.listen.host, flags["ranks_server_port"])
        config = config.model_copy(update={"listen": listen})
    return Serving(
        flags["driver_name"],
        config,
        flags["namespace"] if flags["leader_election"] else "",
        flags["pod_name"] or socket.gethostname(),
        flags["k8s_api_qps"],
    )


def main() -> None:
    """Runs the server; ends the process with 0, 1 (failed) or 2 (bad usage or config)."""
    run_and_exit(ranks, "fuse-tier-ranks")


if __name__ == "__main__":
    main()
