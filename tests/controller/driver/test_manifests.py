from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller.driver.configuration import read_storage
from controller.driver.images import KEYS, choose_images
from controller.driver.manifests import config_map, daemonset
from fuse_tier.config import NodeConfig, load_node_config
from fuse_tier.errors import ConfigError
from tests.controller.configurations import IMAGES, SETTINGS, UID, configuration


def template(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = daemonset(configuration(**spec), IMAGES, SETTINGS)["spec"]["template"]
    return found


def container(name: str, **spec: Any) -> dict[str, Any]:
    (found,) = [one for one in template(**spec)["spec"]["containers"] if one["name"] == name]
    return dict(found)


def node_config_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> NodeConfig:
    """What a node's processes read, in the environment that their containers have."""
    given = {"spec.nodeName": "gke-pool-1", "status.hostIP": "10.1.2.3", "metadata.uid": "pod"}
    for variable in container("fuse")["env"]:
        monkeypatch.setenv(variable["name"], given[variable["valueFrom"]["fieldRef"]["fieldPath"]])
    path = tmp_path / "node.yaml"
    path.write_text(config_map(configuration(**spec), SETTINGS)["data"]["node.yaml"])
    return load_node_config(path)


def test_a_node_reads_what_the_configuration_says_with_its_own_name_and_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = node_config_of(
        tmp_path, monkeypatch, cloudStoragePrefix="a/b", inMemoryVolumeSize="5000000001", replicas=2, reserve="1Gi",
        fsync="peer", passthrough="off", drain="2m", encryptPeerTraffic=False, limits={"bulk": "10Gbps"},
        keep={"ram": 3, "bucket": {"last": 4, "daily": 7}}, cloudStorageEndpoint="http://storage.test:4443",
        backup={"steps": 100}, inMemoryVolumeWarm=True,
    )  # fmt: skip
    assert (found.node, str(found.listen.control), str(found.metrics)) == (
        "gke-pool-1", "10.1.2.3:7460", "10.1.2.3:7462"
    )  # fmt: skip
    assert str(found.coordinator) == "high-scale-checkpointing-controller.gke-managed-checkpointing.svc:19346"
    assert found.ram.size == 4769 << 20, "rounded up to MiB"
    assert found.ram.warm
    assert found.bucket
    assert (found.bucket.url, found.bucket.endpoint) == ("gs://my-checkpoints/a/b", "http://storage.test:4443")
    assert (found.replicas, found.reserve, found.fsync, found.passthrough) == (2, 1 << 30, "peer", "off")
    assert (found.drain, found.encrypt_peer_traffic, found.limits.bulk) == (120.0, False, 1_250_000_000)
    assert (found.keep.ram, found.keep.bucket.last, found.keep.bucket.daily) == (3, 4, 7)
    assert found.backup.steps == 100
    assert found.tls
    assert found.tls.cert == "/etc/fuse-tier/tls/gke-pool-1.crt"


def test_an_object_from_before_a_field_came_makes_a_node_of_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = node_config_of(tmp_path, monkeypatch, backup=None, nodeSelector=None, tolerations=None)
    assert (found.replicas, found.fsync, found.drain, found.keep.ram) == (1, "ram", 30.0, 2)
    assert not found.ram.warm


def test_the_pod_has_the_five_containers_that_the_manual_shows_and_no_port_that_keeps_another_pod_off() -> None:
    found = template()["spec"]
    names = [one["name"] for one in found["containers"]]
    assert names == ["registrar", "liveness-probe", "csi", "fuse", "replication-worker"]
    assert [one["image"] for one in found["containers"]] == [f"registry.example/{key}:1" for key in KEYS]
    assert not any("ports" in one for one in found["containers"])
    assert found["hostNetwork"] is found["hostPID"] is True
    assert found["priorityClassName"] == "system-node-critical"


def test_only_the_container_that_mounts_is_privileged_and_the_others_have_what_they_use() -> None:
    contexts = {one["name"]: one["securityContext"] for one in template()["spec"]["containers"]}
    assert [name for name, context in contexts.items() if context.get("privileged")] == ["fuse"]
    added = {name: context["capabilities"].get("add", []) for name, context in contexts.items() if name != "fuse"}
    assert added == {
        "registrar": [],
        "liveness-probe": [],
        "csi": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "LINUX_IMMUTABLE"],
        "replication-worker": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "LEASE", "MKNOD"],
    }
    for name in added:
        assert contexts[name]["capabilities"]["drop"] == ["ALL"], name
        assert contexts[name]["allowPrivilegeEscalation"] is False, name
        assert contexts[name]["readOnlyRootFilesystem"] is True, name


