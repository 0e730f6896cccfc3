"""What only a coordinator counts; what all processes do is in ``metrics.py``."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge

from fuse_tier import metrics
from fuse_tier.metrics import REGISTRY
from fuse_tier.standing import BUCKET, Standing, newest_by_tier

_alive = Gauge("fuse_tier_coordinator_nodes_alive", "Nodes that hold a lease.", registry=REGISTRY)
_accepted = Counter("fuse_tier_coordinator_reports", "Reports of nodes that were accepted.", registry=REGISTRY)
_refused = Counter("fuse_tier_coordinator_refused", "Reports that were refused.", ["kind"], registry=REGISTRY)


def nodes_alive(nodes: int) -> None:
    """So many nodes hold a lease."""
    _alive.set(nodes)


def report_accepted() -> None:
    """A node's report was taken in."""
    _accepted.inc()


def report_refused(kind: str) -> None:
    """A node's report was refused; ``kind`` is the name of the error."""
    _refused.labels(kind).inc()


def complete(standings: Iterable[Standing]) -> None:
    """These are complete. How it stands with the bucket the steward says itself."""
    newest = newest_by_tier(standings)
    metrics.checkpoints_complete(
        {(str(job), tier): created_ns for (job, tier), created_ns in newest.items() if tier != BUCKET}
    )
