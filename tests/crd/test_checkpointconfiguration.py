"""The schema of a CheckpointConfiguration, as a real API server understands it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from kubernetes.client.exceptions import ApiException

from controller.local.kube import ApiServer, running_api_server
from fuse_tier.config import BackupConfig, KeepBucketConfig, KeepConfig, LimitsConfig, NodeConfig, RamConfig
from fuse_tier.quantities import parse_size
from tests.harness.waiting import until

ROOT = Path(__file__).parents[2]
CRD: dict[str, Any] = yaml.safe_load((ROOT / "crd/checkpointconfiguration.yaml").read_text())
EXAMPLE: dict[str, Any] = yaml.safe_load((ROOT / "examples/checkpointconfiguration.yaml").read_text())
(VERSION,) = CRD["spec"]["versions"]
SPEC: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
CONFIGURATIONS = "/apis/checkpointing.gke.io/v1/checkpointconfigurations"

# As users of the system that this one replaces have them.
REPLACED = """
apiVersion: checkpointing.gke.io/v1
kind: CheckpointConfiguration
metadata:
  name: my-checkpointconfiguration
spec:
  cloudStorageBucketName: my_bucket.example.com
  enableExternalJaxProcessIds: true
  nodeSelector:
    node.kubernetes.io/instance-type: ct5lp-hightpu-4t
  tolerations:
  - key: google.com/tpu
    operator: Exists
    effect: NoSchedule
  inMemoryVolumeSize: 200Gi
  csiEphemeralLimit: 5Gi
  gcsFuseMountOptions:
  - implicit-dirs
  - metadata-cache:negative-ttl-secs:0
