"""An API server that is slow, busy, or whose answers are lost: all comes right, and nothing is doubled."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial

import pytest
import trio
import trio.testing
from kubernetes.client import ApiClient

from controller.reconciling.issuing import RANKS
from controller.watching import Throttled
from controller.writing import Writer
from tests.controller.cluster import DAEMONSETS, NAMESPACE, Cluster, path_of, running_controller
from tests.harness.api_faults import ApiFaults
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = pytest.mark.kube


@pytest.fixture
def faults(cluster: Cluster) -> Iterator[ApiFaults]:
    seed = int(os.environ.get("FUSE_TIER_SEED", random.randrange(1 << 32)))
    print(f"FUSE_TIER_SEED={seed}")  # noqa: T201 - shown when it fails
    found = ApiFaults(cluster.server, seed)
    with found.running():
        yield found


@pytest.fixture
def api(faults: ApiFaults) -> Iterator[ApiClient]:
    with faults.client as client:
        yield client


@pytest.mark.parametrize(("kind", "share"), [("busy", 0.2), ("slow", 0.3), ("lost", 0.3)])
async def test_whatever_happens_to_calls_all_comes_right_and_nothing_is_doubled(
    cluster: Cluster, faults: ApiFaults, api: ApiClient, expected_logs: ExpectedLogs, kind: str, share: float
) -> None:
    expected_logs.allow("api.unavailable", "reconcile.failed", "certificates.not_issued")
    faults.shares = {kind: share}
    async with running_controller(api):
        await cluster.configure()
        daemonset = await cluster.daemonset()
        await cluster.configure(replicas=2)
        path = path_of(daemonset)
        await cluster.until_found(path, lambda one: one["metadata"]["generation"] == 2)
        await cluster.run_pods()
        await cluster.until_condition("Ready", "True", "AllNodesReady")
        await cluster.until_found(f"{NAMESPACE}/secrets/{RANKS}", lambda one: "tls.key" in one["data"])
        assert len((await cluster.writer.read(DAEMONSETS))["items"]) == 1
        assert (await cluster.writer.read(path))["metadata"]["generation"] == 2, "each change was made once"
        reasons = await cluster.events()
        assert len(reasons) == len(set(reasons)), "nothing is told twice"
        assert faults.happened[kind] > 0


async def test_a_server_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_says(
    cluster: Cluster, faults: ApiFaults, api: ApiClient
) -> None:
    faults.shares = {"busy": 1.0}
    with pytest.raises(Throttled, match="too many requests") as told:
        await Writer(api, 100).read(NAMESPACE)
    assert told.value.pause == 1.0
    assert faults.happened["busy"] == 4


async def is_quiet(faults: ApiFaults) -> bool:
    """Whether nothing is asked for a while: no call tells that it was the last one."""
    before = faults.asked
    await trio.sleep(1)
    return faults.asked == before


async def test_without_any_change_nothing_is_asked(cluster: Cluster, faults: ApiFaults, api: ApiClient) -> None:
    async with running_controller(api, uptime_backoff=60.0):
        await cluster.configure()
        await cluster.daemonset()
        await cluster.run_pods()
        await cluster.until_condition("Ready", "True", "AllNodesReady")
        await cluster.until_event("Ready")
        await until(partial(is_quiet, faults))
        before = faults.asked
        # A change that concerns it, and needs no answer: when that was looked at, all before was, too.
        await cluster.writer.merge("/api/v1/nodes/a", {"metadata": {"labels": {"x": "y"}}})
        await trio.testing.wait_all_tasks_blocked(0.5)
        assert faults.asked == before
