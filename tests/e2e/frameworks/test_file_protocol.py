"""Jobs that talk to the replicator by files at the root of their mount, on real nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import trio
import yaml

from fuse_tier import failpoints
from fuse_tier.deadlines import Deadline
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.wire.channel import connected
from tests.e2e.frameworks.client import Client, Failed, order
from tests.e2e.jobs import A_NODE_DIED, mount_when_free
from tests.harness.checkouts import ROOT
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

JOB = "default/llama"


async def mount_rank(node: LocalNode, cluster: LocalCluster, rank: int, ranks: int) -> Client:
    mount = cluster.mountpoint(f"{node.name}-rank{rank}")
    await mount_when_free(node, mount, f"{JOB}/{rank}", world_size=ranks)
    return Client(mount)


async def test_all_ranks_are_given_the_step_that_all_have_and_see_no_other(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", bucket=False, settle="50ms")
    nodes = [cluster["a"], cluster["b"]]
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]

    # A job that has never saved.
    for rank, client in enumerate(clients):
        assert await client.start(order(rank, 2)) is None
        assert client.prerestore() == {}
        assert client.seen[-1] <= {"replicator.prerestore", f"llama-s0-n{rank}-w0.restore", "replicator.errors"}
        assert said(nodes[rank]) == ["No valid checkpoints found anywhere"]
    for step in (10, 20):
        for rank, client in enumerate(clients):
            client.save(step, b"rank %d, step %d\n" % (rank, step) * 1000)
            await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)
    clients[0].save(30, b"ahead" * 1000)
    await nodes[0].wait(f"{JOB}/0", "peer", 60)

    # Both containers start again in their place: rank 0 was ahead.
    expected_logs.allow(r"restart\.set_aside")
    for rank, client in enumerate(clients):
        await client.order(order(rank, 2))
        assert not [name for name in client.seen[-1] if name.isdigit()]
    for rank, client in enumerate(clients):
        assert await client.take() == 20
        assert client.prerestore() == {"restore-step": 20}
        assert client.steps() == [20]
        assert (client.mount / "20/state/weights").read_bytes() == b"rank %d, step 20\n" % rank * 1000
        assert client.remarks.startswith("this node has no bucket")
        done = await operations(nodes[rank], "orbax")
        assert {"CoordinatorRegistration", "RestorePeerMount", "CheckpointRestore"} <= done
        assert said(nodes[rank])[-1] == "Restoring from in-cluster checkpoint 20"


async def test_a_job_of_plain_files_that_is_restarted_in_its_place_agrees_by_the_lines_of_the_guide(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(r"restart\.set_aside", r"replicator\.failed")
    cluster = await make_cluster("a", "b", bucket=False, settle="50ms")
    nodes = [cluster["a"], cluster["b"]]
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]
    guide = (ROOT / "docs/frameworks.md").read_text()
    (lines,) = re.findall(r"```sh\n(cat > /ckpt/replicator.*?)```", guide, re.DOTALL)

    async def all_ask() -> None:
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for rank, client in enumerate(clients):
                    script = lines.replace("/ckpt", str(client.mount))
                    environment = {**os.environ, "RANK": str(rank), "RANKS": "2"}
                    nursery.start_soon(partial(trio.run_process, ["sh", "-euc", script], env=environment))

    await all_ask()
    assert [client.steps() for client in clients] == [[], []]
    for step in (10, 20, 30):
        for rank, client in enumerate(clients):
            if (step, rank) != (30, 1):  # rank 0 is ahead
                client.save(step, b"rank %d, step %d" % (rank, step))
                await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)
    await all_ask()
    for rank, client in enumerate(clients):
        assert client.steps() == [20]
        assert (client.mount / "20/state/weights").read_bytes() == b"rank %d, step 20" % rank
    script, environment = lines.replace("/ckpt", str(clients[0].mount)), {**os.environ, "RANK": "0", "RANKS": "none"}
    with trio.fail_after(100):
        refused = await trio.run_process(["sh", "-euc", script], env=environment, check=False, capture_stderr=True)
    assert (refused.returncode, b"nodes" in refused.stderr) == (1, True), refused.stderr


async def test_a_job_that_lost_nodes_goes_on_from_ram_and_from_the_bucket(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", "c", settle="50ms")
    nodes = [cluster["a"], cluster["b"]]
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]
    keys = {"backup_interval_minutes": None, "backup_interval_steps": 20}
    for rank, client in enumerate(clients):
        assert await client.start(order(rank, 2, **keys)) is None
        assert client.remarks == ""
    for step in (10, 20, 30):
        for rank, client in enumerate(clients):
            client.save(step, b"rank %d, step %d\n" % (rank, step) * 1000)
            await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)

    await until(lambda: is_shown(nodes[0], 30, "ram", "peer"))
    copied = {"CheckpointReplication", "CheckpointReplicationTotal", "CheckpointBackup"}
    assert copied <= await operations(nodes[0], "orbax")

    # A node is lost with its RAM: the newest step is with its peers.
    expected_logs.allow(*A_NODE_DIED, r"restart\.set_aside")
    await nodes[1].lose_ram()
    await nodes[0].unmount(clients[0].mount)
    nodes = [cluster["a"], cluster["c"]]
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]
    for rank, client in enumerate(clients):
        assert await client.start(order(rank, 2, **keys)) == 30
        assert client.prerestore() == {"restore-step": 30}
        assert (client.mount / "30/state/weights").read_bytes() == b"rank %d, step 30\n" % rank * 1000
        assert client.steps() == [30]

    # All are lost: of the steps that went to the bucket the newest is 20 or later.
    for node in nodes:
        await node.lose_ram()
    for node in nodes:
        await node.start()
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]
    given = [await client.start(order(rank, 2, **keys)) for rank, client in enumerate(clients)]
    assert given in ([20, 20], [30, 30])
    for rank, client in enumerate(clients):
        told = client.prerestore()
        assert told["restore-step"] == given[0]
        assert len(told["restore-backup"]) == len("2026-01-31_12-00")
        assert said(nodes[rank])[-1] == f"Restoring from backup '{told['restore-backup']}', checkpoint {given[0]}"
        lost = await goodput_lost(nodes[rank], f"{JOB}/{rank}")
        assert lost["restoring"] > 0, "what alerts need to know what restarts cost"
        assert (client.mount / f"{given[0]}/state/weights").read_bytes().startswith(b"rank %d, step" % rank)


def said(node: LocalNode) -> list[str]:
    """The lines that people search the log of the system before for, in a job's own node's."""
    lines = (line for line in node.log_path.read_text().splitlines() if line.startswith("{"))
    return [found["said"] for line in lines if "said" in (found := json.loads(line))]


async def scraped(node: LocalNode) -> str:
    """What a node tells Prometheus."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{node.config['metrics']}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    return await trio.to_thread.run_sync(read)


