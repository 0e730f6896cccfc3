"""A node that is about to be taken away, by a notice or by a stop: what is only there goes to others first."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from fuse_tier.localcluster import LocalCluster, LocalNode
from tests.e2e.jobs import A_NODE_DIED, JOB, layout_of
from tests.harness.checker import listed
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs
from tests.harness.waiting import until

pytestmark = [pytest.mark.fuse]

# No snapshot is taken by itself in the time of a test, so that all that is saved is saved by draining.
_NEVER = 600.0


async def test_a_notice_has_everything_copied_and_a_stop_does_so_too(
    make_cluster: Clusters, expected_logs: ExpectedLogs, tmp_path: Path
) -> None:
    expected_logs.allow("node.preempted", *A_NODE_DIED)
    notice = tmp_path / "preempted"
    cluster = await make_cluster("a", "b", "c", bucket=False, start=False, settle=_NEVER)
    cluster["a"].config["preemption"] = str(notice)
    await cluster.start()
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "before").write_bytes(b"the notice")
    notice.touch()
    await until(partial(_has_copies, cluster, 1))
    assert (mount / "before").read_bytes() == b"the notice"
    notice.unlink()
    (mount / "after").write_bytes(b"the notice")
    assert await cluster["a"].stop() == 0
    await until(partial(_has_copies, cluster, 2))
    tree = tmp_path / "restored"
    await cluster["b"].restore(JOB, tree)
    assert sorted(path.name for path in tree.iterdir()) == ["after", "before"]


async def test_a_stop_does_not_wait_for_peers_that_are_gone_longer_than_it_was_told(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow("drain.ran_out", *A_NODE_DIED)
    cluster = await make_cluster("a", "b", bucket=False, settle=_NEVER, drain=0.5)
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "file").write_bytes(b"x")
    cluster["b"].family.freeze()
    assert await cluster["a"].stop() == 0
    assert _newest(cluster["a"]) > 0
    cluster["b"].family.thaw()


async def _has_copies(cluster: LocalCluster, number: int) -> bool:
    return any(_newest(cluster[name]) >= number for name in "bc")


def _newest(node: LocalNode) -> int:
    return max((snapshot.number for snapshot in listed(layout_of(node))), default=0)
