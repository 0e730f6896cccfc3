"""How fast pods get their volumes and lose them, and what a volume costs: rows of ``fuse-tier bench``.

The driver's parts run as processes of their own on one node, and the plugin is called as kubelet calls it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
import yaml

from csi.local.kubelet import Kubelet, PodVolume
from csi.local.pod import DriverPod, Kind, shared_directory
from fuse_tier.bench.frame import RUNS, Figure, Row
from fuse_tier.localcluster import local_cluster

_MANY: Final = 20
_PUBLISH_LIMIT_SECONDS: Final = 0.5
_MANY_LIMIT_SECONDS: Final = 3.0
_UNPUBLISH_LIMIT_SECONDS: Final = 0.5
_MEMORY_LIMIT_MB: Final = 30.0
_RESTART_LIMIT_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.02
_ROOT: Final = "volumes are mounted and containers made by root alone"


@dataclass(frozen=True, slots=True)
class _Place:
    kubelet: Kubelet
    driver: DriverPod

    async def is_ready(self, *pods: PodVolume) -> bool:
        """Whether the driver answers, and all these volumes are well."""
        if not await self.kubelet.is_ready():
            return False
        well: list[bool] = []

        async def look(pod: PodVolume) -> None:
            well.append(not (await self.kubelet.stats(pod)).volume_condition.abnormal)

        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(look, pod)
        return all(well)

    async def until_ready(self, *pods: PodVolume) -> None:
        with trio.fail_after(_PATIENCE_SECONDS):
            while not await self.is_ready(*pods):  # noqa: ASYNC110 - nobody announces it
                await trio.sleep(_POLL_SECONDS)

    async def publish_many(self, count: int) -> list[PodVolume]:
        """At once."""
        pods = [self.kubelet.stage(f"job-{number}") for number in range(count)]
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self.kubelet.publish, pod)
        return pods

    async def end_many(self, pods: list[PodVolume]) -> None:
        async with trio.open_nursery() as nursery:
            for pod in pods:
                nursery.start_soon(self.kubelet.end, pod)


@asynccontextmanager
async def _driver(directory: Path) -> AsyncIterator[_Place]:
    with ExitStack() as stack:
        stack.enter_context(shared_directory(directory))
        cluster = local_cluster(
            directory / "c", ["a"], ram_size="1GiB", bucket=False, tls=False, coordinator=False, start=False
        )
        async with cluster as nodes:
            node = nodes["a"]
            node.config_path.write_text(yaml.safe_dump(node.config))
            kubelet = Kubelet(directory / "kubelet", str(directory / "csi.sock"))
            driver = DriverPod("bench", node.config_path, kubelet.socket, kubelet.directory, directory, Kind.NONE)
            stack.callback(kubelet.clean_up)
            try:
                driver.start()
                place = _Place(kubelet, driver)
                await place.until_ready()
                yield place
            finally:
                with trio.CancelScope(shield=True):
                    await driver.clean_up()


async def _median(once: Callable[[], Awaitable[float]]) -> float:
    """Of several times, after one that does not count."""
    await once()
    return statistics.median([await once() for _ in range(RUNS)])


async def _publish(directory: Path) -> Figure:
    """From the call until a file has been written through the mount."""
    async with _driver(directory) as place:

        async def once() -> float:
            pod = place.kubelet.stage("job")
            begun = time.perf_counter()
            await place.kubelet.publish(pod)
            (pod.target / "file").write_bytes(b"content")
            seconds = time.perf_counter() - begun
            await place.kubelet.end(pod)
            return seconds

        return Figure(await _median(once), _PUBLISH_LIMIT_SECONDS)


async def _publish_many(directory: Path) -> Figure:
    """Twenty at once, until all are there."""
    async with _driver(directory) as place:

        async def once() -> float:
            begun = time.perf_counter()
            pods = await place.publish_many(_MANY)
            seconds = time.perf_counter() - begun
            await place.end_many(pods)
            return seconds

        return Figure(await _median(once), _MANY_LIMIT_SECONDS)


async def _unpublish(directory: Path) -> Figure:
    async with _driver(directory) as place:

        async def once() -> float:
            pod = await place.kubelet.start("job")
            (pod.target / "file").write_bytes(b"content")
            begun = time.perf_counter()
            await place.kubelet.unpublish(pod)
            seconds = time.perf_counter() - begun
            place.kubelet.forget(pod)
            return seconds

        return Figure(await _median(once), _UNPUBLISH_LIMIT_SECONDS)


async def _memory(directory: Path) -> Figure:
    """What all of the driver takes more with each volume, each with a file that was written."""
    async with _driver(directory) as place:
        first = await place.kubelet.start("first")
        (first.target / "file").write_bytes(b"content")
        before = _proportional_megabytes(place.driver)
        pods = await place.publish_many(_MANY)
        for pod in pods:
            (pod.target / "file").write_bytes(b"content")
        return Figure((_proportional_megabytes(place.driver) - before) / _MANY, _MEMORY_LIMIT_MB)


async def _restart(directory: Path) -> Figure:
    """Plugin, supervisor and worker killed at the same time, until all answer for all volumes again."""
    async with _driver(directory) as place:
        pods = await place.publish_many(_MANY)

        async def once() -> float:
            begun = time.perf_counter()
            await place.driver.kill()
            place.driver.start()
            await place.until_ready(*pods)
            for pod in pods:
                (pod.target / "file").write_bytes(b"content")
            return time.perf_counter() - begun

        return Figure(await _median(once), _RESTART_LIMIT_SECONDS)


def _proportional_megabytes(driver: DriverPod) -> float:
    """Of all its processes; memory that several share counts once, in parts."""
    pids = {pid for family in driver.families.values() for pid in family.members()}
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total / 1e6


ROWS: Final = (
    Row("csi.publish", "s", "limit", _publish, _ROOT),
    Row("csi.publish.20", "s", "limit", _publish_many, _ROOT),
    Row("csi.unpublish", "s", "limit", _unpublish, _ROOT),
    Row("csi.memory", "MB", "limit", _memory, _ROOT),
    Row("csi.restart", "s", "limit", _restart, _ROOT),
)
