"""The driver's containers die in any order, and are replaced by another pod's, and jobs in pods do not notice."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi.local.kubelet import Kubelet, PodVolume, begun, container, told_by
from csi.local.pod import DriverPod, Kind, shared_directory
from fuse_tier.localcluster import LocalNode, local_cluster
from fuse_tier.mount.table import mount_at
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@dataclass
class Machine:
    """One node with the driver's pods on it, in the order in which they came."""

    node: LocalNode
    kubelet: Kubelet
    directory: Path
    logs: Path
    pods: list[DriverPod]

    def deploy(self, kind: Kind = Kind.NAMESPACED) -> DriverPod:
        """Starts another pod of the driver, beside those that run."""
        config, uid = self.node.config_path, f"pod-{len(self.pods)}"
        pod = DriverPod(uid, config, self.kubelet.socket, self.kubelet.directory, self.logs, kind)
        self.pods.append(pod)
        pod.start()
        return pod

    async def is_safe(self, pod: PodVolume) -> bool:
        """All of the driver answers, and the pod's volume is well."""
        if not await self.kubelet.is_ready():
            return False
        return not (await self.kubelet.stats(pod)).volume_condition.abnormal

    async def is_kept_by(self, pod: DriverPod) -> bool:
        """Whether a pod's supervisor has all mounts, and the worker and the plugin that answer are its as well."""
        mounts = self.logs / f"{pod.uid}-fuse.log"
        kept = mounts.read_text().count('"volume.upgraded"') if mounts.exists() else 0
        return bool(kept) and all("ready" in pod.families[name].output() for name in ("fuse", "replication-worker"))

    def superseded(self, pod: DriverPod) -> int:
        """How often containers of a pod, the plugin's aside, have found that another pod has the node."""
        names = ("fuse", "replication-worker")
        return sum((self.logs / f"{pod.uid}-{name}.log").read_text().count('"part.superseded"') for name in names)

    def copies(self) -> int:
        """How often somebody had all that a mount is kept with, besides its keeper."""
        return sum(log.read_text().count('"vault.holds"') for log in self.logs.glob("*.log"))

    async def until_copied(self, before: int, times: int) -> None:
        """Until copies have been made so often since there were so many."""

        async def are_there() -> bool:
            return self.copies() >= before + times

        await until(are_there)


@pytest.fixture
async def machine(tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Machine]:
    # What a container's sudden end, or a replacement, makes others say.
    expected_logs.allow(
        "snapshot.postponed",  # and a job that never rests, on a machine that is busy
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
            local_cluster(place, ["a"], ram_size="64MiB", bucket=False, tls=False, coordinator=False, start=False)
        )
        node = cluster["a"]
        node.config_path.write_text(yaml.safe_dump(node.config))
        kubelet = Kubelet(place / "kubelet", f"{place}/csi.sock")
        stack.callback(kubelet.clean_up)
        machine = Machine(node, kubelet, place, tmp_path, [])
        yield machine
        for pod in machine.pods:
            await pod.clean_up()


@asynccontextmanager
async def job_in(pod: PodVolume) -> AsyncIterator[None]:
    """A job writes all the while, and has no error; what it has written is then taken into a snapshot."""
    with container(pod) as job:
        await begun(job)
        yield
        told = await told_by(job)
    assert told["errors"] == []
    assert told["steps"] > 0

    async def is_in_snapshot() -> bool:
        return os.getxattr(pod.target / "step_0", "user.fuse_tier.state").startswith(b"ram")

    await until(is_in_snapshot)
    print(told)  # noqa: T201 - the figures, shown with -rP


ORDINARY: dict[str, Any] = {"user": 4000, "group": "4242"}
"""Whom most jobs run as: not root, with the group that is the volume's (fsGroup)."""
CSI, FUSE, WORKER = "csi", "fuse", "replication-worker"
DEATHS = ((FUSE,), (CSI,), (WORKER,), (FUSE, CSI), (FUSE, WORKER), (CSI, WORKER))


async def test_a_job_writes_on_while_each_container_of_the_driver_and_any_two_at_the_same_instant_die(
    machine: Machine,
) -> None:
    kubelet = machine.kubelet
    driver = machine.deploy()
    await until(kubelet.is_ready)
    pod = await kubelet.start("llama-0", **ORDINARY)
    await machine.until_copied(0, 2)
    mount = mount_at(str(pod.target))
    async with job_in(pod):
        for names in DEATHS:
            held = machine.copies()
            await driver.kill(*names)
            driver.start(*reversed(names))
            await until(lambda: machine.is_safe(pod))
            # Plugin and worker have copies, and make them anew after the keeper's end or their own.
            await machine.until_copied(held, 2 if FUSE in names else len(names))
    assert mount_at(str(pod.target)) == mount
    await kubelet.end(pod)
    again = await kubelet.start("llama-0", **ORDINARY)
    assert (again.target / "step_0").exists()
    await kubelet.end(again)


@pytest.mark.cgroups
async def test_a_job_writes_on_while_all_containers_die_at_the_same_instant(machine: Machine) -> None:
    """In pods with ``hostPID``, of which a process may outlive its container."""
    kubelet = machine.kubelet
    driver = machine.deploy(Kind.HOST_PID)
    await until(kubelet.is_ready)
    pod = await kubelet.start("llama-0", **ORDINARY)
    await machine.until_copied(0, 3)
    mount = mount_at(str(pod.target))
    async with job_in(pod):
        held = machine.copies()
        await driver.restart()
        await until(lambda: machine.is_safe(pod))
        await machine.until_copied(held, 3)
        # And as the driver's pod is replaced: nothing of the old one is there when the new one comes.
        held = machine.copies()
        await driver.kill()
        machine.deploy(Kind.HOST_PID)
        await until(lambda: machine.is_safe(pod))
        await machine.until_copied(held, 3)
    assert mount_at(str(pod.target)) == mount
    await kubelet.end(pod)


async def test_another_pod_of_the_driver_takes_over_while_jobs_write_and_the_old_one_is_then_ended(
    machine: Machine,
) -> None:
    kubelet = machine.kubelet
    old = machine.deploy()
    await until(kubelet.is_ready)
    pod = await kubelet.start("llama-0", **ORDINARY)
    mount = mount_at(str(pod.target))
    async with job_in(pod):
        new = machine.deploy()
        await until(lambda: machine.is_kept_by(new))
        await until(lambda: machine.is_safe(pod))
        # Kubelet starts a container again that has ended: the old pod's must not take the node back.
        times = machine.superseded(old)
        await old.restart("fuse", "replication-worker")

        async def have_noticed() -> bool:
            return machine.superseded(old) == times + 2

        await until(have_noticed)
        assert "ready" not in old.families["fuse"].output()
        await old.kill()
        await until(lambda: machine.is_safe(pod))
        await new.restart("fuse")
        await until(lambda: machine.is_safe(pod))
    assert mount_at(str(pod.target)) == mount
    await kubelet.end(pod)
