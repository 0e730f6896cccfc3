"""``fuse-tier-csi``: the CSI node plugin's command line."""

from __future__ import annotations

import re
from typing import Final

import click

from csi.services import DRIVER_NAME
from fuse_tier.cli.reporting import run_and_exit

_ENDPOINT: Final = "unix:///csi/csi.sock"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier-csi")
@click.option(
    "--config", "config_path", metavar="FILE", required=True, type=click.Path(), help="The node's node.yaml."
)
@click.option("--endpoint", metavar="unix://PATH", default=_ENDPOINT, show_default=True,
              help="Where kubelet and the sidecars call.")  # fmt: skip
@click.option("--kubelet", metavar="DIR", default="/var/lib/kubelet", show_default=True, help="Kubelet's directory.")
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option("--volume-limit", type=click.IntRange(min=0), default=100, show_default=True,
              help="Volumes that a node bears at once; 0 for no limit.")  # fmt: skip
@click.option("--metrics", metavar="HOST:PORT", default="", help="Where Prometheus reads; without it nowhere.")
@click.option("--jax-init-info", is_flag=True, help="Write jax-init-info.txt into volumes of jobs with ranks.")
def plugin(
    config_path: str,
    endpoint: str,
    kubelet: str,
    driver_name: str,
    volume_limit: int,
    metrics: str,
    jax_init_info: bool,
) -> None:
    """Serves pods' volumes to kubelet. Ends on SIGTERM; volumes that are mounted stay.

    \b
    Example:
      fuse-tier-csi --config node.yaml --endpoint unix:///csi/csi.sock
    """
    import trio

    from csi.serving import Settings, run_plugin
    from fuse_tier import logs
    from fuse_tier.config import load_node_config
    from fuse_tier.config_fields import Address
    from fuse_tier.deadlines import check_order

    place = re.fullmatch(r"unix:(?://)?(/[^/].*)", endpoint)
    if place is None:
        raise click.UsageError(f"--endpoint: {endpoint!r} is no unix socket: write unix://PATH, such as {_ENDPOINT}")
    check_order()
    config = load_node_config(config_path)
    logs.configure("csi", config.node)
    settings = Settings(
        place[1],
        kubelet.rstrip("/"),
        driver_name,
        volume_limit,
        jax_init_info,
        Address.parse(metrics) if metrics else None,
    )
    trio.run(run_plugin, config, settings)


def main() -> None:
    """Runs the plugin; ends the process with 0, 1 (failed) or 2 (bad usage or config)."""
    run_and_exit(plugin, "fuse-tier-csi")


if __name__ == "__main__":
    main()
