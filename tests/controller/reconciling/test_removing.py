"""The end of a configuration: its nodes are cleaned before it goes. Kubernetes' garbage collector is the test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from controller.driver import names
from controller.reconciling.world import CONFIGURATIONS
from tests.controller.cluster import DAEMONSETS, EVENTS, NAMESPACE, Cluster, path_of, running_controller
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.kube
CONFIGURATION = f"{CONFIGURATIONS}/default"


async def cleaner_after_the_driver(cluster: Cluster) -> str:
    """Deletes the configuration; gives the path of the daemonset that cleans its nodes."""
    driver = await cluster.daemonset()
    uid = (await cluster.configuration())["metadata"]["uid"]
    await cluster.writer.delete(CONFIGURATION)
    cleaner = f"{DAEMONSETS}/{names.cleaner_name(uid)}"
    assert await cluster.is_gone(cleaner)
    await cluster.remove_daemonset(path_of(driver))
    return cleaner


async def test_a_configuration_goes_when_its_nodes_are_clean_and_until_then_no_other_has_them(
    cluster: Cluster,
) -> None:
    await cluster.let_nodes_answer()
    async with running_controller(cluster.api):
        config_map = f"{NAMESPACE}/configmaps/{names.daemonset_name((await cluster.configure())['metadata']['uid'])}"
        cleaner = await cleaner_after_the_driver(cluster)
        made = await cluster.until_found(cleaner, lambda _: True)
        (container,) = made["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["fuse-tier-clean"]
        assert container["image"] == "registry.example/csi-image:1"
        await cluster.configure("other")
        await cluster.until_condition("Conflict", "True", "NodesTaken", "other")
        await cluster.run_pods(path=cleaner, ready=2)
        told = "2 of 3 nodes are clean: kubectl logs --namespace gke-managed-checkpointing -l "
        await cluster.until_condition("Progressing", "True", "CleaningNodes", begins=told)
        assert (await cluster.conditions())["Ready"] == ("False", "BeingDeleted")
    # Another replica goes on where that one was.
    async with running_controller(cluster.api, "two"):
        await cluster.run_pods(path=cleaner, ready=2)
        assert not await cluster.is_gone(config_map)
        await cluster.run_pods(path=cleaner, ready=3)
        await cluster.until_gone(config_map)
        assert names.FINALIZER in (await cluster.configuration())["metadata"]["finalizers"]
        assert await cluster.conditions("other") and "NodesTaken" in str(await cluster.conditions("other"))
        await cluster.remove_daemonset(cleaner)
        await cluster.until_gone(CONFIGURATION)
        await cluster.daemonset("other")


async def test_a_node_of_another_living_configuration_is_not_cleaned_and_not_waited_for(cluster: Cluster) -> None:
    await cluster.let_nodes_answer()
    async with running_controller(cluster.api):
        await cluster.configure()
        await cluster.configure("other", nodeSelector={"pool": "others"})
        await cluster.daemonset("other")
        await cluster.writer.merge("/api/v1/nodes/b", {"metadata": {"labels": {"pool": "others"}}})
        cleaner = await cleaner_after_the_driver(cluster)
        await cluster.until_found(cleaner, lambda one: keeps_from(one) == ["b"])
        await cluster.writer.merge("/api/v1/nodes/c", {"metadata": {"labels": {"pool": "others"}}})
        await cluster.until_found(cleaner, lambda one: keeps_from(one) == ["b", "c"])
        await cluster.run_pods(path=cleaner, ready=1)
        await cluster.remove_daemonset(cleaner)
        await cluster.until_gone(CONFIGURATION)


def keeps_from(cleaner: Mapping[str, Any]) -> list[str]:
    """Names of nodes."""
    affinity = cleaner["spec"]["template"]["spec"].get("affinity")
    if affinity is None:
        return []
    ((term,),) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].values()
    assert all((one["key"], one["operator"]) == ("metadata.name", "NotIn") for one in term["matchFields"])
    return [name for one in term["matchFields"] for name in one["values"]]


async def test_nodes_are_cleaned_too_when_kubernetes_takes_all_at_once(cluster: Cluster) -> None:
    """``--cascade=foreground``: also what says that they are not clean."""
    await cluster.let_nodes_answer()
    async with running_controller(cluster.api):
        uid = (await cluster.configure())["metadata"]["uid"]
        driver = await cluster.daemonset()
        await cluster.until_condition("Ready", "False", "NotSeen")
        await cluster.writer.delete(CONFIGURATION, "Foreground")
        await cluster.writer.delete(f"{NAMESPACE}/configmaps/{names.daemonset_name(uid)}")
        for name in names.certificates_names(uid):
            await cluster.writer.delete(f"{NAMESPACE}/secrets/{name}")
        await cluster.writer.merge(CONFIGURATION, {"metadata": {"finalizers": [names.FINALIZER]}})
        await cluster.remove_daemonset(path_of(driver))
        cleaner = f"{DAEMONSETS}/{names.cleaner_name(uid)}"
        await cluster.run_pods(path=cleaner, ready=2)
        await cluster.until_condition("Progressing", "True", "CleaningNodes")
    async with running_controller(cluster.api, "two"):
        assert names.FINALIZER in (await cluster.configuration())["metadata"]["finalizers"]
        await cluster.run_pods(path=cleaner, ready=3)
        await cluster.remove_daemonset(cleaner)
        await cluster.until_gone(CONFIGURATION)


async def test_what_of_the_driver_has_not_ended_is_told_with_the_command_that_shows_it(cluster: Cluster) -> None:
    async with running_controller(cluster.api):
        uid = (await cluster.configure())["metadata"]["uid"]
        await cluster.daemonset()
        await cluster.writer.delete(CONFIGURATION)
        message = await cluster.until_condition("Progressing", "True", "BeingDeleted")
        assert f"--namespace gke-managed-checkpointing -l {names.UID_LABEL}={uid} shows" in message
        assert (await cluster.conditions())["Ready"] == ("False", "BeingDeleted")


async def test_nodes_that_do_not_become_clean_are_given_up_and_told(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("nodes.not_cleaned")
    await cluster.let_nodes_answer()
    async with running_controller(cluster.api, clean_seconds=0.5):
        await cluster.configure()
        cleaner = await cleaner_after_the_driver(cluster)
        await cluster.run_pods(path=cleaner, ready=1)
        await cluster.until_event("NodesNotCleaned")
        told = [one["message"] for one in (await cluster.writer.read(EVENTS))["items"]]
        assert any(one.startswith("1 of 3 nodes are clean after 0.5 s; ") for one in told), told
        await cluster.remove_daemonset(cleaner)
        await cluster.until_gone(CONFIGURATION)


async def test_without_images_nothing_can_clean_which_is_told_and_keeps_nobody(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("nodes.not_cleaned")
    await cluster.let_nodes_answer()
    async with running_controller(cluster.api):
        await cluster.configure()
        await cluster.daemonset()
        await cluster.writer.delete(f"{NAMESPACE}/configmaps/checkpoint-image-config")
        await cluster.until_condition("Degraded", "True", "ImagesMissing")
        cleaner = await cleaner_after_the_driver(cluster)
        await cluster.until_gone(CONFIGURATION)
        assert await cluster.is_gone(cleaner)
        await cluster.until_event("NodesNotCleaned")


async def test_nodes_that_do_not_answer_are_not_waited_for(cluster: Cluster) -> None:
    """As new ones in this cluster do not, where nobody is their kubelet."""
    async with running_controller(cluster.api):
        await cluster.configure()
        await cleaner_after_the_driver(cluster)
        await cluster.until_gone(CONFIGURATION)
