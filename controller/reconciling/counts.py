"""What only the controller counts and measures; what all processes do is in ``fuse_tier/metrics.py``.

Labels are bounded by what the cluster's operator makes: configurations, and Secrets of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from fuse_tier.metrics import REGISTRY

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

_leading = Gauge("fuse_tier_controller_leading", "1 for the replica that acts.", registry=REGISTRY)
_queue = Gauge("fuse_tier_controller_queue_length", "Configurations to be looked at.", registry=REGISTRY)
_looks = Histogram(
    "fuse_tier_controller_reconcile_seconds", "One look at a configuration.", buckets=_SECONDS, registry=REGISTRY
)
_failures = Counter("fuse_tier_controller_reconcile_failures", "Looks that failed.", registry=REGISTRY)
_requests = Counter(
    "fuse_tier_controller_api_requests", "Answers of the API server.", ["method", "status"], registry=REGISTRY
)
_restarted = Counter(
    "fuse_tier_controller_driver_pods_deleted", "Driver pods deleted since they were not ready.", registry=REGISTRY
)
_desired = Gauge(
    "fuse_tier_controller_nodes_desired", "Nodes that should run the driver.", ["configuration"], registry=REGISTRY
)
_ready = Gauge(
    "fuse_tier_controller_nodes_ready", "Nodes whose driver is ready.", ["configuration"], registry=REGISTRY
)
_condition = Gauge(
    "fuse_tier_controller_condition",
    "1 for a condition that is true.",
    ["configuration", "condition"],
    registry=REGISTRY,
)
_expiry = Gauge(
    "fuse_tier_controller_certificate_expiry_timestamp_seconds",
    "When the first certificate of a Secret ends, since 1970.",
    ["secret"],
    registry=REGISTRY,
)


def leads(is_so: bool) -> None:
    """Whether this replica acts."""
    _leading.set(is_so)


def queued(length: int) -> None:
    """So many configurations are to be looked at."""
    _queue.set(length)


def looked(seconds: float, *, failed: bool) -> None:
    """A configuration was looked at."""
    _looks.observe(seconds)
    _failures.inc(failed)


def api_answered(method: str, status: int) -> None:
    """The API server answered a call; 0: it did not."""
    _requests.labels(method, str(status) if status else "none").inc()


def driver_pod_deleted() -> None:
    """A driver pod was deleted so that it is made anew."""
    _restarted.inc()


def told(configuration: str, status: Mapping[str, Any]) -> None:
    """What the status of a configuration says."""
    _desired.labels(configuration).set(status["nodesDesired"])
    _ready.labels(configuration).set(status["nodesReady"])
    for one in status["conditions"]:
        _condition.labels(configuration, one["type"]).set(one["status"] == "True")


def forget(configuration: str, conditions: Iterable[str]) -> None:
    """A configuration is gone."""
    _desired.remove(configuration)
    _ready.remove(configuration)
    for kind in conditions:
        _condition.remove(configuration, kind)


def certificate_ends(secret: str, timestamp: float | None) -> None:
    """When the first certificate of a Secret ends; None: the Secret is gone."""
    if timestamp is None:
        _expiry.remove(secret)
    else:
        _expiry.labels(secret).set(timestamp)
