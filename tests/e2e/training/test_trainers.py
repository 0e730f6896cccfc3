"""Trainers that save by themselves, Lightning's and Hugging Face's, in processes that lose a node, and then all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.training.ranks import EVERY, RANKS, Command, goes_on_from_one_step_whatever_nodes_are_lost
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [
    pytest.mark.fuse, pytest.mark.root, pytest.mark.slow, pytest.mark.trainers, pytest.mark.timeout(600)
]  # fmt: skip

_OPTIONS = ("--save-every", str(EVERY), "--width", "256", "--steps", "90000")


def environment(rank: int, port: int) -> dict[str, str]:
    """As torchrun writes it on a node with one process; nothing is asked of any hub."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "GROUP_RANK": str(rank),
        "WORLD_SIZE": str(len(RANKS)),
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "llama",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.parametrize("script", ["train_lightning.py", "train_transformers.py"])
async def test_a_trainer_goes_on_from_its_newest_whole_checkpoint_to_the_same_bits_whatever_nodes_are_lost(
    script: str, make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    command = Command(script, _OPTIONS, environment, alike=True)
    await goes_on_from_one_step_whatever_nodes_are_lost(
        command, make_cluster, tmp_path, expected_logs, in_place=False
    )
