"""``fuse-tier-ranks``: what its flags come to."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from controller.ranks import cli
from controller.ranks.server import Serving
from fuse_tier.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "coordinator.yaml"
    path.write_text("listen: 127.0.0.1:19346\n")
    return str(path)


def serving(config: str, *arguments: str) -> Serving:
    context = cli.ranks.make_context("fuse-tier-ranks", ["--config", config, *arguments])
    flags = dict(context.params)
    return cli.serving_of(flags.pop("config_path"), flags)


def test_alone_it_asks_for_no_lease(config: str) -> None:
    found = serving(config)
    assert found.namespace == ""
    assert str(found.config.listen) == "127.0.0.1:19346"


def test_one_of_several_has_the_name_of_its_pod(config: str) -> None:
    found = serving(config, "--leader-election")
    assert (found.namespace, found.pod) == ("gke-managed-checkpointing", socket.gethostname())
    found = serving(config, "--leader-election=true", "--namespace=here", "--pod-name=ranks-1")
    assert (found.namespace, found.pod) == ("here", "ranks-1")


def test_port_and_rate_are_flags_as_in_the_system_replaced(config: str) -> None:
    found = serving(config, "--ranks-server-port=1234", "--k8s-api-qps=7")
    assert (str(found.config.listen), found.calls_per_second) == ("127.0.0.1:1234", 7)


def test_a_file_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        serving(str(tmp_path / "nowhere"))


def test_a_port_that_is_none_is_refused() -> None:
    found = CliRunner().invoke(cli.ranks, ["--config", "x", "--ranks-server-port=0"])
    assert found.exit_code == 2
    assert "--ranks-server-port" in found.output
