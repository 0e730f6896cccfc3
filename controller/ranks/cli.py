"""``fuse-tier-ranks``: the ranks and coordinator server's command line."""

from __future__ import annotations

import click

from csi.services import DRIVER_NAME
from fuse_tier.cli.reporting import run_and_exit


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier-ranks")
@click.option("--config", "config_path", metavar="FILE", required=True, type=click.Path(), help="coordinator.yaml.")
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option("--kubeconfig-path", metavar="FILE", default="", help="Without it: the pod's own service account.")
def ranks(config_path: str, driver_name: str, kubeconfig_path: str) -> None:
    """Serves nodes: which pod has which rank of its job, who is alive, who holds what. Ends on SIGTERM.

    \b
    Example:
      fuse-tier-ranks --config coordinator.yaml
    """
    import trio

    from controller.ranks.server import run_ranks_server
    from controller.watching import connect
    from fuse_tier import logs
    from fuse_tier.config import load_coordinator_config
    from fuse_tier.deadlines import check_order

    check_order()
    config = load_coordinator_config(config_path)
    logs.configure("ranks", "")
    with connect(kubeconfig_path) as api:
        trio.run(run_ranks_server, api, driver_name, config)


def main() -> None:
    """Runs the server; ends the process with 0, 1 (failed) or 2 (bad usage or config)."""
    run_and_exit(ranks, "fuse-tier-ranks")


if __name__ == "__main__":
    main()
