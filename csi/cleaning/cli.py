"""``fuse-tier-clean``: what the controller runs on the nodes of a configuration that is being removed."""

from __future__ import annotations

import click

from csi.services import DRIVER_NAME
from fuse_tier.cli.reporting import run_and_exit


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier-clean")
@click.option("--socket", metavar="PATH", default="/run/fuse-tier/node.sock", show_default=True, help="The node's.")
@click.option("--ram", metavar="DIR", default="/var/lib/fuse-tier/ram", show_default=True, help="The RAM tier.")
@click.option("--kubelet", metavar="DIR", default="/var/lib/kubelet", show_default=True, help="Kubelet's directory.")
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option("--told", metavar="FILE", default="", help="Made when nothing is left; then it waits to be ended.")
def cleaner(socket: str, ram: str, kubelet: str, driver_name: str, told: str) -> None:
    """Takes away what a removed driver has left on this node, as soon as nobody uses it any more.

    \b
    Example, as root on a node:
      fuse-tier-clean
    """
    import trio

    from csi.cleaning.node import Places
    from csi.cleaning.waiting import run_cleaner
    from fuse_tier import logs

    logs.configure("cleaner", "")
    endpoint = f"{kubelet.rstrip('/')}/plugins/{driver_name}/csi.sock"
    trio.run(run_cleaner, Places(socket, ram.rstrip("/"), endpoint, kubelet.rstrip("/")), told)


def main() -> None:
    """Runs it; ends the process with 0, 1 (failed) or 2 (bad usage)."""
    run_and_exit(cleaner, "fuse-tier-clean")


if __name__ == "__main__":
    main()
