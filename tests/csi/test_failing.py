"""What the plugin makes of a machine on which something is not as it should be, without one of ours to ask."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from csi.cli import plugin
from csi.driver import Driver
from csi.health import Health
from csi.records import Publication, Records
from csi.refusals import unfit
from csi.services import DRIVER_NAME
from csi.serving import Settings, run_plugin
from csi.stats import Usage, stats_of
from fuse_tier.config import NodeConfig
from fuse_tier.deadlines import Deadline
from fuse_tier.errors import ConfigError
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import Domain
from tests.harness.logs import ExpectedLogs


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    control, bulk, coordinator = free_ports(3)
    return NodeConfig.model_validate(
        {
            "node": "a",
            "ram": {"path": str(tmp_path / "gone"), "size": "1MiB"},
            "socket": str(tmp_path / "node.sock"),
            "listen": {"control": f"127.0.0.1:{control}", "bulk": f"127.0.0.1:{bulk}"},
            "coordinator": f"127.0.0.1:{coordinator}",
            "domain": {"zone": "here"},
        }
    )


async def test_statistics_of_a_volume_whose_ram_tier_is_gone_say_that_it_is_unwell(
    config: NodeConfig, tmp_path: Path
) -> None:
    driver, records = Driver(config), Records(str(tmp_path / "published"))
    target = str(tmp_path / "mount")
    records.write(Publication("v", target, "default", "llama-0", "uid", "default/llama/0", read_only=False))
    stats = await stats_of("v", target, driver, records, Health(driver, records))
    assert stats.bytes == stats.inodes == Usage(0, 0, 0)
    assert "is not mounted: delete pod default/llama-0" in stats.trouble


@pytest.mark.parametrize(
    ("number", "status", "remedy"),
    [
        (errno.ENOSPC, grpc.StatusCode.RESOURCE_EXHAUSTED, "`fuse-tier status`"),
        (errno.EIO, grpc.StatusCode.INTERNAL, "the log of the fuse container"),
    ],
)
def test_a_volume_that_takes_no_file_of_ours_is_told_from_one_that_is_full(
    number: int, status: grpc.StatusCode, remedy: str
) -> None:
    refusal = unfit("/mount cannot be made ready", OSError(number, os.strerror(number)))
    assert refusal.status is status
    assert os.strerror(number) in str(refusal) and remedy in str(refusal)


async def test_a_directory_of_kubelets_that_is_a_symlink_is_refused_at_the_start(
    config: NodeConfig, tmp_path: Path
) -> None:
    (tmp_path / "kubelet").mkdir()
    link = tmp_path / "link"
    link.symlink_to("kubelet")
    settings = Settings(str(tmp_path / "csi.sock"), str(link), DRIVER_NAME, 100, jax_init_info=False)
    with pytest.raises(ConfigError, match=rf"leads to {tmp_path / 'kubelet'} by a symlink: bind-mount it there"):
        await run_plugin(config, settings)


async def test_a_node_whose_labels_cannot_be_learned_is_registered_as_configured_and_says_so(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("topology.unknown")
    monkeypatch.setattr(Deadline, "TOPOLOGY", 0.2)
    assert await Driver(config).domain() == Domain(zone="here")
    assert [line.event for line in expected_logs.heard] == ["topology.unknown"]


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "/csi/csi.sock", "unix:csi.sock", "unix://csi.sock"])
def test_an_endpoint_that_is_no_unix_socket_is_refused_with_one_that_is(endpoint: str) -> None:
    done = CliRunner().invoke(plugin, ["--config", "node.yaml", "--endpoint", endpoint])
    assert done.exit_code == 2
    assert f"{endpoint!r} is no unix socket: write unix://PATH, such as unix:///csi/csi.sock" in done.stderr
