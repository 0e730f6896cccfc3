"""Orbax's ReplicatorCheckpointManager, in two JAX processes on two nodes, against the file protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.training.ranks import EVERY, RANKS, Command, goes_on_from_one_step_whatever_nodes_are_lost
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(600)]

# How many processes there are JAX asks the cluster; of those that it knows, Slurm's answer is a few variables.
_SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": str(len(RANKS)),
    "SLURM_LOCALID": "0",
}
_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} | _SLURM
ORBAX = Command(
    "train_replicator.py",
    ("--save-every", str(EVERY), "--backup-every", str(EVERY), "--width", "256", "--steps", "100000"),
    lambda rank, port: _ENVIRONMENT | {"SLURM_PROCID": str(rank)},
)


async def test_a_job_of_two_processes_goes_on_from_one_step_to_the_same_bits_whatever_nodes_are_lost(
    make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    await goes_on_from_one_step_whatever_nodes_are_lost(ORBAX, make_cluster, tmp_path, expected_logs, in_place=True)
