"""Who does what is not his to do: a node of the cluster, for whom a good certificate is not enough; and strangers."""

from __future__ import annotations

import os
import urllib.request
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from fuse_tier.errors import FuseTierError, TierRefused
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.localcluster.processes import Family
from fuse_tier.localcluster.services import LocalCoordinator
from fuse_tier.manifest import Manifest
from fuse_tier.tiers.peer import Introduction, PeerTier
from fuse_tier.wire.certificates import make_certificate
from tests.e2e.jobs import JOB, layout_of
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

_STRANGERS = 150  # at each port


async def test_a_node_saves_into_a_volume_that_nobody_has_only_after_it_has_mounted_it(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("peer.refused")
    cluster = await make_cluster("a", "b", "c", bucket=False, replicas=2)
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "step_1").write_bytes(b"what was saved")
    await cluster["a"].wait(JOB, "peer", 20)
    await cluster["a"].unmount(mount)
    kept = _newest(cluster["b"])
    async with aclosing(_as_node(cluster, "c", cluster["b"])) as hostile:
        saved = await hostile.manifest(kept)
        forged = replace(saved, id=SnapshotId(kept.identity, kept.number + 1), node="c")
        await until(partial(_is_refused, hostile, forged, f"{forged.id} of c is refused: nobody has the volume"), 10)
        with pytest.raises(TierRefused, match="is not given up for node c: nobody has its volume mounted"):
            await hostile.drop(kept)
        assert _newest(cluster["b"]) == kept
        await cluster["c"].mount(JOB, cluster.mountpoint("c"))
        assert (cluster.mountpoint("c") / "step_1").read_bytes() == b"what was saved"
        (cluster.mountpoint("c") / "step_2").write_bytes(b"in the open")
        await until(partial(_is_told_of_the_mount, hostile, kept), 10)


async def test_a_node_that_plays_another_one_gets_nothing_and_counts_for_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs, memory_path: Path
) -> None:
    """It has a good certificate, and the addresses of a node that has died."""
    expected_logs.allow("peer.impostor", "membership.peer_unavailable", "copy.failed", "list.place_silent")
    cluster = await make_cluster("a", "b", bucket=False, coordinator=False)
    own = make_certificate(str(cluster.directory / "tls"), "c")
    mount, victim = cluster.mountpoint("a"), cluster["b"]
    await cluster["a"].mount(JOB, mount)
    await victim.kill()
    listen = victim.config["listen"]
    whom = (str(memory_path), "b", listen["control"], listen["bulk"], own.ca, own.cert, own.key)
    impostor = Family("an impostor", ["-m", "tests.e2e.impostor", *whom], cluster.directory / "impostor.log")
    impostor.start()
    try:
        await until(partial(_has_said, impostor.log.with_suffix(".out"), "serving as b"), 30)
        (mount / "step_1").write_bytes(b"for b alone")
        await until(partial(_has_said, cluster["a"].log_path, '"event": "peer.impostor"'), 30)
        await until(partial(_is_sealed, cluster["a"]), 30)
        assert not any(path.is_file() for path in memory_path.rglob("*")), "it was told nothing"
    finally:
        await impostor.kill()
    await victim.start()
    await cluster["a"].wait(JOB, "peer", 60)
    assert any(one.identity == Identity.parse(JOB) for one in listed(layout_of(victim)))


async def test_a_node_that_plays_the_coordinator_is_told_nothing(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    """A real one, with a good certificate, at the address of the real one that has died."""
    expected_logs.allow("peer.impostor", "membership.coordinator_unavailable")
    cluster = await make_cluster("a", bucket=False)
    assert cluster.coordinator
    own = make_certificate(str(cluster.directory / "tls"), "c")
    await cluster.coordinator.kill()
    config = cluster.coordinator.config | {"tls": {"ca": own.ca, "cert": own.cert, "key": own.key}}
    impostor = LocalCoordinator(cluster.coordinator.address, cluster.directory / "impostor", config, own)
    await impostor.start()
    try:
        await until(partial(_has_said, cluster["a"].log_path, '"event": "peer.impostor"'), 30)
        assert not (await impostor.picture()).members
    finally:
        await impostor.kill()
    await cluster.coordinator.start()
    await until(partial(_knows, cluster.coordinator, "a"), 30)


async def _knows(coordinator: LocalCoordinator, node: str) -> bool:
    return [member.node for member in (await coordinator.picture()).members] == [node]


async def _is_sealed(node: LocalNode) -> bool:
    """And nowhere else."""
    found = await node.list(JOB)
    assert all("peer" not in one.tiers for one in found)
    return bool(found)


async def _has_said(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


async def test_a_flood_at_either_port_is_told_counted_and_makes_a_node_no_larger(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("control.connection_refused", "bulk.stream_failed")
    cluster = await make_cluster("a", "b", bucket=False)
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    victim = cluster["b"]
    await _flood(victim)  # what it takes for so many at once, it has now
    sizes = [await _flood(victim) for _ in range(4)]
    assert sizes[-1] - sizes[0] < 8 << 20, sizes
    assert await _turned_away(victim) > 500
    told = [line for line in victim.log_path.read_text().splitlines() if '"kind"' in line]
    assert 1 <= len(told) < 20, "each kind once a minute, whoever comes"
    assert all('"address": "127.0.0.1:' in line for line in told)
    (mount / "step_1").write_bytes(b"the others are served as before")
    await cluster["a"].wait(JOB, "peer", 20)


async def _flood(node: LocalNode) -> int:
    """More strangers than are let in at once, who talk nonsense or go in mid-word; the worker's size afterwards."""
    streams: list[trio.SocketStream] = []
    for address in node.config["listen"].values():
        host, _, port = address.rpartition(":")
        for number in range(_STRANGERS):
            streams.append(await trio.open_tcp_stream(host, int(port)))
            with suppress(trio.BrokenResourceError):  # it was sent away already
                await streams[-1].send_all(b"x" + os.urandom(number) if number % 4 else b"\x16\x03\x01")
                await streams[-1].send_eof()
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(_until_sent_away, stream)
    (worker,) = node.family.running("fuse_tier.replicate")
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _until_sent_away(stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError), trio.fail_after(30):
            while await stream.receive_some(1024):
                pass


async def _turned_away(node: LocalNode) -> float:
    def scrape() -> str:
        with urllib.request.urlopen(f"http://{node.config['metrics']}/metrics", timeout=10) as answer:
            return str(answer.read(), "utf-8")

    lines = (await trio.to_thread.run_sync(scrape)).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("fuse_tier_rejected_connections_total"))


async def _is_refused(tier: PeerTier, forged: Manifest, words: str) -> bool:
    """Always, and for this reason once the node that is asked knows that the volume was unmounted."""
    with pytest.raises(TierRefused) as refused:
        await tier.commit(forged)
    return words in str(refused.value) and "had it when" in str(refused.value)


async def _is_told_of_the_mount(tier: PeerTier, snapshot: SnapshotId) -> bool:
    """The node that is asked knows by now that ours has the volume mounted."""
    try:
        await tier.drop(snapshot)
    except FuseTierError:
        return False
    return True


def _as_node(cluster: LocalCluster, name: str, to: LocalNode) -> PeerTier:
    """The calls that one node can make to another."""
    own = Introduction("default", name, f"{name}-other")
    return PeerTier(to.name, to.config["listen"]["control"], own, cluster.tls[name], encrypt=True)


def _newest(node: LocalNode) -> SnapshotId:
    return max(one for one in listed(layout_of(node)) if one.identity == Identity.parse(JOB))
