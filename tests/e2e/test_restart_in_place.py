"""Containers that are started again in their places go on from the step that all ranks have, and nobody tells us.

Their pods and mounts stay, no call of kubelet comes, and the job asks for nothing. That another container looks is
all that there is to go by.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fuse_tier import failpoints
from fuse_tier.deadlines import Deadline
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.wire.channel import connected
from tests.e2e.jobs import mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.containers import Container, Pod, pods
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.cgroups]

JOB = "default/llama"
# Saves a step as plain files, and has a file say which it was; tells what it sees.
SAVE = """
import os, sys
mount, step, content = sys.argv[1:]
os.mkdir(f"{mount}/{step}.tmp")
with open(f"{mount}/{step}.tmp/weights", "w") as file:
    file.write(content * 1000)
os.rename(f"{mount}/{step}.tmp", f"{mount}/step_{step}")
"""
# As it, with files at the root that say which it was, one of which has a second name.
SAVE_AND_NAME = (
    SAVE
    + """
with open(f"{mount}/latest.tmp", "w") as file:
    file.write(step)
os.rename(f"{mount}/latest.tmp", f"{mount}/latest")
with open(f"{mount}/ckpt.pt", "w") as file:
    file.write(content)
with open(f"{mount}/built0", "w") as file:  # as what is brought is called for a moment
    file.write(step)
if not os.path.exists(f"{mount}/resume.pt"):
    os.link(f"{mount}/ckpt.pt", f"{mount}/resume.pt")
"""
)
LOOK_AT_ROOT = """
import json, os, sys
(mount,) = sys.argv[1:]
seen = {name: open(f"{mount}/{name}").read() for name in ("latest", "ckpt.pt", "resume.pt", "built0")}
seen |= {"names": " ".join(sorted(os.listdir(mount))), "links": str(os.stat(f"{mount}/resume.pt").st_nlink)}
print(json.dumps(seen))
"""
LOOK = """
import json, os, sys
(mount,) = sys.argv[1:]
steps = sorted(name for name in os.listdir(mount) if name.startswith("step_"))
print(json.dumps({name: open(f"{mount}/{name}/weights").read(20) for name in steps}))
"""
CONFIGURE = """
import sys
with open(f"{sys.argv[1]}/config.json", "w") as file:
    file.write("{}")
