"""``fuse-tier-controller``: the controller's command line. Flags and defaults are those of the system replaced."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from controller.driver.names import IMAGES_CONFIG_MAP
from csi.services import DRIVER_NAME
from fuse_tier.cli.reporting import run_and_exit

if TYPE_CHECKING:
    from controller.reconciling.server import Serving
    from fuse_tier.config import Address

Command = TypeVar("Command", bound=Callable[..., object])


def _seconds(_context: click.Context, parameter: click.Parameter, value: str) -> float:
    from fuse_tier.errors import ConfigError
    from fuse_tier.quantities import parse_duration

    try:
        return parse_duration(value)
    except ConfigError as error:
        raise ConfigError(f"--{parameter.human_readable_name.replace('_', '-')}: {error}") from None


def _switch(name: str, text: str) -> Callable[[Command], Command]:
    """Given alone, or with ``=true`` or ``=false``."""
    return click.option(name, is_flag=False, flag_value=True, type=bool, default=False, help=text)


def _duration(name: str, default: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, default=default, show_default=True, metavar="TIME", callback=_seconds, help=text)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="fuse-tier", prog_name="fuse-tier-controller")
@click.option("--managed-namespace", default="gke-managed-checkpointing", show_default=True,
              help="Where all is made.")  # fmt: skip
@click.option("--csi-service-account-name", default="gke-checkpointing-multitier-node", show_default=True,
              help="Of the driver's pods.")  # fmt: skip
@click.option("--image-configmap-name", default=IMAGES_CONFIG_MAP, show_default=True,
              help="Config map that names the images.")  # fmt: skip
@click.option("--driver-name", default=DRIVER_NAME, show_default=True, help="As the CSIDriver object has it.")
@click.option("--ranks-server-port", type=click.IntRange(1, 65535), default=19346, show_default=True,
              help="Of the ranks server's service.")  # fmt: skip
@click.option("--ranks-server-address", default="", metavar="HOST:PORT",
              help="Where the ranks server is asked how nodes are used.  [default: its service]")  # fmt: skip
@_switch("--local-deploy", "Pull images whenever a container starts.")
@_switch("--replication-worker-debug-backup", "Back up each odd step, whatever configurations say.")
@_switch("--enable-uptime-controller", "Delete driver pods that were not ready for five minutes.")
@_duration("--uptime-controller-backoff", "5m", "Between two such pods.")
@click.option("--http-endpoint", default=":22060", show_default=True, metavar="[HOST]:PORT",
              help="Where /healthz and /readyz are answered.")  # fmt: skip
@click.option(
    "--metrics-address", default="", metavar="[HOST]:PORT", help="Where Prometheus reads; without it nowhere."
)
@_switch("--leader-election", "Act only while holding a lease: for more than one replica.")
@click.option(
    "--leader-election-namespace", default="", metavar="NAME", help="Of the lease.  [default: the managed one]"
)
@_duration("--leader-election-lease-duration", "15s", "After so long without a renewal another replica takes over.")
@_duration("--leader-election-renew-deadline", "10s", "After so long without a renewal it stops acting.")
@_duration("--leader-election-retry-period", "5s", "How often it is renewed, or tried.")
@click.option("--kubeconfig-path", metavar="FILE", default="", help="Without it: the pod's own service account.")
@click.option("--k8s-api-qps", type=click.FloatRange(min=1), default=150, show_default=True,
              help="Calls of the API server a second, at most.")  # fmt: skip
def controller(**flags: Any) -> None:
    """Makes daemonsets of CheckpointConfigurations, and says how they are. Ends on SIGTERM.

    \b
    Example:
      fuse-tier-controller --kubeconfig-path ~/.kube/config
    """
    import trio

    from controller.reconciling.server import run_controller
    from controller.watching import connect
    from fuse_tier import logs

    serving = serving_of(flags)
    logs.configure("controller", "")
    with connect(flags["kubeconfig_path"], "fuse-tier-controller") as api:
        trio.run(run_controller, api, serving)


def serving_of(flags: Mapping[str, Any]) -> Serving:
    """What the flags say, by their names. Raises ConfigError."""
    from controller.driver.containers import Settings
    from controller.election import Times
    from controller.reconciling.reconciler import Task
    from controller.reconciling.server import Serving
    from fuse_tier.errors import ConfigError

    times = Times(
        *(flags[f"leader_election_{name}"] for name in ("lease_duration", "renew_deadline", "retry_period"))
    )
    if not times.retry < times.renew_deadline < times.lease:
        raise ConfigError(
            "--leader-election-retry-period, -renew-deadline, -lease-duration: each must be longer than the last"
        )
    namespace = flags["managed_namespace"]
    settings = Settings(
        namespace,
        flags["csi_service_account_name"],
        flags["driver_name"],
        flags["ranks_server_port"],
        "Always" if flags["local_deploy"] else "IfNotPresent",
        flags["replication_worker_debug_backup"],
    )
    return Serving(
        Task(settings, flags["image_configmap_name"], socket.gethostname()),
        flags["k8s_api_qps"],
        (flags["leader_election_namespace"] or namespace) if flags["leader_election"] else "",
        times,
        _address(flags["http_endpoint"]),
        _address(flags["metrics_address"]),
        flags["uptime_controller_backoff"] if flags["enable_uptime_controller"] else None,
        coordinator=flags["ranks_server_address"] or settings.coordinator,
    )


def _address(text: str) -> Address | None:
    from fuse_tier.config import Address

    return Address.parse(f"0.0.0.0{text}" if text.startswith(":") else text) if text else None  # noqa: S104 - kubelet asks


def main() -> None:
    """Runs the controller; ends the process with 0, 1 (failed) or 2 (bad usage or config)."""
    run_and_exit(controller, "fuse-tier-controller")


if __name__ == "__main__":
    main()
