"""Driver pods that stay unready are made anew; kubelets and the daemonset controller are played by the test."""

from __future__ import annotations

from typing import Any

import pytest

from controller.reconciling.uptime import DriverPod, next_one, read_pod
from tests.controller.cluster import NAMESPACE, Cluster, path_of, running_controller
from tests.harness.logs import ExpectedLogs

PODS = f"{NAMESPACE}/pods"


def pod(name: str, node: str = "a", *, is_ready: bool = False) -> DriverPod:
    return DriverPod(name, f"uid-{name}", node, "c", is_ready, is_ending=False)


def test_the_one_that_has_been_unready_for_longest_is_next_and_those_of_silent_nodes_never_are() -> None:
    unready = {pod("x", "a"): 10.0, pod("y", "b"): 5.0, pod("z", "c"): 1.0}
    assert next_one(unready, {"a", "b"}, 300) == (pod("y", "b"), 305.0)
    assert next_one(unready, set(), 300) is None
    assert next_one({}, {"a"}, 300) is None


def test_a_pod_without_a_word_of_its_readiness_is_not_ready() -> None:
    found: dict[str, Any] = {"metadata": {"name": "x", "uid": "u"}}
    assert not read_pod(found).is_ready
    found["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    assert read_pod(found).is_ready


@pytest.mark.kube
async def test_of_pods_that_stay_unready_one_is_deleted_and_then_there_is_a_pause(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("uptime.pod_deleted")
    await cluster.configure()
    for node in "abc":
        await cluster.run_pod(node)
    unreachable = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
    await cluster.writer.merge("/api/v1/nodes/a", {"spec": {"taints": [unreachable]}})
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    await cluster.writer.merge(f"{PODS}/driver-c/status", {"status": ready})

    async def ending() -> list[str]:
        found = (await cluster.writer.read(PODS))["items"]
        return [one["metadata"]["name"] for one in found if "deletionTimestamp" in one["metadata"]]

    async with running_controller(cluster.api, uptime_backoff=3600.0, uptime_grace=0.3):
        await cluster.until_found(f"{PODS}/driver-b", lambda one: "deletionTimestamp" in one["metadata"])
        await cluster.until_event("DriverPodDeleted")
        not_ready = {"conditions": [{"type": "Ready", "status": "False"}]}
        await cluster.writer.merge(f"{PODS}/driver-c/status", {"status": not_ready})
        await cluster.configure(replicas=2)
        await cluster.until_found(path_of(await cluster.daemonset()), lambda one: one["metadata"]["generation"] == 2)
        assert await ending() == ["driver-b"], "the node of one does not answer, and for the other there is a pause"
    async with running_controller(cluster.api, uptime_backoff=0.1, uptime_grace=0.1):
        await cluster.until_found(f"{PODS}/driver-c", lambda one: "deletionTimestamp" in one["metadata"])
        assert sorted(await ending()) == ["driver-b", "driver-c"]