def test_mounts_pass_between_host_and_containers_as_each_needs_them() -> None:
    propagation = {
        one["name"]: {
            mount["name"]: mount["mountPropagation"] for mount in one["volumeMounts"] if "mountPropagation" in mount
        }
        for one in template()["spec"]["containers"]
    }
    assert propagation == {
        "registrar": {},
        "liveness-probe": {},
        "csi": {"ram": "HostToContainer", "pods": "HostToContainer"},
        "fuse": {"ram": "Bidirectional", "pods": "Bidirectional"},
        "replication-worker": {"ram": "HostToContainer"},
    }


def test_every_mount_has_its_volume_and_every_volume_is_mounted() -> None:
    spec = template()["spec"]
    mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_what_pods_are_told_in_their_arguments_is_taken_by_the_programs() -> None:
    from click.testing import CliRunner

    from csi.cli import plugin
    from fuse_tier.cli.running import node

    for name, command in (("csi", plugin), ("fuse", node), ("replication-worker", node)):
        args = container(name, enableExternalJaxProcessIds=True)["args"]
        found = CliRunner().invoke(command, [arg.replace("$(HOST_IP)", "10.0.0.1") for arg in args])
        assert "no such file" in str(found.exception), (name, found.output)


def test_a_pod_may_end_as_slowly_as_copies_are_waited_for() -> None:
    assert template(drain="2m")["spec"]["terminationGracePeriodSeconds"] == 150


def test_a_change_of_what_nodes_are_told_rolls_and_an_equal_configuration_gives_equal_manifests() -> None:
    first = daemonset(configuration(), IMAGES, SETTINGS)
    assert json.dumps(first) == json.dumps(daemonset(configuration(), IMAGES, SETTINGS))
    assert template(replicas=2) != template()
    assert (
        first["metadata"]["annotations"]
        != daemonset(configuration(replicas=2), IMAGES, SETTINGS)["metadata"]["annotations"]
    )
    assert first["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_sidecars_of_two_pods_that_are_on_a_node_at_once_listen_at_addresses_of_their_own() -> None:
    def endpoint(**spec: Any) -> str:
        (found,) = [arg for arg in container("liveness-probe", **spec)["args"] if "http-endpoint" in arg]
        return str(found).partition("=")[2]

    assert endpoint().startswith("127.")
    assert endpoint() != endpoint(replicas=2)
    probe = container("csi")["readinessProbe"]["httpGet"]
    assert f"{probe['host']}:{probe['port']}" == endpoint()


def test_a_daemonset_tells_what_its_nodes_keep_and_where() -> None:
    found = configuration(cloudStorageEndpoint="http://storage.test:4443")
    made = daemonset(found, IMAGES, SETTINGS)
    assert read_storage(made) == found.storage
    assert read_storage({"metadata": {"name": "another's"}}) is None
    assert made["metadata"]["name"] == f"multitier-driver-{UID}"


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"inMemoryVolumeSize": "32Gi"}, ["inMemoryVolumeSize would shrink from 65536Mi to 32768Mi"]),
        ({"cloudStoragePrefix": "b"}, ["backups would go to gs://my-checkpoints/b instead of gs://my-checkpoints"]),
        ({"cloudStorageEndpoint": "http://a"}, ["backups would go to gs://my-checkpoints at http://a instead of"]),
        ({"cloudStorageBucketName": "other", "inMemoryVolumeSize": "1Gi"}, ["inMemoryVolumeSize", "backups would"]),
        ({"inMemoryVolumeSize": "128Gi", "replicas": 2}, []),
    ],
)
def test_a_change_that_loses_data_says_which(changes: dict[str, Any], reasons: list[str]) -> None:
    found = configuration().storage.loses(configuration(**changes).storage)
    assert len(found) == len(reasons)
    assert all(one.startswith(reason) for one, reason in zip(found, reasons, strict=True)), found


def test_images_are_overridden_key_by_key() -> None:
    given = {key: f"given/{key}" for key in KEYS} | {"custom-image-config-name": "custom"}
    assert choose_images("images", {"images": given}).csi == "given/csi-image"
    images = choose_images("images", {"images": given, "custom": {"csi-image": "mine:2"}})
    assert (images.csi, images.fuse) == ("mine:2", "given/fuse-image")


def test_images_that_are_missing_are_named_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match="config map images is missing: kubectl apply -k"):
        choose_images("images", {})
    with pytest.raises(ConfigError, match="images lacks csi-image, fuse-image: give each"):
        choose_images("images", {"images": dict.fromkeys(KEYS, "x") | {"csi-image": "", "fuse-image": " "}})
