"""A job of two ranks on two nodes, its complete checkpoints in the bucket, and those who restore from there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from fuse_tier.localcluster import LocalCluster, run_cli
from fuse_tier.replicate import election
from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until
from tests.tiers.faulty_http import Fault, Proxy, faulty

pytestmark = [pytest.mark.fuse, pytest.mark.root]

JOB = "default/llama"
PREFIX = "local"


class Beside:
    """The bucket, as ordinary tools see it."""

    def __init__(self, cluster: LocalCluster) -> None:
        assert cluster.bucket is not None
        self.url = cluster.bucket.url
        self.endpoint = cluster.bucket.emulator.endpoint
        client = storage.Client(
            "tests",
            AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self.endpoint},
        )
        self.client = client
        self.bucket: Any = client.bucket(self.url.removeprefix("gs://").partition("/")[0])
        self.prefix = self.url.removeprefix("gs://").partition("/")[2]

    def checkpoints(self) -> dict[str, Any]:
        found = self.client.list_blobs(self.bucket.name, prefix=f"{self.prefix}/checkpoints/{JOB}/")
        records: dict[str, Any] = {}
        for blob in found:
            if blob.name.endswith(".json"):
                with suppress(NotFound):  # given up since it was listed
                    name = blob.name.rpartition("/")[2].removesuffix(".json")
                    records[name] = json.loads(blob.download_as_bytes().splitlines()[0])
        return records

    def steps(self) -> list[int]:
        return [record["step"] for _, record in sorted(self.checkpoints().items())]

    def put(self, name: str, text: str) -> None:
        self.bucket.blob(f"{self.prefix}/checkpoints/{JOB}/{name}").upload_from_string(text.encode())

    def has(self, name: str) -> bool:
        return bool(self.bucket.blob(f"{self.prefix}/checkpoints/{JOB}/{name}").exists())


def save(mount: Path, rank: int, step: int) -> None:
    """As jobs save: under another name, and renamed when it is whole."""
    temporary = mount / f"{step}.tmp"
    temporary.mkdir()
    (temporary / "weights").write_bytes(f"rank {rank}, step {step}\n".encode() * 1000)
    temporary.rename(mount / str(step))


def steps_in(place: Path) -> list[int]:
    return sorted(int(path.name) for path in place.iterdir())


def is_so(fact: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return fact()

    return ask


async def mount_job(cluster: LocalCluster, **request: Any) -> list[Path]:
    mounts = [cluster.mountpoint("rank0"), cluster.mountpoint("rank1")]
    for rank, (node, mount) in enumerate(zip(cluster, mounts, strict=True)):
        await mount_when_free(node, mount, f"{JOB}/{rank}", **request)
    return mounts


async def save_everywhere(cluster: LocalCluster, mounts: list[Path], step: int) -> None:
    for rank, mount in enumerate(mounts):
        save(mount, rank, step)
    for rank, node in enumerate(cluster):
        await node.wait(f"{JOB}/{rank}", "bucket", 60)


async def test_a_job_is_backed_up_step_by_step_and_goes_back_to_the_one_that_a_person_names(
    make_cluster: Clusters, tmp_path: Path
) -> None:
    cluster = await make_cluster("a", "b", keep={"bucket": 2}, settle="50ms")
    beside = Beside(cluster)
    mounts = await mount_job(cluster)
    for step in (100, 200, 300):
        await save_everywhere(cluster, mounts, step)
        await until(is_so(lambda step=step: step in beside.steps()))  # type: ignore[misc]
    await until(is_so(lambda: beside.steps() == [200, 300]))
    version = min(beside.checkpoints())

    # Another cluster, with nothing but the bucket's URL and the identity.
    done = await run_cli(
        *("restore", "--bucket", beside.url, "--endpoint", beside.endpoint),
        *("--identity", f"{JOB}/1", "--to", str(tmp_path / "elsewhere")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert steps_in(tmp_path / "elsewhere") == [100, 200, 300]
    assert (tmp_path / "elsewhere/300/weights").read_text().startswith("rank 1, step 300\n")

    done = await run_cli(
        *("export", "--bucket", beside.url, "--endpoint", beside.endpoint),
        *("--job", JOB, "--step", "200", "--to", str(tmp_path / "all")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: steps_in(path) for path in (tmp_path / "all").iterdir()} == {"0": [100, 200], "1": [100, 200]}

    dry = await cluster["a"].cli("prune", "--dry-run", "--json")
    assert json.loads(dry.stdout)["jobs"][0]["checkpoints"] == 2, dry.stderr
    shown = await cluster["b"].cli("prune", "--dry-run")
    assert "no snapshot names would be freed now" in shown.stdout, shown.stderr

    for node, mount in zip(cluster, mounts, strict=True):
        await node.unmount(mount)
    beside.put("restore.version", version + "\n")
    mounts = await mount_job(cluster)
    assert [steps_in(mount) for mount in mounts] == [[100, 200], [100, 200]]
    # The state that it went back to is the newest now, is backed up as such, and then nothing is forced any more.
    await until(is_so(lambda: not beside.has("restore.version")))
    await save_everywhere(cluster, mounts, 250)
    await until(is_so(lambda: 250 in beside.steps()))


async def test_a_version_that_is_not_there_is_refused_and_nothing_is_mounted(make_cluster: Clusters) -> None:
    cluster = await make_cluster("a", settle="50ms")
    mount = cluster.mountpoint("rank0")
    await cluster["a"].mount(f"{JOB}/0", mount)
    save(mount, 0, 100)
    await cluster["a"].wait(f"{JOB}/0", "bucket", 60)
    await cluster["a"].unmount(mount)
    done = await cluster["a"].cli("mount", "--identity", f"{JOB}/0", "--version", "2020-01-01_00-00", str(mount))
    assert done.returncode == 1
    assert "no checkpoint 2020-01-01_00-00" in done.stderr
    assert not mount.is_mount()
    Beside(cluster).put("restore.version", "yesterday")
    done = await cluster["a"].cli("mount", "--identity", f"{JOB}/0", str(mount))
    assert done.returncode == 1
    assert "restore.version of default/llama" in done.stderr


@pytest.fixture
def proxies() -> Iterator[Callable[[str], Proxy]]:
    """A proxy before the bucket for each node, that tells what this node asked."""
    with ExitStack() as stack:
        yield lambda endpoint: stack.enter_context(faulty(endpoint))


async def test_a_mount_asks_the_bucket_nothing_but_by_one_node_for_all(
    make_cluster: Clusters, proxies: Callable[[str], Proxy], expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", start=False, settle="50ms")
    assert cluster.bucket is not None and cluster.coordinator is not None
    endpoint = cluster.bucket.emulator.endpoint
    asked = {node.name: proxies(endpoint) for node in cluster}
    for node in cluster:
        node.config["bucket"] = {"url": cluster.bucket.url, "endpoint": asked[node.name].endpoint}
    await cluster.start()
    # What the bucket has is in no RAM any more.
    for rank in range(3):
        mount = cluster.mountpoint(f"old{rank}")
        await cluster["a"].mount(f"{JOB}/{rank}", mount)
        save(mount, rank, 100)
        await cluster["a"].wait(f"{JOB}/{rank}", "bucket", 60)
        await cluster["a"].unmount(mount)
    await until(is_so(lambda: Beside(cluster).steps() == [100]))
    for proxy in asked.values():
        proxy.requests.clear()
    for index in range(6):  # new volumes, and one that is in the RAM of two nodes
        node = list(cluster)[index % 3]
        await node.mount(f"default/new-{index}/0", cluster.mountpoint(f"new{index}"))
    await cluster["a"].mount(f"{JOB}/0", cluster.mountpoint("again"))
    assert steps_in(cluster.mountpoint("again")) == [100]
    busy = {name: proxy.requests for name, proxy in asked.items() if proxy.requests}
    assert len(busy) <= 1, busy


async def test_by_the_clock_all_ranks_bring_the_same_step_and_who_waits_does_not_wait_for_it(
    make_cluster: Clusters,
) -> None:
    cluster = await make_cluster("a", "b", backup={"every": "1h"}, settle="50ms")
    beside = Beside(cluster)
    mounts = await mount_job(cluster)

    async def all_have(step: int) -> bool:
        """On the peer: so long a step takes until it is known to be saved."""
        for rank, node in enumerate(cluster):
            await node.wait(f"{JOB}/{rank}", "peer", 60)
        return all((mount / str(step)).exists() for mount in mounts)

    for rank, mount in enumerate(mounts):
        save(mount, rank, 100)
    assert await all_have(100)
    await until(is_so(lambda: beside.steps() == [100]))
    # The turn is the first step's for an hour: what comes after it stays in RAM.
    for step in (200, 300):
        save(mounts[0], 0, step)
        save(mounts[1], 1, step)
        assert await all_have(step)
    volume = (await cluster["a"].status())["volumes"][0]
    assert volume["backup"]["state"] == "waiting"
    assert 0 < volume["backup"]["due_in_seconds"] <= 3600
    assert beside.steps() == [100]
    shown = await cluster["a"].cli("status")
    assert "(next in " in shown.stdout
    # Somebody waits.
    await save_everywhere(cluster, mounts, 400)
    await until(is_so(lambda: beside.steps() == [100, 400]))


async def test_when_the_steward_dies_another_node_takes_its_place(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", settle="50ms")
    beside = Beside(cluster)
    first, second = election.rank(beside.url, list(cluster.nodes))[:2]
    survivors = [node for node in cluster if node.name != first]
    mounts = [cluster.mountpoint("rank0"), cluster.mountpoint("rank1")]
    for index, (node, mount) in enumerate(zip(survivors, mounts, strict=True)):
        await node.mount(f"{JOB}/{index}", mount)
        save(mount, index, 100)
        await node.wait(f"{JOB}/{index}", "bucket", 60)
    await until(is_so(lambda: beside.steps() == [100]))
    expected_logs.allow(*A_NODE_DIED)
    await cluster[first].kill()
    for index, (node, mount) in enumerate(zip(survivors, mounts, strict=True)):
        save(mount, index, 200)
        await node.wait(f"{JOB}/{index}", "bucket", 60)
    await until(is_so(lambda: beside.steps() == [100, 200]))
    said = cluster[second].log_path.read_text()
    assert "checkpoint.complete" in said
    # A new volume is mounted while the dead one is still in the list of those who may answer.
    await survivors[0].mount("default/new/0", cluster.mountpoint("new"))


async def test_after_an_outage_of_the_bucket_the_newest_is_brought_and_not_what_was_superseded(
    make_cluster: Clusters, proxies: Callable[[str], Proxy], expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"copy\.failed", r"retention\..*")
    cluster = await make_cluster("a", start=False, settle="50ms", replicas=0)
    assert cluster.bucket is not None
    proxy = proxies(cluster.bucket.emulator.endpoint)
    node, mount, beside = cluster["a"], cluster.mountpoint("rank0"), Beside(cluster)
    node.config["bucket"] = {"url": cluster.bucket.url, "endpoint": proxy.endpoint}
    await cluster.start()
    await node.mount(f"{JOB}/0", mount)
    save(mount, 0, 100)
    await node.wait(f"{JOB}/0", "bucket", 60)
    await until(is_so(lambda: beside.steps() == [100]))
    proxy.faults.extend(Fault(method, "", status=503, times=1 << 30) for method in ("GET", "POST", "PATCH", "DELETE"))
    for step in (200, 300, 400):
        save(mount, 0, step)
        await node.wait(f"{JOB}/0", "ram", 60)
    proxy.faults.clear()
    await until(is_so(lambda: beside.steps()[-1:] == [400]), 90)
    assert beside.steps() == [100, 400]


async def test_by_steps_the_first_at_or_after_each_multiple_is_brought(make_cluster: Clusters) -> None:
    cluster = await make_cluster("a", "b", backup={"steps": 200}, settle="50ms")
    beside = Beside(cluster)
    mounts = await mount_job(cluster)
    for step in (100, 200, 300, 500):
        for rank, (node, mount) in enumerate(zip(cluster, mounts, strict=True)):
            save(mount, rank, step)
            await node.wait(f"{JOB}/{rank}", "peer", 60)
        if step in (
            100,
            200,
            500,
        ):  # the first one is brought whatever the rule; 300 waits for 400 or what comes after
            await until(is_so(lambda step=step: step in beside.steps()))  # type: ignore[misc]
    assert beside.steps() == [100, 200, 500]
