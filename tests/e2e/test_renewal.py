"""Certificates are renewed under running nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_tier.wire.certificates import make_authority, make_certificate
from tests.e2e.jobs import A_NODE_DIED, JOB
from tests.harness.clusters import Clusters
from tests.harness.logs import ExpectedLogs

pytestmark = [pytest.mark.fuse]


async def test_a_whole_cluster_gets_another_authority_while_it_runs(
    make_cluster: Clusters, expected_logs: ExpectedLogs
) -> None:
    expected_logs.allow(*A_NODE_DIED, r"tls\.not_renewed", r"control\.connection_refused")
    cluster = await make_cluster("a", "b", bucket=False)
    mount = cluster.mountpoint("a")
    await cluster["a"].mount(JOB, mount)
    (mount / "before").write_bytes(b"old certificates")
    await cluster["a"].wait(JOB, "peer", 30)
    place = Path(cluster.tls["a"].ca).parent
    for name in ("ca.pem", "ca.key"):
        (place / name).unlink()
    make_authority(str(place))
    for name in cluster.tls:
        make_certificate(str(place), name, ["127.0.0.1"])
    # Knows the new authority only: whoever still shows old certificates gets nowhere with it.
    await cluster["b"].kill()
    await cluster["b"].start()
    (mount / "after").write_bytes(b"new certificates")
    await cluster["a"].wait(JOB, "peer", 60)