async def operations(node: LocalNode, framework: str) -> set[str]:
    """What dashboards of the system before are shown that a node has done for a framework, and done well."""
    count = re.compile(
        r'node_operations_seconds_count\{framework="(.*?)",grpc_status_code="OK",method_name="(.*?)"\} [1-9]'
    )
    found = count.findall(await scraped(node))
    return {method for of, method in found if of == framework}


async def goodput_lost(node: LocalNode, identity: str) -> dict[str, float]:
    """Seconds that a volume's job has lost on a node, by their cause."""
    lost = re.compile(rf'fuse_tier_goodput_lost_seconds_total\{{cause="(.*?)",identity="{identity}"\}} (\S+)')
    return {cause: float(seconds) for cause, seconds in lost.findall(await scraped(node))}


async def is_shown(node: LocalNode, step: int, *tiers: str) -> bool:
    """Whether people are shown a complete checkpoint on these tiers, which can be restored."""
    shown = json.loads((await node.cli("status", "--job", JOB, "--json")).stdout)
    found = [one for one in shown if one["step"] == step]
    assert all(one["ranks"] == 2 and one["restorable"] and one["size"] for one in found)
    return any({*tiers} <= {*one["tiers"]} for one in found)


async def test_a_job_of_pytorch_is_given_its_workers_files_and_one_of_nemo_its_directory(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", "b", settle="50ms")
    nodes = [cluster["a"], cluster["b"]]
    clients = [await mount_rank(node, cluster, rank, 2) for rank, node in enumerate(nodes)]
    # PyTorch: a file of each worker, complete when it is closed, or renamed.
    keys = {"framework": "pytorch", "workers_per_node": 2, "assume_data_parallelism": None, "peers_per_node": 1,
            "peer_ranks": None}  # fmt: skip

    async def markers(client: Client) -> list[str]:
        async def all_there() -> bool:
            client.look_for_errors()
            return len(list(client.mount.glob("*.restore"))) == 2

        await until(all_there)
        return sorted(path.name for path in client.mount.glob("*.restore"))

    for rank, client in enumerate(clients):
        await client.order(order(rank, 2, **keys))
    for rank, client in enumerate(clients):
        assert await markers(client) == [f"llama-s0-n{rank}-w0.restore", f"llama-s0-n{rank}-w1.restore"]
        for worker in (0, 1):
            (client.mount / f"llama-s7-n{rank}-w{worker}.save").write_bytes(b"rank %d worker %d" % (rank, worker))
        await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)
    # An order that does not fit what was saved is refused; once it is mended the step is there for all.
    expected_logs.allow(r"replicator\.failed")
    with pytest.raises(Failed, match="has no file of node 0 worker 2, but of node 0 worker 0, node 0 worker 1"):
        await clients[0].start(order(0, 2, **keys | {"workers_per_node": 3}))
    with pytest.raises(Failed, match="has no directory of it"):
        await clients[0].start(order(0, 2, **keys | {"framework": "orbax"}))
    for rank, client in enumerate(clients):
        await client.order(order(rank, 2, **keys))
        assert not [name for name in client.seen[-1] if name.endswith(".save")]
    for rank, client in enumerate(clients):
        for worker, name in enumerate(await markers(client)):
            assert name == f"llama-s7-n{rank}-w{worker}.restore"
            assert (client.mount / name).read_bytes() == b"rank %d worker %d" % (rank, worker)
            (client.mount / name).unlink()

    # NeMo: the order is written in place, and a directory gets the name of its step.
    keys = {"framework": "pytorch.distributed", "peers_per_node": 1, "peer_ranks": None}
    for rank, client in enumerate(clients):
        for name in os.listdir(client.mount):
            if name.endswith(".save"):
                (client.mount / name).unlink()
        temporary = client.mount / "step=9.unfinished"
        temporary.mkdir()
        (temporary / f"__{rank}_0.distcp").write_bytes(b"rank %d" % rank)
        temporary.rename(client.mount / "step=9")
        await nodes[rank].wait(f"{JOB}/{rank}", "peer", 60)
    for rank, client in enumerate(clients):
        (client.mount / "replicator.yaml").write_text(yaml.safe_dump(order(rank, 2, **keys)))
    for rank, client in enumerate(clients):
        assert await client.take(lambda step: f"step={step}") == 9
        assert client.prerestore() == {"restore-step": 9}
        assert (client.mount / f"step=9/__{rank}_0.distcp").read_bytes() == b"rank %d" % rank


