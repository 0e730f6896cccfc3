"""A whole cluster on this machine, of real processes: for the demo, for tests, for benchmarks.

Nodes, a coordinator and an emulated bucket, each started as an operator would, talking TCP with TLS over
loopback. Invariant: when ``local_cluster`` is left, however, no process, mount or RAM of it is there any
more; only its directory, with configurations and logs, stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fuse_tier.localcluster.node import LocalNode, NotStarted, run_cli
from fuse_tier.localcluster.ports import free_ports
from fuse_tier.localcluster.processes import Family, detach_mounts, kill_all
from fuse_tier.localcluster.services import LocalBucket, LocalCoordinator
from fuse_tier.localcluster.session import first_of_ours, in_directory
from fuse_tier.wire.certificates import make_authority, make_certificate
from fuse_tier.wire.tls import TlsFiles

__all__ = [
    "Host",
    "LocalBucket",
    "LocalCluster",
    "LocalCoordinator",
    "LocalNode",
    "NotStarted",
    "in_directory",
    "local_cluster",
    "run_cli",
]

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Host:
    """Where a node or the coordinator runs, if not all share this machine's loopback."""

    address: str  # IP address, its own
    through: tuple[str, ...]  # the command that starts a process there


_LOOPBACK = Host("127.0.0.1", ())


@dataclass(slots=True)
class LocalCluster:
    """What ``local_cluster`` gives. ``cluster["a"]`` is a node."""

    directory: Path
    nodes: dict[str, LocalNode]
    coordinator: LocalCoordinator | None
    bucket: LocalBucket | None
    tls: dict[str, TlsFiles]

    def __getitem__(self, name: str) -> LocalNode:
        return self.nodes[name]

    def __iter__(self) -> Iterator[LocalNode]:
        return iter(self.nodes.values())

    def mountpoint(self, name: str) -> Path:
        """A place for a mount, below the cluster's directory."""
        return self.directory / "mnt" / name

    async def start(self) -> None:
        """Starts the coordinator and all nodes at once."""
        if self.coordinator:
            await self.coordinator.start()
        async with trio.open_nursery() as nursery:
            for node in self:
                nursery.start_soon(node.start)

    async def lose_all_ram(self) -> None:
        """All nodes die at the same time."""
        await kill_all(node.family for node in self)
        for node in self:
            await node.lose_ram()

    async def clean_up(self) -> None:
        """Kills everything and takes every mount and all RAM away."""
        await kill_all(_families(self))
        for node in self:
            node.clean_up()
        detach_mounts(self.directory)


@asynccontextmanager
async def local_cluster(
    directory: Path,
    nodes: Collection[str] = ("a", "b", "c"),
    *,
    ram_size: str = "1GiB",
    ram_warm: bool = False,
    bucket: bool = True,
    tls: bool = True,
    coordinator: bool = True,
    start: bool = True,
    hosts: Mapping[str, Host] | None = None,
    **overrides: Any,
) -> AsyncIterator[LocalCluster]:
    """Runs a cluster whose files are below ``directory`` (a short path: unix sockets are made there).

    ``overrides`` are further keys of every node's ``node.yaml``. ``hosts`` has one for each node and for
    ``coordinator``; without it all listen on loopback. Raises NotStarted. Other processes may take a port that was
    free when it was chosen: then all begins anew with others, up to three times.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        emulated = LocalBucket() if bucket else None
        if emulated:
            stack.push_async_callback(emulated.stop)
            await emulated.start()
        ram = stack.enter_context(_ram_directory(directory))
        where = hosts or dict.fromkeys((*nodes, "coordinator"), _LOOPBACK)
        certificates = _certificates(directory, where) if tls else {}
        for attempt in range(1, _TRIES + 1):
            cluster = _arrange(
                directory,
                ram,
                list(nodes),
                {"size": ram_size, "warm": ram_warm},
                emulated,
                certificates,
                coordinator,
                where,
                overrides,
            )
            failure = await _start(cluster) if start else None
            if failure is None:
                break
            if attempt == _TRIES or not _lost_a_port(cluster):
                raise failure
            for family in _families(cluster):
                family.log.unlink(missing_ok=True)
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await cluster.clean_up()


async def _start(cluster: LocalCluster) -> NotStarted | None:
    """Starts everything, or gives what could not be started; nothing of the cluster is left then."""
    try:
        await cluster.start()
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await cluster.clean_up()
        failure = first_of_ours(error)
        if isinstance(failure, NotStarted):
            return failure
        raise
    return None


def _arrange(
    directory: Path,
    ram: Path,
    names: list[str],
    memory: Mapping[str, object],
    bucket: LocalBucket | None,
    certificates: dict[str, TlsFiles],
    with_coordinator: bool,
    hosts: Mapping[str, Host],
    overrides: dict[str, Any],
) -> LocalCluster:
    ports = iter(free_ports(3 * len(names) + 2))
    listen = {name: [f"{hosts[name].address}:{next(ports)}" for _ in range(3)] for name in names}
    coordinator = None
    if with_coordinator:
        host = hosts["coordinator"]
        address = f"{host.address}:{next(ports)}"
        settings: dict[str, Any] = {"listen": address, "metrics": f"{host.address}:{next(ports)}"}
        settings |= _tls_section(certificates, "coordinator")
        coordinator = LocalCoordinator(
            address, directory / "coordinator", settings, certificates.get("coordinator"), host.through
        )
    cluster = LocalCluster(directory, {}, coordinator, bucket, certificates)
    for name in names:
        control, bulk, metrics = listen[name]
        config: dict[str, Any] = {
            "node": name,
            "ram": {"path": str(ram / name / "ram"), **memory},
            "socket": str(directory / name / "node.sock"),
            "listen": {"control": control, "bulk": bulk},
            "metrics": metrics,
        }
        if coordinator:
            config["coordinator"] = coordinator.address
        else:
            config["peers"] = [listen[other][0] for other in names if other != name]
        if bucket:
            config["bucket"] = {"url": bucket.url, "endpoint": bucket.emulator.endpoint}
        config |= _tls_section(certificates, name) | overrides
        if certificates and coordinator:
            config["tls"] |= {"coordinator": "coordinator"}  # as its certificate is called
        cluster.nodes[name] = LocalNode(name, directory / name, ram / name / "ram", config, hosts[name].through)
    return cluster


def _certificates(directory: Path, hosts: Mapping[str, Host]) -> dict[str, TlsFiles]:
    place = directory / "tls"
    place.mkdir()
    make_authority(str(place))
    return {name: make_certificate(str(place), name, [host.address]) for name, host in hosts.items()}


def _tls_section(certificates: dict[str, TlsFiles], name: str) -> dict[str, Any]:
    if name not in certificates:
        return {}
    files = certificates[name]
    return {"tls": {"ca": files.ca, "cert": files.cert, "key": files.key}}


@contextmanager
def _ram_directory(directory: Path) -> Iterator[Path]:
    """Where the RAM tiers stand: root's nodes mount a tmpfs; others share the one under /dev/shm."""
    if os.geteuid() == 0:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="fuse-tier-", dir="/dev/shm") as shared:
        yield Path(shared)


def _families(cluster: LocalCluster) -> list[Family]:
    families = [node.family for node in cluster]
    return [*families, cluster.coordinator.family] if cluster.coordinator else families


def _lost_a_port(cluster: LocalCluster) -> bool:
    return any("in use" in family.last_words() for family in _families(cluster))
