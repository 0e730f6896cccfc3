"""How a configuration's nodes are used: the columns Volumes, Step and Backup, from the coordinator to kubectl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml
from structlog.testing import capture_logs

from controller.reconciling.certificates import decoded
from controller.reconciling.issuing import RANKS
from controller.reconciling.usage import Usage, usage_of
from controller.reconciling.world import CONFIGURATIONS
from controller.watching import Collection
from fuse_tier.checkpoints import Job
from fuse_tier.config import CoordinatorConfig
from fuse_tier.coordinate.server import serve_coordinator
from fuse_tier.identity import Identity
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.members import Location, Member, Picture, VolumePicture
from fuse_tier.standing import BUCKET, PEER, RAM, Standing
from tests.controller.cluster import NAMESPACE, Cluster, running_controller
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.shell import Shell
from tests.harness.waiting import until

LLAMA, GEMMA = Job("ml", "llama"), Job("ml", "gemma")
TIME = "%Y-%m-%dT%H:%M:%SZ"
SAVED = 1_767_225_600  # 2026-01-01T00:00:00Z


def member(node: str, *mounted: str, alive: bool = True) -> Member:
    return Member(node, f"{node}1", "a:1", "a:2", alive, 0, 0, mounted=frozenset(map(Identity.parse, mounted)))


def volume(identity: str, *holders: Member) -> VolumePicture:
    return VolumePicture(Identity.parse(identity), "", Location(tuple((one, (1,)) for one in holders)))


def standing(job: Job, step: int | None, *tiers: str, after: int = 0, is_bad: bool = False) -> Standing:
    return Standing(job, "run", 1, step, (SAVED + after) * 10**9, 7, tiers, is_bad)


def test_volumes_and_jobs_are_those_of_the_nodes_that_are_asked_for() -> None:
    a, b, c = member("a", "ml/llama/0"), member("b", "ml/gemma/0", "ml/gemma/1"), member("c", "ml/x/0", alive=False)
    picture = Picture("e", (a, b, c), (volume("ml/llama/0", a), volume("ml/gemma/0", b)))
    told = [standing(LLAMA, 100, RAM), standing(GEMMA, 900, RAM, PEER, BUCKET)]
    assert usage_of({"a"}, picture, told) == Usage(1, 100)
    assert usage_of({"b", "c"}, picture, told) == Usage(2, 900, "2026-01-01T00:00:00Z")
    assert usage_of({"a", "b"}, picture, told).volumes == 3
    assert usage_of({"d"}, picture, told) == Usage(0)


def test_a_job_that_is_over_is_of_the_nodes_that_still_hold_its_snapshots() -> None:
    a = member("a")
    picture = Picture("e", (a, member("b")), (volume("ml/llama/0", a),))
    assert usage_of({"a"}, picture, [standing(LLAMA, 100, RAM)]) == Usage(0, 100)
    assert usage_of({"b"}, picture, [standing(LLAMA, 100, RAM)]) == Usage(0)


def test_the_newest_complete_checkpoint_counts_that_can_be_restored() -> None:
    a = member("a", "ml/llama/0")
    picture = Picture("e", (a,), ())
    told = [
        standing(LLAMA, 100, RAM, BUCKET),
        standing(LLAMA, 90, RAM, after=60),  # the job went back, and saved again
        standing(LLAMA, 200, RAM, BUCKET, after=90, is_bad=True),
        standing(LLAMA, 300, after=99),  # on nodes that are away
        standing(LLAMA, None, RAM, after=120),
    ]
    assert usage_of({"a"}, picture, told) == Usage(1, 90, "2026-01-01T00:00:00Z")


class Told:
    """Every status that a configuration had, in their order."""

    def __init__(self) -> None:
        self.statuses: list[Mapping[str, Any]] = []

    def seen(self, found: Mapping[str, Any]) -> None:
        self.statuses.append(found.get("status") or {})

    def lost(self, key: str) -> None:
        raise AssertionError("nobody deletes it")

    async def until(self, **columns: object) -> None:
        async def so() -> bool:
            return bool(self.statuses) and {**self.statuses[-1], **columns} == self.statuses[-1]

        await until(so, 60)


def put(directory: Path, files: Mapping[str, bytes], name: str) -> dict[str, str]:
    """Certificates of the controller's as files, and where they are."""
    directory.mkdir()
    for one, content in files.items():
        (directory / one).write_bytes(content)
    names = {"ca": "ca.crt", "cert": f"{name}.crt", "key": f"{name}.key"}
    return {what: str(directory / one) for what, one in names.items()}


@pytest.mark.kube
async def test_a_ranks_server_that_stays_silent_is_told_with_its_address(cluster: Cluster) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with capture_logs() as logs:

        async def is_told() -> bool:
            return any(one["event"] == "coordinator.silent" for one in logs)

        async with running_controller(cluster.api, coordinator=address, asks_every_seconds=0.01):
            await cluster.configure()
            await until(is_told)
            await cluster.until_condition("Ready", "False", "NotSeen")
    (told,) = [one for one in logs if one["log_level"] == "warning"]
    assert (told["event"], told.get("address")) == ("coordinator.silent", address)
    assert "volumes" not in (await cluster.configuration())["status"], "nobody knows"


@pytest.mark.kube
@pytest.mark.fuse
async def test_a_job_that_saves_is_seen_in_the_columns_and_nothing_is_written_that_was_said(
    cluster: Cluster, make_cluster: Clusters, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("coordinator.silent")  # until it is started below
    make_cluster.check = False  # the coordinator is gone by then
    made = await make_cluster("a", tls=False, coordinator=False, start=False)
    node, told = made["a"], Told()
    address = f"127.0.0.1:{free_ports(1)[0]}"
    async with (
        running_controller(cluster.api, coordinator=address, asks_every_seconds=0.1),
        trio.open_nursery() as nursery,
    ):
        await cluster.configure()
        await cluster.daemonset()
        secret = await cluster.until_found(f"{NAMESPACE}/secrets/{RANKS}", lambda one: "tls.key" in one["data"])
        config = {"listen": address, "tls": put(tmp_path / "ranks", decoded(secret), "tls")}
        await nursery.start(serve_coordinator, CoordinatorConfig.model_validate(config))
        await nursery.start(Collection(cluster.api, CONFIGURATIONS, told).follow)
        await told.until(volumes=0)
        del node.config["peers"]
        await node.start(coordinator=address, tls=put(tmp_path / "node", await cluster.certificates(), "a"))
        mount = made.mountpoint("llama")
        await node.mount("ml/llama/0", mount)
        await told.until(volumes=1)
        (mount / "new").mkdir()
        (mount / "new" / "weights").write_bytes(b"w" * 4096)
        (mount / "new").rename(mount / "step_100")
        await told.until(lastCompleteStep=100)
        (record,) = await node.list("ml/llama/0")
        await told.until(lastBackupTime=datetime.fromtimestamp(record.created_ns // 10**9, UTC).strftime(TIME))
        await node.unmount(mount)
        await told.until(volumes=0, lastCompleteStep=100)
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(cluster.server.kubeconfig))
        row = (await Shell(tmp_path, kubeconfig).run("kubectl get cpc")).splitlines()[1].split()
        await node.stop()
        nursery.cancel_scope.cancel()
    assert row[:6] == ["default", "my-checkpoints", "0", "0", "0", "100"]
    assert re.fullmatch(r"[\dms]+", row[6]), row
    assert all(before != after for before, after in pairwise(told.statuses))
