"""What the doctor finds, on real parts that are well or broken, and that it says how to mend each."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuse_tier.config import BucketConfig, NodeConfig, node_config
from fuse_tier.doctor import Finding, State, bucket, certificates, clock, examine
from fuse_tier.doctor.machine import examine as examine_machine
from fuse_tier.emulator import Emulator, running_emulator
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.tiers.bucket import BucketTier
from fuse_tier.tiers.bucket_settings import deletes
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles
from tests.cli.conftest import run
from tests.harness.clusters import Clusters
from tests.tiers.faulty_http import Fault, faulty
from tests.wire.certificates import make_certificates, self_made


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def a_node(directory: Path, tls: TlsFiles | None = None, **changes: Any) -> NodeConfig:
    control, bulk = free_ports(2)
    values: dict[str, Any] = {
        "node": "a",
        "ram": {"path": str(directory), "size": "16MiB"},
        "socket": str(directory / "node.sock"),
        "listen": {"control": f"127.0.0.1:{control}", "bulk": f"127.0.0.1:{bulk}"},
    }
    if tls is not None:
        values["tls"] = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
    return node_config(values | changes)


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with running_emulator("checkpoints") as emulator:
        yield emulator


# ---- the machine ----


@pytest.mark.fuse
def test_a_mount_is_tried_and_nothing_of_it_stays(tmp_path: Path) -> None:
    before = Path("/proc/self/mounts").read_text()
    found = by_check(examine_machine(None, "auto"))
    assert [finding.state for finding in (found["fuse.device"], found["fuse.mount"])] == [State.OK, State.OK]
    assert found["fuse.passthrough"].state in (State.OK, State.WARNING)
    assert Path("/proc/self/mounts").read_text() == before


def test_a_ram_tier_larger_than_memory_is_told(tmp_path: Path) -> None:
    config = a_node(tmp_path, ram={"path": str(tmp_path), "size": "900TiB"})
    finding = by_check(examine_machine(config.ram, "off"))["ram.size"]
    assert finding.state is State.FAILED
    assert finding.remedy


def test_a_clock_that_is_off_is_told_and_one_that_is_far_off_is_a_failure() -> None:
    assert clock.examine(0.7).state is State.OK
    assert clock.examine(60).state is State.WARNING
    assert "behind" in clock.examine(60).detail
    finding = clock.examine(-86_400)
    assert finding.state is State.FAILED
    assert "1d 0h ahead" in finding.detail
    assert finding.remedy


# ---- certificates ----


def states(config: NodeConfig) -> dict[str, State]:
    return {finding.check: finding.state for finding in certificates.examine(config)}


def test_certificates_that_are_well_are_well(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    assert set(states(a_node(tmp_path, made.a)).values()) == {State.OK}
    assert set(states(a_node(tmp_path)).values()) == {State.OK}


def test_each_way_in_which_a_certificate_is_no_use_is_told_with_the_command_that_renews_it(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    soon = make_certificate(str(tmp_path / "ours"), "a", life=datetime.timedelta(days=9))
    mixed = TlsFiles(made.b.ca, made.b.cert, made.a.key)
    for files, node, check, state in (
        (made.expired, "old", "tls.expiry", State.FAILED),
        (soon, "a", "tls.expiry", State.WARNING),
        (made.b, "a", "tls.name", State.FAILED),
        (made.intruder, "a", "tls.authority", State.FAILED),
        (mixed, "b", "tls.files", State.FAILED),
        (TlsFiles(made.b.ca, made.b.cert, str(tmp_path / "none.key")), "b", "tls.files", State.FAILED),
    ):
        finding = by_check(certificates.examine(a_node(tmp_path, files, node=node)))[check]
        assert finding.state is state, (check, finding)
        assert "fuse-tier tls issue" in finding.remedy


@pytest.mark.parametrize(
    ("names", "lacking"), [(("fuse-tier",), "'a'"), (("a",), "'fuse-tier'"), (("fuse-tier", "a"), "")]
)
def test_a_certificate_that_was_made_otherwise_has_the_names_by_which_nodes_are_called(
    tmp_path: Path, names: tuple[str, ...], lacking: str
) -> None:
    make_authority(str(tmp_path))
    config = a_node(tmp_path, self_made(tmp_path, "a", *names))
    finding = by_check(certificates.examine(config))["tls.name"]
    assert finding.state is (State.FAILED if lacking else State.OK)
    assert not lacking or f"lacks the DNS name {lacking}, under which others call it" in finding.detail


def test_a_key_that_others_may_read_is_told(tmp_path: Path) -> None:
    make_authority(str(tmp_path))
    files = make_certificate(str(tmp_path), "a")
    Path(files.key).chmod(0o644)
    assert states(a_node(tmp_path, files))["tls.files"] is State.WARNING


# ---- the bucket ----


async def found_in(url: str, endpoint: str) -> tuple[dict[str, Finding], list[float]]:
    ahead: list[float] = []
    findings = await bucket.examine(BucketConfig(url=url, endpoint=endpoint), ahead)
    return by_check(findings), ahead


async def test_in_a_bucket_that_is_well_all_is_tried_and_nothing_stays(emulator: Emulator) -> None:
    found, ahead = await found_in("gs://checkpoints/team", emulator.endpoint)
    assert {finding.state for finding in found.values()} == {State.OK}
    assert abs(ahead[0]) < 5
    with faulty(emulator.endpoint) as proxy:
        await found_in("gs://checkpoints/team", proxy.endpoint)
    assert await BucketTier("gs://checkpoints/team", emulator.endpoint).documents.listed() == ()
    assert any("/upload/" in request for request in proxy.requests)


async def test_a_bucket_that_is_not_there_is_told_and_the_rest_is_not_tried(emulator: Emulator) -> None:
    found, _ = await found_in("gs://elsewhere/team", emulator.endpoint)
    first, *others = (finding.state for finding in found.values())
    assert (first, set(others)) == (State.FAILED, {State.SKIPPED})
    assert "create it, or correct `bucket.url`" in found["bucket.exists"].detail


@pytest.mark.parametrize(
    ("method", "path", "check", "permission"),
    [
        ("GET", "/o?", "bucket.exists", "list"),
        ("POST", "/upload/", "bucket.create", "create"),
        ("GET", "/o/team%2Fcheckpoints%2Fdoctor", "bucket.read", "get"),
    ],
)
async def test_a_permission_that_is_missing_is_told_with_the_command_that_grants_it(
    emulator: Emulator, method: str, path: str, check: str, permission: str
) -> None:
    await found_in("gs://checkpoints/team", emulator.endpoint)  # the marker of the layout is there
    with faulty(emulator.endpoint) as proxy:
        said = f"ckpt@project.iam.gserviceaccount.com does not have storage.objects.{permission} access"
        body = json.dumps({"error": {"code": 403, "message": said}})
        proxy.faults.append(Fault(method, path, status=403, says=body, times=100))
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    finding = found[check]
    assert finding.state is State.FAILED, found
    assert f"storage.objects.{permission}" in finding.detail
    assert "roles/storage.objectUser" in finding.detail


@pytest.mark.parametrize(("method", "permission"), [("PATCH", "update"), ("DELETE", "delete")])
async def test_a_permission_that_is_missing_in_a_batch_is_told_likewise(
    emulator: Emulator, method: str, permission: str
) -> None:
    with faulty(emulator.endpoint) as proxy:
        said = f"ckpt@project.iam.gserviceaccount.com does not have storage.objects.{permission} access"
        body = json.dumps({"error": {"code": 403, "message": said}})
        proxy.faults += [
            Fault("POST", "/batch/", status=404, times=100),  # then each call is a request
            Fault(method, "/o/", status=403, says=body, times=100),
        ]
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    assert found[f"bucket.{permission}"].state is State.FAILED, found
    assert f"storage.objects.{permission} on gs://checkpoints" in found[f"bucket.{permission}"].detail


async def test_a_bucket_that_lets_nothing_go_is_told(emulator: Emulator) -> None:
    with faulty(emulator.endpoint) as proxy:
        proxy.protected["checkpoints%2Fdoctor"] = proxy.protected["checkpoints/doctor"] = (
            "Object is subject to bucket's retention policy"
        )
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    assert found["bucket.delete"].state is State.WARNING
    assert "retention policy" in found["bucket.delete"].detail


async def test_soft_delete_is_told_with_how_long_and_with_how_to_end_it(emulator: Emulator) -> None:
    with faulty(emulator.endpoint) as proxy:
        proxy.settings = {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    finding = found["bucket.softDelete"]
    assert finding.state is State.WARNING
    assert "for 7d 0h" in finding.detail
    assert "gs://checkpoints --clear-soft-delete" in finding.remedy


async def test_an_account_that_may_not_ask_for_soft_delete_needs_nothing_else(emulator: Emulator) -> None:
    with faulty(emulator.endpoint) as proxy:
        proxy.faults.append(Fault("GET", "/b/checkpoints?", status=403, says="no storage.buckets.get", times=10))
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    assert {finding.state for finding in found.values()} == {State.OK, State.SKIPPED}
    assert found["bucket.softDelete"].state is State.SKIPPED


async def test_settings_of_a_bucket_that_do_harm_are_told(emulator: Emulator) -> None:
    with faulty(emulator.endpoint) as proxy:
        rules = [{"action": {"type": "Delete"}, "condition": {"age": 30}}]
        proxy.settings = {"lifecycle": {"rule": rules}, "storageClass": "NEARLINE"}
        found, _ = await found_in("gs://checkpoints/team", proxy.endpoint)
    for check, detail in (("bucket.lifecycle", '{"age": 30}'), ("bucket.storageClass", "NEARLINE")):
        assert found[check].state is State.WARNING
        assert detail in found[check].detail


@pytest.mark.parametrize(
    ("action", "condition", "harms"),
    [
        ("Delete", {"age": 30}, True),
        ("Delete", {"age": 30, "matchesPrefix": ["te"]}, True),
        ("Delete", {"age": 30, "matchesPrefix": ["other/", "team/blobs/"]}, True),
        ("Delete", {"age": 30, "matchesPrefix": ["teams/"]}, False),
        ("Delete", {"age": 30, "isLive": False}, False),
        ("Delete", {"daysSinceNoncurrentTime": 7}, False),
        ("SetStorageClass", {"age": 30}, False),
    ],
)
def test_a_lifecycle_rule_does_harm_when_it_deletes_live_objects_of_ours(
    action: str, condition: dict[str, object], harms: bool
) -> None:
    assert deletes({"action": {"type": action}, "condition": condition}, "team/") is harms


# ---- all of it ----


@pytest.mark.fuse
@pytest.mark.root
async def test_a_cluster_that_runs_is_well(
    make_cluster: Clusters,
) -> None:
    cluster = await make_cluster("a", "b")
    config = cluster["a"].config_path
    done = await run("doctor", "--config", str(config), "--json")
    report = json.loads(done.stdout)
    checks = {one["check"]: one for one in report["checks"]}
    bad = [one for one in report["checks"] if one["state"] == "failed"]
    assert (done.returncode, report["ok"], bad) == (0, True, [])
    assert {"node", "coordinator", "peer b", "bucket.delete", "tls.expiry", "fuse.mount", "clock"} <= checks.keys()


async def test_what_does_not_answer_is_a_failure_and_the_status_says_so(tmp_path: Path) -> None:
    port, other = free_ports(2)
    values = {
        "node": "a",
        "ram": {"path": str(tmp_path / "ram"), "size": "16MiB"},
        "socket": str(tmp_path / "a.sock"),
        "listen": {"control": f"127.0.0.1:{port}", "bulk": f"127.0.0.1:{other}"},
        "peers": [f"127.0.0.1:{free_ports(1)[0]}"],
    }
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(values))
    done = await run("doctor", "--config", str(tmp_path / "node.yaml"))
    assert done.returncode == 1
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert "WARNING" in lines["node"]
    assert "fuse-tier node --config" in lines["node"]
    assert "FAILED" in lines["peer"]
    assert "see that it runs" in lines["peer"]


async def test_without_a_configuration_the_machine_alone_is_looked_at() -> None:
    found = by_check(await examine(None))
    assert {"fuse.device", "clock"} <= found.keys()
    assert not any(check.startswith(("bucket", "tls", "peer")) for check in found)
