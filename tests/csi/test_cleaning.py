"""A driver that was removed leaves nothing on its node, and nothing is taken from a job that still has its volume."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi.cleaning import node as cleaning
from csi.local.kubelet import Kubelet
from csi.local.pod import DriverPod, Kind, control_groups, shared_directory
from csi.services import DRIVER_NAME
from fuse_tier.localcluster import local_cluster
from fuse_tier.localcluster.processes import Family, detach_mounts, mounts_below
from fuse_tier.node.claims import Taken, ram_tier_claimed
from fuse_tier.ram.layout import Layout
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@dataclass
class Machine:
    """One node, with directories of the driver's like those on a machine, but all below ``place``."""

    place: Path
    config: Path
    kubelet: Kubelet
    logs: Path

    @property
    def run(self) -> Path:
        return self.place / "run/fuse-tier"

    @property
    def lib(self) -> Path:
        return self.place / "lib/fuse-tier"

    @property
    def plugin(self) -> Path:
        return self.kubelet.directory / "plugins" / DRIVER_NAME

    @property
    def told(self) -> Path:
        return self.place / "told"

    def driver(self, kind: Kind) -> DriverPod:
        return DriverPod("pod-0", self.config, self.kubelet.socket, self.kubelet.directory, self.logs, kind)

    @asynccontextmanager
    async def cleaner(self) -> AsyncIterator[Family]:
        arguments = [f"--socket={self.run}/node.sock", f"--ram={self.lib}/ram", f"--told={self.told}"]
        arguments += [f"--kubelet={self.kubelet.directory}"]
        family = Family("the cleaner", ["-m", "csi.cleaning.cli", *arguments], self.logs / "cleaner.log")
        family.start()
        try:
            yield family
        finally:
            await family.kill()

    async def is_told(self) -> bool:
        return self.told.exists()

    def waits(self) -> int:
        log = self.logs / "cleaner.log"
        return log.read_text().count('"cleaner.waits"') if log.exists() else 0

    def check_clean(self) -> None:
        assert not self.run.exists()
        assert not self.lib.exists()
        assert not self.plugin.exists()
        assert mounts_below(self.place) == [self.place], "itself alone"


@pytest.fixture
async def machine(tmp_path: Path, expected_logs: ExpectedLogs) -> AsyncIterator[Machine]:
    # A driver's processes are killed one after another.
    expected_logs.allow("vault.stands_in", "vault.gave_up", "daemon.ended", "worker.ended", "volume.daemon_lost")
    expected_logs.allow("cleaner.waits")
    expected_logs.watch(tmp_path)
    async with AsyncExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ft-csi-")))
        stack.enter_context(shared_directory(place))
        settings: dict[str, Any] = {"bucket": False, "tls": False, "coordinator": False, "start": False}
        cluster = await stack.enter_async_context(local_cluster(place / "c", ["a"], ram_size="64MiB", **settings))
        node = cluster["a"]
        node.config["socket"] = str(place / "run/fuse-tier/node.sock")
        node.config["ram"]["path"] = str(place / "lib/fuse-tier/ram")
        node.config_path.write_text(yaml.safe_dump(node.config))
        kubelet = Kubelet(place / "kubelet", str(place / f"kubelet/plugins/{DRIVER_NAME}/csi.sock"))
        stack.callback(kubelet.clean_up)
        yield Machine(place, node.config_path, kubelet, tmp_path)


async def test_what_a_removed_driver_has_left_is_taken_away(machine: Machine) -> None:
    driver = machine.driver(Kind.NAMESPACED)
    driver.start()
    await until(machine.kubelet.is_ready)
    pod = await machine.kubelet.start("llama-0")
    (pod.target / "step_1").write_bytes(b"content")
    async with machine.cleaner() as cleaner:
        await until_waiting(machine)
        assert (pod.target / "step_1").read_bytes() == b"content"
        await machine.kubelet.end(pod)
        await driver.kill()
        assert machine.run.exists()
        assert machine.lib.exists()
        await until(machine.is_told)
        machine.check_clean()
        assert await cleaner.terminate(10) == 0
    await driver.clean_up()


async def until_waiting(machine: Machine) -> None:
    async def so() -> bool:
        return machine.waits() > 0

    await until(so)


@pytest.mark.cgroups
async def test_while_a_job_has_its_volume_that_stays_though_the_driver_is_gone(machine: Machine) -> None:
    """The refuge keeps it then."""
    driver = machine.driver(Kind.HOST_PID)
    driver.start()
    await until(machine.kubelet.is_ready)
    pod = await machine.kubelet.start("llama-0")
    (pod.target / "step_1").write_bytes(b"content")
    await until_there(machine.run / "node.sock.refuge")
    await driver.kill()
    async with machine.cleaner() as cleaner:
        await until_waiting(machine)
        assert not machine.told.exists()
        assert machine.lib.exists()
        detach_mounts(pod.target)
        await until(machine.is_told)
        machine.check_clean()
        assert await cleaner.terminate(10) == 0
    await driver.clean_up()
    groups = control_groups()
    assert groups is not None
    events = groups / "fuse-tier/cgroup.events"  # another node's refuge may be in it
    assert not events.exists() or "populated 1" in events.read_text()


async def until_there(path: Path) -> None:
    async def so() -> bool:
        return path.exists() and bool(path.read_text())

    await until(so)


def test_while_a_ram_tier_in_a_mount_of_somebody_elses_is_removed_no_driver_can_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path / "lib/ram"))
    Path(layout.root).mkdir(parents=True)
    Path(layout.marker).touch()
    remove, refused = shutil.rmtree, []

    def remove_while_a_driver_starts(path: str) -> None:
        with pytest.raises(Taken), ram_tier_claimed(layout):
            pass
        refused.append(path)
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", remove_while_a_driver_starts)
    places = cleaning.Places(
        *(str(tmp_path / one) for one in ("run/node.sock", "lib/ram", "csi/csi.sock", "kubelet"))
    )
    assert cleaning.clean(places) == ""
    assert refused == [layout.root]
    assert not Path(layout.root).exists()


async def test_where_the_driver_has_never_been_there_is_nothing_to_do_and_what_is_not_its_own_stays(
    machine: Machine,
) -> None:
    machine.run.mkdir(parents=True)
    (machine.run / "somebody-elses").touch()
    async with machine.cleaner():
        await until_waiting(machine)
        assert not machine.told.exists()
        (machine.run / "somebody-elses").unlink()
        await until(machine.is_told)
        machine.check_clean()