"""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a bucket that is missing": ({"cloudStorageBucketName": None}, "cloudStorageBucketName: Required value"),
    "a URL for a bucket": ({"cloudStorageBucketName": "gs://checkpoints"}, "cloudStorageBucketName"),
    "capitals in a bucket": ({"cloudStorageBucketName": "Checkpoints"}, "cloudStorageBucketName"),
    "a bucket that nobody can have": ({"cloudStorageBucketName": "google-ckpt"}, "names begin with goog"),
    "a prefix that leads out": ({"cloudStoragePrefix": "a/../b"}, "no part of the path may be . or .."),
    "a prefix with a slash at its end": ({"cloudStoragePrefix": "a/"}, "cloudStoragePrefix"),
    "an endpoint without a scheme": ({"cloudStorageEndpoint": "localhost:4443"}, "cloudStorageEndpoint"),
    "no size": ({"inMemoryVolumeSize": None}, "inMemoryVolumeSize: Required value"),
    "a size in no unit": ({"inMemoryVolumeSize": "64 gigabytes"}, "inMemoryVolumeSize"),
    "a negative size": ({"inMemoryVolumeSize": "-1Gi"}, "inMemoryVolumeSize"),
    "a size that holds nothing": ({"inMemoryVolumeSize": "1Mi"}, "at least 16Mi"),
    "a number that holds nothing": ({"inMemoryVolumeSize": 5}, "at least 16Mi"),
    "a selector that is no map": ({"nodeSelector": ["pool"]}, "nodeSelector"),
    "a toleration with a value that is not compared": (
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "operator Exists has no value",
    ),
    "a toleration of nothing": ({"tolerations": [{"value": "b"}]}, "needs operator Exists"),
    "a toleration with an unknown effect": (
        {"tolerations": [{"operator": "Exists", "effect": "NoSchedul"}]}, "supported values",
    ),
    "a time for what has none": (
        {"tolerations": [{"operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3}]}, "only effect",
    ),
    "two rules for backups": ({"backup": {"every": "30m", "steps": 100}}, "give one of the two"),
    "an interval in no unit": ({"backup": {"every": "30"}}, "backup.every"),
    "backups of no step": ({"backup": {"steps": 0}}, "backup.steps"),
    "no checkpoint to keep": ({"keep": {"ram": 0}}, "keep.ram"),
    "a wait for peers without copies": ({"fsync": "peer", "replicas": 0}, "'peer' would wait for ever"),
    "room for copies without copies": ({"reserve": "1Gi", "replicas": 0}, "of which there are none"),
    "a limit that says nothing of time": ({"limits": {"bulk": "10GB"}}, "limits.bulk"),
    "no processor": ({"limits": {"bucketCpu": 0}}, "limits.bucketCpu"),
    "an unknown mode": ({"passthrough": "maybe"}, "supported values"),
}  # fmt: skip


def with_spec(changes: dict[str, Any]) -> dict[str, Any]:
    found = deepcopy(EXAMPLE)
    found["spec"] = {key: value for key, value in (found["spec"] | changes).items() if value is not None}
    return found


async def install(server: ApiServer) -> None:
    await server.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", CRD)

    async def is_served() -> bool:
        try:
            await get(server, CONFIGURATIONS)
        except ApiException as error:
            assert error.status in (404, 503), error
            return False
        return True

    await until(is_served)


async def get(server: ApiServer, path: str, accept: str = "application/json") -> Any:
    def ask() -> Any:
        with server.client as api:
            answer = api.call_api(
                path,
                "GET",
                header_params={"Accept": accept},
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
            )
            return json.loads(answer.data)

    return await trio.to_thread.run_sync(ask)


async def test_what_cannot_be_meant_is_refused_with_the_field_and_the_reason(tmp_path: Path) -> None:
    async with running_api_server(tmp_path / "kube") as server:
        await install(server)
        for what, (changes, message) in REFUSED.items():
            with pytest.raises(ApiException) as refused:
                await server.create(f"{CONFIGURATIONS}?dryRun=All", with_spec(changes))
            assert refused.value.status == 422, (what, refused.value.body)
            assert message in str(refused.value.body), (what, refused.value.body)


async def test_the_example_and_manifests_of_the_replaced_system_are_taken_and_what_is_left_out_is_filled_in(
    tmp_path: Path,
) -> None:
    async with running_api_server(tmp_path / "kube") as server:
        await install(server)
        old = await server.create(CONFIGURATIONS, yaml.safe_load(REPLACED))
        assert old["spec"].items() >= yaml.safe_load(REPLACED)["spec"].items()
        assert (await server.create(CONFIGURATIONS, with_spec({"inMemoryVolumeSize": 1 << 30})))["spec"]["keep"] == {
            "ram": 2, "bucket": {"last": 5, "hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}
        }  # fmt: skip

        # The status is the controller's: who writes a spec does not touch it, and it fills kubectl's columns.
        path = f"{CONFIGURATIONS}/default"
        found = await get(server, path)
        found["status"] = {
            "observedGeneration": 1,
            "nodesReady": 2,
            "nodesDesired": 3,
            "volumes": 4,
            "lastCompleteStep": 500,
            "lastBackupTime": found["metadata"]["creationTimestamp"],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "NodesNotReady",
                    "message": "2 of 3 nodes",
                    "observedGeneration": 1,
                    "lastTransitionTime": found["metadata"]["creationTimestamp"],
                }
            ],
        }
        await server.replace_status(path, found)
        table = await get(server, path, "application/json;as=Table;v=v1;g=meta.k8s.io")
        names = [column["name"] for column in table["columnDefinitions"]]
        assert names == ["Name", "Bucket", "Ready", "Desired", "Volumes", "Step", "Backup", "Age"]
        assert table["rows"][0]["cells"][:6] == ["default", "my-checkpoints", 2, 3, 4, 500]


def test_every_field_has_a_description() -> None:
    schema = VERSION["schema"]["openAPIV3Schema"]
    without = [path for path, field in fields(schema, "") if not field.get("description")]
    assert without == [".metadata"]  # of which the API server has one, and lets nobody say anything


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from fields(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], f"{path}[]")


def test_what_a_node_can_be_told_has_the_same_names_and_defaults_here() -> None:
    """So that what is not set means the same with and without Kubernetes."""

    def defaults(model: Any, properties: dict[str, Any], *names: str) -> None:
        for name in names:
            field = next(one for key, one in model.model_fields.items() if (one.alias or key) == name)
            assert properties[name].get("default") == field.default, name

    defaults(NodeConfig, SPEC, "replicas", "encryptPeerTraffic", "fsync", "passthrough")
    defaults(KeepConfig, SPEC["keep"]["properties"], "ram")
    defaults(KeepBucketConfig, SPEC["keep"]["properties"]["bucket"]["properties"], *KeepBucketConfig.model_fields)
    defaults(BackupConfig, SPEC["backup"]["properties"], *BackupConfig.model_fields)
    defaults(LimitsConfig, SPEC["limits"]["properties"], "bulk", "bucket", "bucketCpu")
    assert SPEC["inMemoryVolumeWarm"]["default"] is RamConfig.model_fields["warm"].default
    assert SPEC["drain"]["default"] == f"{NodeConfig.model_fields['drain'].default:g}s"


def test_sizes_that_the_schema_takes_are_sizes_for_a_node() -> None:
    assert [parse_size(size) for size in ("200Gi", "1.5Ti", "500M", "1e9", "1024", 5)] == [
        200 << 30, 3 << 39, 500_000_000, 10**9, 1024, 5
    ]  # fmt: skip
