from __future__ import annotations

import socket
import subprocess

import pytest
import trio

from fuse_tier.localcluster.ports import free_ports
from tests.harness.outward import noticing


@pytest.mark.network
def test_a_process_and_a_tcp_port_are_noticed_whoever_asks_for_them() -> None:
    with noticing() as done:
        subprocess.run(["true"], check=True)
        trio.run(trio.run_process, ["true"])
        with socket.create_server(("127.0.0.1", 0)):
            pass
    assert done == ["starts true", "starts true", "listens on a TCP port"]


def test_a_unix_socket_and_a_port_that_nobody_listens_on_are_not() -> None:
    with noticing() as done:
        near, far = socket.socketpair()
        near.close()
        far.close()
        free_ports(2)
    assert done == []


@pytest.mark.network
def test_what_comes_after_is_not_noticed_either() -> None:
    with noticing() as done:
        pass
    subprocess.run(["true"], check=True)
    assert done == []
