"""Trainers that save by themselves, Lightning's and Hugging Face's, in processes that lose a node, and then all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.e2e.training.ranks import EVERY, EXAMPLES, RANKS, Command, goes_on_from_one_step_whatever_nodes_are_lost
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [
    pytest.mark.fuse, pytest.mark.root, pytest.mark.slow, pytest.mark.trainers, pytest.mark.timeout(600)
]  # fmt: skip

_OPTIONS = ("--save-every", str(EVERY), "--width", "256", "--steps", "90000")

# Runs the example, and dies in its second save when the weights are written and the optimizer is not.
_CUT = """
import os, sys
import transformers
import train_transformers
saved = []
def cut(self, directory):
    saved.append(directory)
    return os._exit(9) if len(saved) == 2 else whole(self, directory)
whole = transformers.Trainer._save_optimizer_and_scheduler
transformers.Trainer._save_optimizer_and_scheduler = cut
train_transformers.main()
"""


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


async def test_what_a_crash_has_cut_has_no_name_of_a_step(tmp_path: Path) -> None:
    options = (str(tmp_path), "--width", "16", "--save-every", "2", "--steps", "6")

    async def run(*program: str) -> subprocess.CompletedProcess[bytes]:
        alone = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(EXAMPLES), "PATH": ""}
        return await trio.run_process(
            [sys.executable, *program, *options], env=alone, check=False, capture_stdout=True, capture_stderr=True
        )

    cut = await run("-c", _CUT)
    assert cut.returncode == 9, cut.stderr.decode()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    again = await run(str(EXAMPLES / "train_transformers.py"))
    assert again.stdout.startswith(b"start at step 2\n"), again.stderr.decode()
    assert sorted(path.name for path in tmp_path.glob("*")) == ["checkpoint-4", "checkpoint-6", "unfinished"]
    for path in tmp_path.glob("checkpoint-*"):
        assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= {file.name for file in path.iterdir()}
