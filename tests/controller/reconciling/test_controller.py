"""The controller and a real API server. Daemonsets' pods and Kubernetes' garbage collector are played by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from controller.driver import names
from controller.election import LeadershipLost, Times
from controller.local.kube import ApiServer
from controller.reconciling.issuing import AUTHORITY, RANKS
from controller.reconciling.server import LEASE
from controller.reconciling.world import CONFIGURATIONS
from fuse_tier.localcluster.ports import free_ports
from tests.controller.cluster import DAEMONSETS, LABELS, LEASES, NAMESPACE, Cluster, path_of, running_controller
from tests.controller.configurations import SETTINGS
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = pytest.mark.kube


async def test_a_configuration_becomes_a_daemonset_and_tells_how_its_nodes_are_until_both_are_deleted(
    cluster: Cluster,
) -> None:
    async with running_controller(cluster.api):
        made = await cluster.configure()
        daemonset = await cluster.daemonset()
        assert daemonset["metadata"]["name"] == f"multitier-driver-{made['metadata']['uid']}"
        assert [one["name"] for one in daemonset["spec"]["template"]["spec"]["containers"]] == [
            "registrar", "liveness-probe", "csi", "fuse", "replication-worker"
        ]  # fmt: skip
        config = f"{NAMESPACE}/configmaps/{daemonset['metadata']['name']}"
        told = await cluster.writer.read(config)
        assert "gs://my-checkpoints" in told["data"]["node.yaml"]
        secret = await cluster.certificates()
        own = {f"{node}.{kind}" for node in "abc" for kind in ("crt", "key")}
        assert set(secret) == {"ca.crt", "authorities.pem", *own}
        await cluster.until_found(f"{NAMESPACE}/secrets/{RANKS}", lambda one: "tls.key" in one["data"])
        await cluster.writer.create("/api/v1/nodes", {"metadata": {"name": "d", "labels": LABELS}})

        async def has_one() -> bool:
            return "d.crt" in await cluster.certificates()

        await until(has_one)
        assert (await cluster.certificates()).items() >= secret.items(), "a node that comes changes nobody else's"
        assert told["metadata"]["annotations"] == {names.CONFIGURATION_ANNOTATION: "default"}
        await cluster.until_condition("Ready", "False", "NotSeen")
        await cluster.run_pods(ready=1)
        message = await cluster.until_condition("Ready", "False", "NodesNotReady")
        assert message.startswith("the driver is ready on 1 of 3 nodes")
        await cluster.run_pods()
        await cluster.until_condition("Ready", "True", "AllNodesReady")
        found = await cluster.configuration()
        assert found["metadata"]["finalizers"] == [names.FINALIZER]
        assert found["status"]["instanceHandle"] == daemonset["metadata"]["name"]
        assert (found["status"]["nodesReady"], found["status"]["error"]) == (3, "")
        assert await cluster.events() == ["Ready"]

        await cluster.writer.delete(f"{CONFIGURATIONS}/default")
        going = await cluster.until_found(path_of(daemonset), lambda one: "deletionTimestamp" in one["metadata"])
        assert going["metadata"]["finalizers"] == ["foregroundDeletion"], "its pods end before it does"
        assert (await cluster.writer.read(config))["data"], "its pods may still read it"
        assert (await cluster.configuration())["metadata"]["finalizers"] == [names.FINALIZER]
        await cluster.writer.merge(path_of(daemonset), {"metadata": {"finalizers": None}})
        await cluster.until_gone(f"{CONFIGURATIONS}/default")
        await cluster.until_gone(config)
        left = (await cluster.writer.read(f"{NAMESPACE}/secrets"))["items"]
        assert {one["metadata"]["name"] for one in left} == {AUTHORITY, RANKS}


async def test_changes_roll_but_those_that_lose_data_wait_for_an_annotation(cluster: Cluster) -> None:
    async with running_controller(cluster.api):
        await cluster.configure()
        first = await cluster.daemonset()
        await cluster.configure(replicas=2)
        path = path_of(first)
        second = await cluster.until_found(path, lambda one: one["metadata"]["generation"] == 2)
        await cluster.configure(inMemoryVolumeSize="1Gi", cloudStorageBucketName="another", fsync="peer")
        message = await cluster.until_condition("Progressing", "False", "ChangeHeld")
        assert "would shrink from 65536Mi to 1024Mi" in message
        assert "gs://another instead of gs://my-checkpoints" in message
        third = await cluster.until_found(path, lambda one: one["metadata"]["generation"] == 3)
        kept = third["metadata"]["annotations"]
        assert kept[names.RAM_ANNOTATION] == str(64 << 30) == second["metadata"]["annotations"][names.RAM_ANNOTATION]
        told = (await cluster.writer.read(f"{NAMESPACE}/configmaps/{third['metadata']['name']}"))["data"]["node.yaml"]
        assert "fsync: peer" in told, "what loses nothing is not held up"
        assert "gs://my-checkpoints" in told

        command = message.partition("kubectl annotate --overwrite cpc default ")[2]
        key, _, value = command.partition("=")
        await cluster.writer.merge(f"{CONFIGURATIONS}/default", {"metadata": {"annotations": {key: value}}})
        fourth = await cluster.until_found(path, lambda one: one["metadata"]["generation"] == 4)
        assert fourth["metadata"]["annotations"][names.RAM_ANNOTATION] == str(1 << 30)
        await cluster.until_condition("Progressing", "True", "RollingOut")
        await cluster.configure(inMemoryVolumeSize="512Mi")
        await cluster.until_condition("Progressing", "False", "ChangeHeld")
        assert await cluster.events() == ["ChangeHeld", "ChangeHeld"]


async def test_what_others_change_or_delete_is_put_back_and_nothing_is_written_where_nothing_is_to_do(
    cluster: Cluster,
) -> None:
    await cluster.configure(csiEphemeralLimit="5120Mi")
    async with running_controller(cluster.api):
        daemonset = await cluster.daemonset()
        path = path_of(daemonset)
        await cluster.writer.merge(path, {"spec": {"template": {"spec": {"hostPID": False}}}})
        await cluster.until_found(path, lambda one: bool(one["spec"]["template"]["spec"].get("hostPID")))
        await cluster.writer.delete(path)
        await cluster.until_found(path, lambda one: one["metadata"]["uid"] != daemonset["metadata"]["uid"])
        await cluster.run_pods()
        await cluster.until_condition("Ready", "True", "AllNodesReady")
    before = [
        await cluster.writer.read(one) for one in (path, f"{CONFIGURATIONS}/default", f"{NAMESPACE}/configmaps")
    ]
    async with running_controller(cluster.api):  # another one, which knows nothing
        await cluster.configure("second", nodeSelector={"pool": "other"})
        await cluster.daemonset("second")
    after = [await cluster.writer.read(one) for one in (path, f"{CONFIGURATIONS}/default")]
    versions = [one["metadata"]["resourceVersion"] for one in before[:2]]
    assert [one["metadata"]["resourceVersion"] for one in after] == versions


async def test_a_configuration_that_means_a_node_of_another_makes_nothing_until_it_means_others(
    cluster: Cluster,
) -> None:
    async with running_controller(cluster.api):
        await cluster.configure("first")
        await cluster.daemonset("first")
        await cluster.configure("second")
        message = await cluster.until_condition("Conflict", "True", "NodesTaken", "second")
        assert message.startswith("node a is a node of the configuration first already")
        assert len((await cluster.writer.read(DAEMONSETS))["items"]) == 1
        assert (await cluster.configuration("second"))["status"]["error"] == message
        await cluster.writer.create("/api/v1/nodes", {"metadata": {"name": "d", "labels": {"pool": "other"}}})
        await cluster.configure("second", nodeSelector={"cloud.google.com/gke-nodepool": None, "pool": "other"})
        await cluster.until_condition("Conflict", "False", "NoConflict", "second")
        await cluster.daemonset("second")
        assert await cluster.events("second") == ["Conflict", "ConflictOver"]


async def test_images_that_are_missing_are_told_and_taken_up_when_they_come(cluster: Cluster) -> None:
    images = f"{NAMESPACE}/configmaps/checkpoint-image-config"
    await cluster.writer.delete(images)
    async with running_controller(cluster.api):
        await cluster.configure(gcsFuseMountOptions=["implicit-dirs"])
        message = await cluster.until_condition("Degraded", "True", "ImagesMissing")
        assert "config map checkpoint-image-config is missing" in message
        await cluster.give_images(**{"custom-image-config-name": "custom-checkpoint-image-config"})
        assert "registry.example/csi-image:1" in str(await cluster.daemonset())
        await cluster.until_condition("Degraded", "False", "OptionsNotNeeded")
        await cluster.writer.apply(
            f"{NAMESPACE}/configmaps/custom-checkpoint-image-config",
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "custom-checkpoint-image-config"},
                "data": {"csi-image": "mine/csi:2"},
            },
        )
        path = path_of(await cluster.daemonset())
        await cluster.configure(replicas=2)
        await cluster.until_found(path, lambda one: "mine/csi:2" in str(one))
        assert (await cluster.events())[0] == "ImagesMissing"


async def test_a_replica_waits_for_the_lease_of_one_that_died_or_acts_and_takes_it_when_that_one_ends(
    cluster: Cluster,
) -> None:
    dead = {"holderIdentity": "dead", "leaseDurationSeconds": 1}
    await cluster.writer.create(LEASES, {"metadata": {"name": LEASE}, "spec": dead})
    kept: dict[str, Any] = {
        "lease_namespace": SETTINGS.namespace,
        "times": Times(lease=2, renew_deadline=1.5, retry=0.1),
    }
    async with trio.open_nursery() as nursery:
        ends = trio.Event()

        async def run_first() -> None:
            async with running_controller(cluster.api, "one", **kept):
                await ends.wait()

        nursery.start_soon(run_first)
        await cluster.until_found(f"{LEASES}/{LEASE}", lambda one: one["spec"]["holderIdentity"] == "one")
        async with running_controller(cluster.api, "two", **kept):
            await cluster.configure()
            daemonset = await cluster.daemonset()
            assert (await cluster.writer.read(f"{LEASES}/{LEASE}"))["spec"]["holderIdentity"] == "one"
            ends.set()
            await cluster.until_found(f"{LEASES}/{LEASE}", lambda one: one["spec"]["holderIdentity"] == "two")
            await cluster.configure(replicas=2)
            await cluster.until_found(path_of(daemonset), lambda one: one["metadata"]["generation"] == 2)


async def test_who_loses_its_lease_ends(cluster: Cluster) -> None:
    kept: dict[str, Any] = {
        "lease_namespace": SETTINGS.namespace,
        "times": Times(lease=2, renew_deadline=1.5, retry=0.1),
    }
    with pytest.RaisesGroup(
        pytest.RaisesExc(LeadershipLost, match="another replica has taken it"), flatten_subgroups=True
    ):
        async with running_controller(cluster.api, **kept):
            await cluster.until_found(f"{LEASES}/{LEASE}", lambda one: one["spec"]["holderIdentity"] == "one")
            thief = {"holderIdentity": "thief", "leaseDurationSeconds": 60}

            async def steals() -> bool:  # unless a renewal of the holder's comes first
                await cluster.writer.merge(f"{LEASES}/{LEASE}", {"spec": thief})
                return False

            await until(steals)


async def test_the_api_server_may_be_restarted_and_nothing_is_doubled(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("api.unavailable", "reconcile.failed")
    async with running_controller(cluster.api):
        await cluster.configure()
        daemonset = await cluster.daemonset()
        await cluster.server.stop()
        await cluster.server.start()
        await cluster.configure(replicas=3)
        await cluster.until_found(path_of(daemonset), lambda one: one["metadata"]["generation"] == 2)
        assert len((await cluster.writer.read(DAEMONSETS))["items"]) == 1


async def test_the_program_says_that_it_is_ready_once_the_kind_is_known_and_ends_on_a_signal(
    api_server: ApiServer, tmp_path: Path
) -> None:
    with api_server.client as api:
        cluster = Cluster(api_server, api)
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(api_server.kubeconfig))
        (port,) = free_ports(1)
        command = [
            *(sys.executable, "-m", "controller.reconciling.cli", "--kubeconfig-path", str(path)),
            *("--http-endpoint", f"127.0.0.1:{port}", "--leader-election=true"),
        ]
        await cluster.writer.create("/api/v1/namespaces", {"metadata": {"name": SETTINGS.namespace}})
        with (tmp_path / "log").open("wb") as out:
            process = subprocess.Popen(command, stderr=out, stdout=out)  # noqa: ASYNC220
        try:

            def answers(path: str) -> bool:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
                        return bool(found.status == 200)
                except OSError:
                    return False

            async def is_well() -> bool:
                return await trio.to_thread.run_sync(answers, "/healthz")

            async def is_ready() -> bool:
                return await trio.to_thread.run_sync(answers, "/readyz")

            await until(is_well)
            assert not await is_ready(), "there is no such kind yet"
            await cluster.install_crd()
            await until(is_ready)
            os.kill(process.pid, signal.SIGTERM)
            assert await trio.to_thread.run_sync(process.wait) == 0
        finally:
            process.kill()
            process.wait()
        (lease,) = (await cluster.writer.read(LEASES))["items"]
        assert not lease["spec"].get("holderIdentity"), "the next one need not wait"