"""


@pytest.fixture
def two_pods(tmp_path: Path) -> Iterator[list[Pod]]:
    with pods(tmp_path, 2) as made:
        yield made


async def mount_all(cluster: LocalCluster, two_pods: list[Pod]) -> list[LocalNode]:
    nodes = [cluster["a"], cluster["b"]]
    for rank, (node, pod) in enumerate(zip(nodes, two_pods, strict=True)):
        await mount_when_free(node, pod.mountpoint, f"{JOB}/{rank}", world_size=2)
    return nodes


async def save(pod: Pod, container: Container, rank: int, *steps: int, life: str = "") -> None:
    for step in steps:
        await container.run(SAVE, str(pod.mountpoint), str(step), f"{rank}:{step}{life} ")


async def until_complete(node: LocalNode, step: int) -> None:
    """Returns when the coordinator has heard that all have it."""

    async def is_complete() -> bool:
        told = await node.cli("status", "--job", JOB, "--json")
        return told.returncode == 0 and step in [one["step"] for one in json.loads(told.stdout)]

    await until(is_complete)


async def look(pod: Pod, container: Container) -> dict[str, str]:
    return dict(json.loads(await container.run(LOOK, str(pod.mountpoint))))


async def started_again(two_pods: list[Pod], before: list[Container]) -> list[Container]:
    for pod, container in zip(two_pods, before, strict=True):
        await pod.end(container)
    return [pod.container() for pod in two_pods]


async def seen_by_all(two_pods: list[Pod], containers: list[Container]) -> list[dict[str, str]]:
    """What they see who look all at once, for the first time."""
    seen: dict[int, dict[str, str]] = {}

    async def look_once(rank: int) -> None:
        seen[rank] = await look(two_pods[rank], containers[rank])

    async with trio.open_nursery() as nursery:
        for rank in range(len(two_pods)):
            nursery.start_soon(look_once, rank)
    return [seen[rank] for rank in range(len(two_pods))]


def has(rank: int, *steps: int, life: str = "") -> dict[str, str]:
    """What a look shows of steps that were saved."""
    return {f"step_{step}": (f"{rank}:{step}{life} " * 20)[:20] for step in steps}


async def test_all_ranks_see_the_step_that_all_have_from_their_first_look_on(
    make_cluster: Clusters, expected_logs: ExpectedLogs, two_pods: list[Pod]
) -> None:
    expected_logs.allow(r"restart\.set_aside")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = await mount_all(cluster, two_pods)
    containers = [pod.container() for pod in two_pods]
    await save(two_pods[0], containers[0], 0, 100, 200)
    await save(two_pods[1], containers[1], 1, 100, 200)
    await until_complete(nodes[0], 200)
    await save(two_pods[0], containers[0], 0, 300)
    # Who comes beside a container that is at work, and who is of no pod, finds all as it is.
    beside = two_pods[0].container()
    assert await look(two_pods[0], beside) == has(0, 100, 200, 300)
    assert sorted(os.listdir(two_pods[0].mountpoint)) == ["step_100", "step_200", "step_300"]
    await two_pods[0].end(beside)

    containers = await started_again(two_pods, containers)
    assert await seen_by_all(two_pods, containers) == [has(rank, 100, 200) for rank in (0, 1)]

    async def aside() -> bool:
        found = json.loads((await nodes[0].cli("ls", "--json")).stdout)
        return any((one["step"], one["set_aside"]) == (300, True) for one in found)

    await until(aside)
    # They go on from there, and what they save then is what counts.
    for rank in (0, 1):
        await save(two_pods[rank], containers[rank], rank, 300, life="b")
    await until_complete(nodes[0], 300)
    containers = await started_again(two_pods, containers)
    assert await seen_by_all(two_pods, containers) == [
        has(rank, 100, 200) | has(rank, 300, life="b") for rank in (0, 1)
    ]
    # One that is started again alone goes back alone.
    await save(two_pods[1], containers[1], 1, 400)
    await two_pods[1].end(containers[1])
    containers[1] = two_pods[1].container()
    assert await look(two_pods[1], containers[1]) == has(1, 100, 200) | has(1, 300, life="b")


async def test_what_stands_beside_the_steps_and_changes_with_each_goes_back_with_them(
    make_cluster: Clusters, expected_logs: ExpectedLogs, two_pods: list[Pod]
) -> None:
    expected_logs.allow(r"restart\.set_aside")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = await mount_all(cluster, two_pods)
    containers = [pod.container() for pod in two_pods]
    for step in (100, 200):
        for rank, (pod, container) in enumerate(zip(two_pods, containers, strict=True)):
            await container.run(SAVE_AND_NAME, str(pod.mountpoint), str(step), f"{rank}:{step}")
        await until_complete(nodes[0], step)
    await containers[0].run(SAVE_AND_NAME, str(two_pods[0].mountpoint), "300", "0:300")
    await two_pods[0].end(containers[0])
    seen = json.loads(await two_pods[0].container().run(LOOK_AT_ROOT, str(two_pods[0].mountpoint)))
    assert seen == {
        "latest": "200", "ckpt.pt": "0:200", "resume.pt": "0:200", "built0": "200", "links": "2",
        "names": "built0 ckpt.pt latest resume.pt step_100 step_200",
    }  # fmt: skip


async def test_pods_that_had_nothing_to_agree_on_when_they_were_mounted_agree_when_they_begin_again(
    make_cluster: Clusters, expected_logs: ExpectedLogs, two_pods: list[Pod]
) -> None:
    expected_logs.allow(r"restart\.set_aside")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = await mount_all(cluster, two_pods)
    for rank, (node, pod) in enumerate(zip(nodes, two_pods, strict=True)):
        container = pod.container()
        await container.run(CONFIGURE, str(pod.mountpoint))  # and dies before its first step
        await node.wait(f"{JOB}/{rank}", "ram", 60)
        await pod.end(container)
        await node.unmount(pod.mountpoint)
    await mount_all(cluster, two_pods)
    containers = [pod.container() for pod in two_pods]
    await save(two_pods[0], containers[0], 0, 100)
    await save(two_pods[1], containers[1], 1, 100)
    await until_complete(nodes[0], 100)
    await save(two_pods[0], containers[0], 0, 200)

    containers = await started_again(two_pods, containers)
    assert await seen_by_all(two_pods, containers) == [has(rank, 100) for rank in (0, 1)]
    assert "config.json" in os.listdir(two_pods[0].mountpoint)


async def test_what_an_init_container_has_written_is_there_for_those_after_it(
    make_cluster: Clusters, two_pods: list[Pod]
) -> None:
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = await mount_all(cluster, two_pods)
    for rank, (node, pod) in enumerate(zip(nodes, two_pods, strict=True)):
        container = pod.container()
        await save(pod, container, rank, 100)
        await pod.end(container)
        await node.unmount(pod.mountpoint)
    await mount_all(cluster, two_pods)
    for pod in two_pods:
        first = pod.container()
        await first.run(CONFIGURE, str(pod.mountpoint))
        await pod.end(first)
    assert await seen_by_all(two_pods, [pod.container() for pod in two_pods]) == [has(rank, 100) for rank in (0, 1)]
    assert [sorted(os.listdir(pod.mountpoint)) for pod in two_pods] == 2 * [["config.json", "step_100"]]


async def test_wherever_a_process_of_ours_dies_meanwhile_the_first_look_shows_the_step(
    make_cluster: Clusters, expected_logs: ExpectedLogs, two_pods: list[Pod]
) -> None:
    expected_logs.allow(
        r"restart\.set_aside", "worker.ended", "channel.notification_failed", r"coordinator\..*", r"membership\..*",
        "copy.failed", r"daemon\..*", r"volume\.daemon_lost",
    )  # fmt: skip
    cluster = await make_cluster("a", "b", bucket=False, start=False, settle="50ms")
    armed = cluster["a"].directory / "failpoint"
    cluster["a"].family.environment[failpoints.VARIABLE] = str(armed)
    await cluster.start()
    nodes = await mount_all(cluster, two_pods)
    containers = [pod.container() for pod in two_pods]
    for rank in (0, 1):
        await save(two_pods[rank], containers[rank], rank, 1)
    for step, name in enumerate(["in_place.arranged", "restart.joining", "restart.joined", "in_place.joined"], 2):
        await until_complete(nodes[1], step - 1)
        await save(two_pods[0], containers[0], 0, 99, life=name)
        await save(two_pods[1], containers[1], 1, 98, life=name)
        containers = await started_again(two_pods, containers)
        failpoints.arm(str(armed), name, "kill")
        before = [*range(1, step)]
        assert await seen_by_all(two_pods, containers) == [has(rank, *before) for rank in (0, 1)], name
        assert not armed.exists(), name
        for rank in (0, 1):
            await save(two_pods[rank], containers[rank], rank, step)

    # And when the daemon dies that has the kernel's ear.
    await until_complete(nodes[1], 5)
    await save(two_pods[0], containers[0], 0, 99)
    containers = await started_again(two_pods, containers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_daemon, nodes[0])
        assert await seen_by_all(two_pods, containers) == [has(rank, 1, 2, 3, 4, 5) for rank in (0, 1)]


async def kill_daemon(node: LocalNode) -> None:
    async with connected(f"{node.socket}.supervisor", {}) as channel:
        (mount,) = await channel.call("mounts", Deadline.MOUNT)
    os.kill(mount["daemon"], signal.SIGKILL)


async def test_a_container_that_no_step_can_be_given_to_gets_an_error_and_the_next_one_asks_again(
    make_cluster: Clusters, expected_logs: ExpectedLogs, two_pods: list[Pod]
) -> None:
    expected_logs.allow(r"container\.not_admitted", r"restart\.set_aside")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = await mount_all(cluster, two_pods)
    containers = [pod.container() for pod in two_pods]
    for step in (100, 200):  # of which the other rank has none
        await save(two_pods[0], containers[0], 0, step)
        await nodes[0].wait(f"{JOB}/0", "ram", 60)
    await two_pods[0].end(containers[0])
    containers[0] = two_pods[0].container()
    refused = "import os, sys\ntry: os.listdir(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    for _ in range(2):
        assert await containers[0].run(refused, str(two_pods[0].mountpoint)) == f"{errno.EIO}\n"
    assert "no step of default/llama (run llama) is complete, of 2 ranks" in nodes[0].log_path.read_text()
    assert sorted(os.listdir(two_pods[0].mountpoint)) == ["step_100", "step_200"], "nothing has changed"
    await save(two_pods[1], containers[1], 1, 100)
    await nodes[1].wait(f"{JOB}/1", "ram", 60)

    async def is_admitted() -> bool:
        return await containers[0].run(refused, str(two_pods[0].mountpoint)) == ""

    await until(is_admitted)  # the coordinator has heard of it
    assert await look(two_pods[0], containers[0]) == has(0, 100)
