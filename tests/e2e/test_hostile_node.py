"""A node of the cluster that does what is not its own to do: it has a good certificate, and that is not enough."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest

from fuse_tier.errors import FuseTierError, TierRefused
from fuse_tier.identity import Identity, SnapshotId
from fuse_tier.localcluster import LocalCluster, LocalNode
from fuse_tier.tiers.peer import Introduction, PeerTier
from tests.e2e.jobs import JOB, layout_of
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]


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
        with pytest.raises(TierRefused, match=rf"{forged.id} of c is refused: nobody has .*, a had it last"):
            await hostile.commit(forged)
        with pytest.raises(TierRefused, match="is not given up for node c: nobody has its volume mounted"):
            await hostile.drop(kept)
        assert _newest(cluster["b"]) == kept
        await cluster["c"].mount(JOB, cluster.mountpoint("c"))
        assert (cluster.mountpoint("c") / "step_1").read_bytes() == b"what was saved"
        (cluster.mountpoint("c") / "step_2").write_bytes(b"in the open")
        await until(partial(_is_told_of_the_mount, hostile, kept), 10)


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
