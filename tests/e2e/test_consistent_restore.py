"""A job of several ranks goes on from one step, whoever was ahead, and whatever was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from fuse_tier.errors import NotFound, RunMismatch
from fuse_tier.localcluster import LocalCluster, LocalNode
from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

JOB = "default/llama"
RANKS = 3


def save(mount: Path, rank: int, step: int, name: str = "{}") -> None:
    """As jobs save: under another name, and renamed when it is whole."""
    temporary = mount / f"{step}.tmp"
    temporary.mkdir()
    (temporary / "weights").write_bytes(f"rank {rank}, step {step}\n".encode() * 1000)
    temporary.rename(mount / name.format(step))


def steps_in(mount: Path) -> list[int]:
    return sorted(int(path.name) for path in mount.iterdir())


async def mount_rank(node: LocalNode, cluster: LocalCluster, rank: int, **request: Any) -> Path:
    mount = cluster.mountpoint(f"{node.name}-rank{rank}")
    await mount_when_free(node, mount, f"{JOB}/{rank}", world_size=RANKS, **request)
    return mount


async def wait_until_copied(node: LocalNode, rank: int) -> None:
    await node.wait(f"{JOB}/{rank}", "peer", 60)


async def test_a_survivor_that_is_ahead_goes_back_to_the_step_that_all_ranks_have(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    expected_logs.allow(*A_NODE_DIED, r"restart\.set_aside")
    cluster = await make_cluster("a", "b", "c", "d", bucket=False, settle="50ms", keep={"ram": 3})
    nodes = [cluster["a"], cluster["b"], cluster["c"]]
    mounts = [await mount_rank(node, cluster, rank) for rank, node in enumerate(nodes)]
    for step in (100, 200):
        for rank, (node, mount) in enumerate(zip(nodes, mounts, strict=True)):
            save(mount, rank, step)
            await wait_until_copied(node, rank)
    # Two are ahead, and say so to their peers, too; the third dies before it has saved the step.
    for rank in (0, 1):
        save(mounts[rank], rank, 300)
        await wait_until_copied(nodes[rank], rank)
    await nodes[2].lose_ram()
    for rank in (0, 1):
        await nodes[rank].unmount(mounts[rank])

    mounts = [await mount_rank(node, cluster, rank) for rank, node in enumerate((nodes[0], nodes[1], cluster["d"]))]
    assert [steps_in(mount) for mount in mounts] == [[100, 200]] * RANKS
    for rank, mount in enumerate(mounts):
        assert (mount / "200/weights").read_text().startswith(f"rank {rank}, step 200\n")

    # The coordinator's log says what people and dashboards look for.
    assert cluster.coordinator is not None
    said = cluster.coordinator.family.log.read_text
    assert [json.loads(line)["step"] for line in said().splitlines() if "coordinator.job_resumed" in line] == [200]

    async def is_told() -> bool:
        return "All files were replicated globally for step 200" in said()

    await until(is_told)

    async def aside() -> list[tuple[str, int]]:
        shown = json.loads((await nodes[0].cli("ls", "--json")).stdout)
        return sorted((fact["id"].rpartition("@")[0], fact["step"]) for fact in shown if fact["set_aside"])

    async def is_listed() -> bool:
        found = await aside()
        return {(f"{JOB}/0", 300), (f"{JOB}/1", 300)} <= set(found)

    await until(is_listed)
    shown = (await nodes[0].cli("ls")).stdout
    assert "300, also 200, 100 (set aside)" in shown

    # A person says that the step is bad; what is set aside can still be had by name.
    nodes = [nodes[0], nodes[1], cluster["d"]]
    done = await nodes[1].cli("mark-bad", "200", "--job", JOB)
    assert done.returncode == 0, done.stderr
    await all_unmounted(nodes, mounts)
    mounts = [await mount_rank(node, cluster, rank) for rank, node in enumerate(nodes)]
    assert [steps_in(mount) for mount in mounts] == [[100]] * RANKS
    done = await nodes[0].cli("restore", "--identity", f"{JOB}/0", "--step", "300", "--to", str(tmp_path / "aside"))
    assert done.returncode == 0, done.stderr
    assert steps_in(tmp_path / "aside") == [100, 200, 300]

    await all_unmounted(nodes, mounts)
    with pytest.raises(NotFound, match=r"step 300 of default/llama is not complete: those that are: 100$"):
        await mount_rank(nodes[0], cluster, 0, step=300)
    with pytest.raises(RunMismatch, match="saved with 3 ranks, and not with 4 ranks"):
        await nodes[0].mount(f"{JOB}/0", mounts[0], world_size=4)
    # Where they would come from is told before.
    done = await nodes[1].cli("plan", "--job", JOB, "--without", "a", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [leg["snapshot"].rpartition("@")[0] for leg in told["legs"]] == [f"{JOB}/{rank}" for rank in range(RANKS)]
    assert all(leg["sources"] for leg in told["legs"])
    assert {one["node"] for leg in told["legs"] for one in leg["sources"]} <= {"b", "d"}
    assert "another node (0)" in (await nodes[1].cli("plan", "--job", JOB, "--without", "a")).stdout
    # Each replica's own files may be had in another shape; and the checkpoint of all ranks in one directory.
    await nodes[0].mount(f"{JOB}/0", mounts[0], world_size=4, restore="latest")
    assert steps_in(mounts[0]) == [100]
    await nodes[0].unmount(mounts[0])
    refused = await nodes[1].cli("export", "--job", JOB, "--step", "300", "--to", str(tmp_path / "all"))
    assert refused.returncode == 1
    assert (
        "no complete checkpoint of default/llama is of step 300: those that can be had are of 100" in refused.stderr
    )
    done = await nodes[1].cli("export", "--job", JOB, "--to", str(tmp_path / "all"), "--json")
    assert done.returncode == 0, done.stderr
    assert {key: json.loads(done.stdout)[key] for key in ("step", "ranks")} == {"step": 100, "ranks": RANKS}
    assert {path.name: steps_in(path) for path in (tmp_path / "all").iterdir()} == {
        str(n): [100] for n in range(RANKS)
    }
    again = await nodes[1].cli("export", "--job", JOB, "--to", str(tmp_path / "all"))
    assert "is not empty" in again.stderr


async def all_unmounted(nodes: list[LocalNode], mounts: list[Path]) -> None:
    for node, mount in zip(nodes, mounts, strict=True):
        await node.unmount(mount)


async def test_a_step_that_a_rank_has_beside_newer_ones_alone_is_gone_on_from_by_the_jobs_own_names_for_steps(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    expected_logs.allow(r"restart\.set_aside")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms", keep={"ram": 1})
    nodes = [cluster["a"], cluster["b"]]
    job: dict[str, Any] = {"world_size": 2, "step_pattern": "model-*-{step}"}

    async def mount_all(**more: Any) -> list[Path]:
        """All at once, as pods are made."""
        mounts = [cluster.mountpoint(f"rank{rank}") for rank in (0, 1)]

        async def mount(rank: int) -> None:
            await mount_when_free(nodes[rank], mounts[rank], f"{JOB}/{rank}", **job, **more)

        async with trio.open_nursery() as nursery:
            for rank in (0, 1):
                nursery.start_soon(mount, rank)
        return mounts

    async def steps_of_rank_0() -> list[tuple[int, list[int]]]:
        found = json.loads((await nodes[0].cli("ls", "--json")).stdout)
        return [(one["step"], one["older_steps"]) for one in found if one["identity"] == f"{JOB}/0" and one["tiers"]]

    mounts = await mount_all()
    # One rank is far ahead, and of what it has saved only the newest stays; the other saves more seldom.
    for step in (100, 200, 300, 400, 500):
        save(mounts[0], 0, step, "model-x-{}")
        await wait_until_copied(nodes[0], 0)
    save(mounts[1], 1, 400, "model-y-{}")
    await wait_until_copied(nodes[1], 1)

    async def is_beside_alone() -> bool:
        found = await steps_of_rank_0()
        return (500, [100, 200, 300, 400]) in found and 400 not in [step for step, _ in found]

    await until(is_beside_alone)
    (mounts[0] / "600").mkdir()  # no step by these names
    await all_unmounted(nodes, mounts)
    mounts = await mount_all()
    assert sorted(path.name for path in mounts[0].iterdir()) == [f"model-x-{step}" for step in (100, 200, 300, 400)]
    assert (mounts[0] / "model-x-400/weights").read_text().startswith("rank 0, step 400\n")
    assert [path.name for path in mounts[1].iterdir()] == ["model-y-400"]

    async def is_aside() -> bool:
        return "500, also 400, 300, 200, 100 (set aside)" in (await nodes[0].cli("ls")).stdout

    await until(is_aside)
    # It goes on from there; and a person may have all go back once more, though all are made again at once.
    for rank, name in enumerate(("model-x-{}", "model-y-{}")):
        save(mounts[rank], rank, 700, name)
        await wait_until_copied(nodes[rank], rank)
    await all_unmounted(nodes, mounts)
    mounts = await mount_all()
    assert (mounts[1] / "model-y-700").exists()
    await all_unmounted(nodes, mounts)
    mounts = await mount_all(step=400)
    assert [sorted(path.name for path in mount.iterdir())[-1] for mount in mounts] == ["model-x-400", "model-y-400"]
    done = await nodes[1].cli("export", "--job", JOB, "--step", "400", "--to", str(tmp_path / "all"), "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "all/1").iterdir()) == ["model-y-400"]
