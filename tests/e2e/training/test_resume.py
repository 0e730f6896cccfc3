"""A job that is killed in the middle of a save, and loses its node, ends with the bits of one that went through."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.jobs import A_NODE_DIED, JOB, mount_when_free, without_a_copy
from tests.e2e.training.programs import Program, run_to_the_end, running
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(300)]

ORBAX = Program(
    "train_orbax.py",
    prefix="",
    unfinished_suffix=".orbax-checkpoint-tmp",
    remarks=r"WARNING:absl:(Attempted to create temporary directory|Waiting for previous save to complete) .*",
)
SAFETENSORS = Program("train_safetensors.py", prefix="step_", unfinished_suffix=".tmp")
LAST_STEP = 12


@pytest.mark.parametrize("program", [ORBAX, SAFETENSORS], ids=["orbax", "safetensors"])
async def test_a_run_that_lost_its_node_ends_with_the_parameters_of_one_that_did_not(
    program: Program, make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    uninterrupted = await run_to_the_end(program, tmp_path / "plain", tmp_path / "uninterrupted.txt")
    cluster = await make_cluster("a", "b", "c", bucket=False, ram_size="2GiB")
    first, mount = cluster["a"], cluster.mountpoint("a")
    await first.mount(JOB, mount)

    async def make_durable() -> None:
        await first.wait(JOB, "peer", 60)

    async with running(program, mount, tmp_path / "killed.txt") as training:
        durable = await training.kill_in_the_middle_of_a_save(make_durable)
    assert program.complete(mount)[-1] == durable
    assert program.unfinished(mount)
    expected_logs.allow(*A_NODE_DIED)
    await first.lose_ram()

    second, mount = await without_a_copy(cluster, "b", "c"), cluster.mountpoint("again")
    assert "peer" in str((await mount_when_free(second, mount))["restored"])
    assert program.complete(mount)[-1] == durable
    resumed = await run_to_the_end(program, mount, tmp_path / "resumed.txt")
    assert 0 < durable < LAST_STEP
    assert resumed.start == durable
    assert resumed.digest == uninterrupted.digest

    saved = await run_to_the_end(program, mount, tmp_path / "saved.txt")
    assert saved.start == LAST_STEP
    assert saved.digest == uninterrupted.digest
    assert {run.complaints for run in (uninterrupted, resumed, saved)} == {()}
