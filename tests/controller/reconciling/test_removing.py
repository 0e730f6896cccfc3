"""The end of a configuration: its nodes are cleaned before it goes. Kubernetes' garbage collector is the test."""

from __future__ import annotations

import pytest

from controller.driver import names
from controller.reconciling.world import CONFIGURATIONS
from tests.controller.cluster import DAEMONSETS, NAMESPACE, Cluster, path_of, running_controller
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
        message = await cluster.until_condition("Progressing", "True", "CleaningNodes")
        assert message.startswith("2 of 3 nodes are clean: kubectl logs --namespace gke-managed-checkpointing -l ")
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