async def test_an_order_that_cannot_be_followed_is_answered_at_once_and_changes_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", bucket=False, settle="50ms")
    client = await mount_rank(cluster["a"], cluster, 0, 1)
    assert await client.start(order(0, 1)) is None
    client.save(5, b"five")
    expected_logs.allow(r"replicator\.failed")
    for keys, told in (
        (order(0, 1, framework="tensorflow"), "replicator.yaml:3: framework: 'tensorflow' is none of"),
        (order(1, 1), "node-rank: 1 is out of range"),
        ("job-name: [", "is no valid YAML"),
        (order(0, 2), "nodes: 2 stands in replicator.yaml, but default/llama/0 was mounted as one of 1 ranks"),
    ):
        with pytest.raises(Failed) as caught:
            await client.order(keys)
        assert told in str(caught.value)
        assert str(caught.value).count("\n") == 1
        assert client.steps() == [5]
    (client.mount / "replicator.yaml").mkdir()
    with pytest.raises(Failed, match="is no file"):
        await client.take()
    # What stood there is as usable as before; some clients write their order in place.
    text = "job-name: llama\nframework: orbax\nnode-rank: 0\nnodes: 1\nbackup-interval-minutes: 30\n"
    with (client.mount / "replicator.yaml").open("w") as file:
        file.write(text[:20])
        file.flush()
        file.write(text[20:])
    assert await client.take() == 5
    # An empty order begins the last one anew.
    (client.mount / "replicator.yaml").touch()
    assert await client.take() == 5
    assert (client.mount / "5/state/weights").read_bytes() == b"five"


