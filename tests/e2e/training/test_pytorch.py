"""PyTorch in two processes on two nodes: what torch.save and torch.distributed.checkpoint write, as plain files and
against the file protocol.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.training.ranks import EVERY, RANKS, Command, goes_on_from_one_step_whatever_nodes_are_lost
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(600)]

_OPTIONS = ("--save-every", str(EVERY), "--width", "512", "--steps", "100000")


def environment(rank: int, port: int) -> dict[str, str]:
    """As torchrun writes it."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(RANKS)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


@pytest.mark.parametrize("how", ["file", "distributed"])
@pytest.mark.parametrize("asks", [False, True], ids=["plain", "file-protocol"])
async def test_a_job_of_two_processes_goes_on_from_one_step_to_the_same_bits_whatever_nodes_are_lost(
    how: str, asks: bool, make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    options = (*_OPTIONS, "--how", how, *(["--replicator"] if asks else []))
    command = Command("train_pytorch.py", options, environment)
    await goes_on_from_one_step_whatever_nodes_are_lost(command, make_cluster, tmp_path, expected_logs, in_place=asks)
