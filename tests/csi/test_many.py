"""As many volumes as a node bears: given at once, kept through the end of all of the driver, taken back at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import yaml

from csi.local.kubelet import Kubelet, PodVolume
from csi.local.pod import DriverPod, Kind, shared_directory
from fuse_tier.localcluster import local_cluster
from fuse_tier.node.priority import COPYING, KEEPING
from tests.fs.mounted import mounts_below
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_PATIENCE_SECONDS = 120.0
_WORKER = "fuse_tier.replicate"
_TRY = """
from fuse_tier.node.priority import KEEPING, protect
protect(KEEPING)
print(open("/proc/self/oom_score_adj").read())
"""


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])])
async def test_many_volumes_are_there_at_once_and_stay_whatever_is_killed(
    count: int, tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(
        "snapshot.postponed",
        "vault.stands_in",
        "daemon.ended",
        "worker.ended",
        "volume.daemon_lost",
        "worker.slow",
        "worker.refused",
    )
    expected_logs.watch(tmp_path)
    async with AsyncExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ft-csi-")))
        stack.enter_context(shared_directory(place))
        cluster = await stack.enter_async_context(
            local_cluster(place, ["a"], ram_size="512MiB", bucket=False, tls=False, coordinator=False, start=False)
        )
        config = cluster["a"].config_path
        config.write_text(yaml.safe_dump(cluster["a"].config))
        kubelet = Kubelet(place / "kubelet", f"{place}/csi.sock")
        stack.callback(kubelet.clean_up)
        driver = DriverPod("pod", config, kubelet.socket, kubelet.directory, tmp_path, Kind.NAMESPACED)
        stack.push_async_callback(driver.clean_up)
        driver.start()
        await until(kubelet.is_ready)
        pods = [kubelet.stage(f"job-{number}") for number in range(count)]
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(kubelet.publish, pod)
        assert_spared(driver)
        held = [(pod, (pod.target / "held").open("w+")) for pod in pods]
        await driver.restart("fuse", "replication-worker")
        await until(lambda: are_well(kubelet, pods), _PATIENCE_SECONDS)
        for pod, file in held:
            file.write(pod.name)
            file.close()
            assert (pod.target / "held").read_text() == pod.name
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(kubelet.end, pod, _PATIENCE_SECONDS)
        assert mounts_below(kubelet.directory) == []


def assert_spared(driver: DriverPod) -> None:
    """Whoever keeps mounts goes after who copies, and both after any job: as far as this machine lets us say so."""
    tried = subprocess.run([sys.executable, "-c", _TRY], capture_output=True, check=True)
    may_say = int(tried.stdout) == KEEPING
    own = int(Path("/proc/self/oom_score_adj").read_text())
    for name, module, adjustment in (
        ("fuse", "fuse_tier.fs", KEEPING),
        ("csi", "csi.cli", KEEPING),
        ("replication-worker", _WORKER, COPYING),
    ):
        found = {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in driver.pids(name, module)}
        assert (adjustment if may_say else own) in found, name


async def are_well(kubelet: Kubelet, pods: list[PodVolume]) -> bool:
    if not await kubelet.is_ready():
        return False
    unwell: list[str] = []

    async def look(pod: PodVolume) -> None:
        condition = (await kubelet.stats(pod)).volume_condition
        if condition.abnormal:
            unwell.append(condition.message)

    async with trio.open_nursery() as nursery:
        for pod in pods:
            nursery.start_soon(look, pod)
    return not unwell