async def test_two_jobs_of_one_node_are_answered_each_for_itself_and_step_0_is_a_step(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", bucket=False, settle="50ms")
    node, clients = cluster["a"], {}
    for job in ("llama", "bert"):
        mount = cluster.mountpoint(job)
        await node.mount(f"default/{job}/0", mount, world_size=1)
        clients[job] = Client(mount)
        (mount / "jax-init-info.txt").write_text("0\n10.0.0.1:8476\n")
        assert await clients[job].start(order(0, 1, job_name=job)) is None
        assert (mount / "jax-init-info.txt").exists()
    clients["llama"].save(0, b"nothing learnt yet")
    clients["bert"].save(3, b"three")
    for job, step in (("llama", 0), ("bert", 3), ("llama", 0)):
        await clients[job].order(order(0, 1, job_name=job))
        await until(lambda job=job, step=step: is_directory(clients[job].mount / f"{job}-s{step}-n0-w0.restore"))  # type: ignore[misc]
        assert clients[job].prerestore() == {"restore-step": step}
        assert await clients[job].take() == step
        assert clients[job].steps() == [step]
    assert (clients["llama"].mount / "0/state/weights").read_bytes() == b"nothing learnt yet"


async def is_directory(path: Path) -> bool:
    return path.is_dir()


async def is_gone(path: Path) -> bool:
    return not path.exists()


async def test_a_job_is_answered_wherever_the_worker_dies_meanwhile(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    cluster = await make_cluster("a", bucket=False, start=False, settle="50ms")
    node = cluster["a"]
    armed = node.directory / "failpoint"
    node.family.environment[failpoints.VARIABLE] = str(armed)
    await cluster.start()
    client = await mount_rank(node, cluster, 0, 1)
    assert await client.start(order(0, 1)) is None
    expected_logs.allow("worker.ended", "channel.notification_failed", r"coordinator\..*", r"membership\..*")
    for step, name in enumerate(sorted(name for name in failpoints.NAMES if name.startswith("replicator.")), 1):
        client.save(step, b"%d" % step)
        failpoints.arm(str(armed), name, "kill")
        assert await client.start(order(0, 1)) == step, name
        await until(lambda: is_gone(armed))  # the answer may come first
        assert client.steps() == [step]
        assert (client.mount / f"{step}/state/weights").read_bytes() == b"%d" % step

    # And when the daemon dies that has the kernel's ear.
    expected_logs.allow(r"daemon\..*", r"volume\.daemon_lost")
    client.save(9, b"9")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_daemons, node, 3)
        assert await client.start(order(0, 1)) == 9
    assert client.steps() == [9]


async def kill_daemons(node: LocalNode, times: int) -> None:
    """Of the node's one mount, each as soon as it is there."""
    killed = 0
    async with connected(f"{node.socket}.supervisor", {}) as channel:
        while times:
            (mount,) = await channel.call("mounts", Deadline.MOUNT)
            if mount["daemon"] not in (0, None, killed):
                killed = mount["daemon"]
                os.kill(killed, signal.SIGKILL)
                times -= 1
