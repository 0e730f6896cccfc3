"""Mistakes of operators: each is told in a condition and an event that say what to do, and is mended in passing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.client import ApiClient

from controller.driver import names
from controller.driver.images import KEYS
from controller.local.programs import TOOLS
from controller.reconciling.world import CONFIGURATIONS
from tests.controller.cluster import DAEMONSETS, DEFINITIONS, LABELS, NAMESPACE, Cluster, path_of, running_controller
from tests.controller.configurations import SETTINGS
from tests.harness.logs import ExpectedLogs

pytestmark = pytest.mark.kube
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ALL = ["get", "list", "watch", "create", "patch", "update", "delete"]


async def test_a_quantity_that_only_the_schema_understands_is_told_and_the_configuration_can_still_be_deleted(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("configuration.unreadable")
    async with running_controller(cluster.api):
        await cluster.configure(inMemoryVolumeSize="9e99")
        message = await cluster.until_condition("Degraded", "True", "SpecInvalid")
        assert message.startswith("spec.inMemoryVolumeSize: ")
        assert (await cluster.writer.read(DAEMONSETS))["items"] == []
        await cluster.configure(inMemoryVolumeSize="1Gi")
        path = path_of(await cluster.daemonset())
        await cluster.configure(inMemoryVolumeSize="9e98", nodeSelector={"pool": "nowhere"})
        await cluster.until_condition("Degraded", "True", "SpecInvalid")
        kept = await cluster.writer.read(path)
        assert "pool" not in kept["spec"]["template"]["spec"]["nodeSelector"], "nothing of it is changed"
        assert await cluster.events() == ["SpecInvalid", "SpecInvalid"]
        await cluster.writer.delete(f"{CONFIGURATIONS}/default")
        await cluster.until_found(path, lambda one: "deletionTimestamp" in one["metadata"])
        await cluster.writer.merge(path, {"metadata": {"finalizers": None}})
        await cluster.until_gone(f"{CONFIGURATIONS}/default")


async def test_a_config_map_of_images_that_lacks_a_key_is_told_which(cluster: Cluster) -> None:
    await cluster.give_images(**{KEYS[3]: ""})
    async with running_controller(cluster.api):
        await cluster.configure()
        message = await cluster.until_condition("Degraded", "True", "ImagesMissing")
        assert message == "the config map checkpoint-image-config lacks fuse-image: give each the name of an image"
        assert (await cluster.configuration())["status"]["error"] == message
        await cluster.until_event("ImagesMissing")
        await cluster.give_images()
        await cluster.daemonset()
        await cluster.until_condition("Degraded", "False", "AsWanted")


async def test_jobsets_that_are_not_installed_are_told_until_they_are(cluster: Cluster) -> None:
    definition = f"{DEFINITIONS}/{names.JOBSETS}"
    await cluster.writer.delete(definition)
    await cluster.until_gone(definition)
    async with running_controller(cluster.api):
        await cluster.configure()
        message = await cluster.until_condition("Degraded", "False", "JobSetsNotInstalled")
        assert message.endswith(f"If they are wanted: {names.JOBSET_COMMAND}")
        await cluster.until_event("JobSetsNotInstalled")
        await cluster.daemonset()
        await cluster.install_jobsets()
        await cluster.until_condition("Degraded", "False", "AsWanted")
        await cluster.writer.delete(definition)
        await cluster.until_condition("Degraded", "False", "JobSetsNotInstalled")


def test_the_command_that_installs_jobsets_is_the_guides() -> None:
    assert names.JOBSET_COMMAND in (TOOLS.parent / "docs/kubernetes.md").read_text()


Rule = tuple[str, str, Sequence[str]]  # group, resource, verbs


@asynccontextmanager
async def client_with(cluster: Cluster, *rules: Rule) -> AsyncIterator[ApiClient]:
    """One who has these rights, and no others."""
    await grant(cluster, *rules)
    with cluster.server.client as api:
        api.set_default_header("Impersonate-User", "limited")
        yield api


async def grant(cluster: Cluster, *rules: Rule) -> None:
    role: Mapping[str, Any] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "limited"},
        "rules": [{"apiGroups": [group], "resources": [name], "verbs": verbs} for group, name, verbs in rules],
    }
    await cluster.writer.apply(f"{RBAC}/clusterroles/limited", role)
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "limited"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "limited"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "limited"}],
    }
    await cluster.writer.apply(f"{RBAC}/clusterrolebindings/limited", binding)


CONFIGURE: tuple[Rule, ...] = (
    ("checkpointing.gke.io", "checkpointconfigurations", ALL),
    ("checkpointing.gke.io", "checkpointconfigurations/status", ALL),
    ("", "events", ALL),
    ("apiextensions.k8s.io", "customresourcedefinitions", ["list", "watch"]),
)
LOOK: tuple[Rule, ...] = (
    *CONFIGURE,
    ("", "nodes", ALL),
    ("", "configmaps", ALL),
    ("", "secrets", ALL),
    ("apps", "daemonsets", ["list", "watch"]),
)


async def test_an_account_that_may_not_look_is_told_what_it_lacks_and_goes_on_when_it_may(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("api.unavailable")
    async with client_with(cluster, *CONFIGURE) as api, running_controller(api):
        await cluster.configure()
        message = await cluster.until_condition("Degraded", "True", "Forbidden")
        assert 'User "limited" cannot list resource "nodes"' in message
        assert "kubectl apply -k deploy/multitier/controller" in message
        await cluster.until_event("Forbidden")
        assert (await cluster.writer.read(DAEMONSETS))["items"] == []
        await grant(cluster, *LOOK, ("apps", "daemonsets", ALL))
        await cluster.daemonset()
        await cluster.until_condition("Degraded", "False", "AsWanted")


async def test_an_account_that_may_look_but_not_write_is_told_so(
    cluster: Cluster, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("reconcile.failed")
    async with client_with(cluster, *LOOK) as api, running_controller(api):
        await cluster.configure()
        message = await cluster.until_condition("Degraded", "True", "Forbidden")
        assert 'cannot patch resource "daemonsets"' in message
        assert SETTINGS.namespace in message
        assert "kubectl apply -k deploy/multitier/controller" in message
        await grant(cluster, *LOOK, ("apps", "daemonsets", ALL))
        await cluster.daemonset()
        await cluster.until_condition("Degraded", "False", "AsWanted")
        assert (await cluster.events()).count("Forbidden") == 1, "told once, however often it is tried"


async def test_a_given_authority_signs_and_one_that_is_missing_or_none_is_told(cluster: Cluster) -> None:
    from controller.reconciling.authorities import is_trusted, new_authority, read_chain
    from controller.reconciling.certificates import encoded
    from controller.reconciling.issuing import AUTHORITY, RANKS

    secrets = f"{NAMESPACE}/secrets"
    async with running_controller(cluster.api):
        await cluster.until_found(f"{secrets}/{RANKS}", lambda _: True)
        await cluster.configure(tlsSecretName="mine")
        message = await cluster.until_condition("Degraded", "True", "TlsSecretUnusable")
        assert message.startswith(f"the Secret mine of the namespace {SETTINGS.namespace}, which tlsSecretName names")
        await cluster.until_event("TlsSecretUnusable")
        made = new_authority()
        given = {"tls.crt": made["ca.crt"], "tls.key": b"nonsense"}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}, "data": encoded(given)}
        await cluster.writer.create(secrets, body)
        await cluster.until_found(
            f"{CONFIGURATIONS}/default", lambda one: "no PEM private key" in one["status"]["error"]
        )
        await cluster.writer.merge(f"{secrets}/mine", {"data": encoded({"tls.key": made["ca.key"]})})
        await cluster.daemonset()
        await cluster.until_condition("Degraded", "False", "AsWanted")
        found = await cluster.certificates()
        assert is_trusted(read_chain(found["a.crt"]), read_chain(made["ca.crt"]))
        assert read_chain(made["ca.crt"])[0] in read_chain(found["ca.crt"])
        ranks = await cluster.until_found(
            f"{secrets}/{RANKS}", lambda one: one["data"]["ca.crt"] == encoded(found)["ca.crt"]
        )
        ours = (await cluster.writer.read(f"{secrets}/{AUTHORITY}"))["data"]["ca.crt"]
        assert len(read_chain(found["ca.crt"])) == 2, "the ranks server's is of ours still, and will be renewed"
        assert ours not in ranks["data"]["ca.crt"]
        await cluster.configure(tlsSecretName=None)
        await cluster.until_condition("Degraded", "False", "AsWanted")
        assert (await cluster.certificates())["a.crt"] == found["a.crt"], "it is replaced when all trust ours"


async def test_one_nodes_name_keeps_no_other_from_its_certificate(cluster: Cluster) -> None:
    long = f"{'a' * 60}.{'b' * 60}"
    for name in ("ca", long):
        await cluster.writer.create("/api/v1/nodes", {"metadata": {"name": name, "labels": LABELS}})
    async with running_controller(cluster.api):
        await cluster.configure()
        message = await cluster.until_condition("Degraded", "True", "NodesWithoutCertificates")
        assert f"{long!r} can not stand in a certificate: use at most 64" in message
        assert "'ca'" not in message
        await cluster.until_event("NodesWithoutCertificates")
        await cluster.daemonset()
        found = await cluster.certificates()
        assert {"_ca.crt", "ca.key", *(f"{node}.{kind}" for node in "abc" for kind in ("crt", "key"))} < set(found)
        assert f"{long}.crt" not in found
        await cluster.writer.delete(f"/api/v1/nodes/{long}")
        await cluster.until_condition("Degraded", "False", "AsWanted")
