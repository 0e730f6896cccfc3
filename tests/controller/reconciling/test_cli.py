"""Each flag of the controller, from the command line to what it changes."""

from __future__ import annotations

from typing import Any

import click
import pytest

from controller.driver.containers import Settings
from controller.driver.manifests import config_map, daemonset
from controller.election import Times
from controller.reconciling.cli import controller, serving_of
from controller.reconciling.server import Serving
from fuse_tier.config import Address
from fuse_tier.errors import ConfigError
from tests.controller.configurations import IMAGES, SETTINGS, configuration

ANYWHERE = "0.0.0.0"  # noqa: S104 - the default, which kubelet asks


def serving(*arguments: str) -> Serving:
    return serving_of(controller.make_context("fuse-tier-controller", list(arguments)).params)


def test_without_flags_it_is_what_the_manifests_of_the_system_replaced_expect() -> None:
    found = serving()
    assert found.task.settings == SETTINGS
    assert found.task.images == "checkpoint-image-config"
    assert (found.calls_per_second, found.lease_namespace, found.times) == (150, "", Times(15, 10, 5))
    assert (found.health, found.metrics, found.uptime_backoff) == (Address(ANYWHERE, 22060), None, None)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--managed-namespace=x"], "task.settings.namespace", "x"),
        (["--csi-service-account-name", "x"], "task.settings.service_account", "x"),
        (["--image-configmap-name=x"], "task.images", "x"),
        (["--local-deploy"], "task.settings.pull_policy", "Always"),
        (["--local-deploy=false"], "task.settings.pull_policy", "IfNotPresent"),
        (["--http-endpoint=127.0.0.1:1"], "health", Address("127.0.0.1", 1)),
        (["--driver-name=x"], "task.settings.driver_name", "x"),
        (["--replication-worker-debug-backup=true"], "task.settings.backs_up_odd_steps", True),
        (["--ranks-server-port=1"], "task.settings.ranks_port", 1),
        ([], "coordinator", "high-scale-checkpointing-controller.gke-managed-checkpointing.svc:19346"),
        (["--ranks-server-address=127.0.0.1:7"], "coordinator", "127.0.0.1:7"),
        (["--enable-uptime-controller"], "uptime_backoff", 300.0),
        (["--enable-uptime-controller=true", "--uptime-controller-backoff=90s"], "uptime_backoff", 90.0),
        (["--uptime-controller-backoff=90s"], "uptime_backoff", None),
        (["--leader-election"], "lease_namespace", "gke-managed-checkpointing"),
        (["--leader-election=true", "--leader-election-namespace=x"], "lease_namespace", "x"),
        (["--leader-election-lease-duration=1m"], "times", Times(60, 10, 5)),
        (["--leader-election-renew-deadline=14s"], "times", Times(15, 14, 5)),
        (["--leader-election-retry-period=1500ms"], "times", Times(15, 10, 1.5)),
        (["--metrics-address=:22061"], "metrics", Address(ANYWHERE, 22061)),
        (["--k8s-api-qps=7"], "calls_per_second", 7),
    ],
)
def test_a_flag_changes_what_it_says(arguments: list[str], field: str, value: object) -> None:
    found: Any = serving(*arguments)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def test_every_flag_is_tried_above_or_where_it_is_used() -> None:
    (mark,) = [one for one in test_a_flag_changes_what_it_says.pytestmark if one.name == "parametrize"]  # type: ignore[attr-defined]
    tried = {argument.partition("=")[0] for case in mark.args[1] for argument in case[0]}
    flags = {name for one in controller.params for name in one.opts if name.startswith("--")}
    assert flags - tried == {"--kubeconfig-path", "--version"}, "test_controller.py starts the program with it"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--leader-election-retry-period=11s"], "each must be longer than the last"),
        (["--uptime-controller-backoff=soon"], "--uptime-controller-backoff: "),
        (["--http-endpoint=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_names_the_flag(arguments: list[str], said: str) -> None:
    with pytest.raises((ConfigError, click.ClickException), match=said):
        serving(*arguments)


def test_pods_are_made_with_what_the_flags_say() -> None:
    settings = Settings("x", "y", "driver", 7, "Always", backs_up_odd_steps=True)
    made = daemonset(configuration(backup={"steps": 100}), IMAGES, settings)
    pod = made["spec"]["template"]["spec"]
    assert made["metadata"]["namespace"] == "x"
    assert pod["serviceAccountName"] == "y"
    assert {one["imagePullPolicy"] for one in pod["containers"]} == {"Always"}
    assert "--driver-name=driver" in str(pod["containers"])
    told = config_map(configuration(backup={"steps": 100}), settings)["data"]["node.yaml"]
    assert "steps: odd" in told
    assert "coordinator: high-scale-checkpointing-controller.x.svc:7" in told
