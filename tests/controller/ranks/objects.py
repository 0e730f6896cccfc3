"""Objects as the API server writes them, no more of them than ranks need."""

from __future__ import annotations

from typing import Any

from controller.ranks.objects import HOST_LABEL, POOL_LABEL, ZONE_LABEL
from csi.services import DRIVER_NAME

Object = dict[str, Any]


def pod(
    name: str,
    *,
    uid: str = "",
    node: str = "",
    labels: dict[str, str] | None = None,
    owner: tuple[str, str] | None = None,
    driver: str = DRIVER_NAME,
    phase: str = "Pending",
    created: str = "2026-01-01T00:00:00Z",
    deleted: bool = False,
    restarts: int = 0,
) -> Object:
    """A pod of namespace ``ml`` with one CSI volume; ``owner`` is a kind and a name."""
    owners = [{"kind": owner[0], "name": owner[1], "uid": f"uid-of-{owner[1]}"}] if owner else []
    return {
        "metadata": {
            "name": name,
            "namespace": "ml",
            "uid": uid or f"uid-of-{name}",
            "creationTimestamp": created,
            "labels": labels or {},
            "ownerReferences": owners,
            **({"deletionTimestamp": created} if deleted else {}),
        },
        "spec": {
            "nodeName": node,
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "v", "csi": {"driver": driver}}],
        },
        "status": {"phase": phase, "containerStatuses": [{"name": "c", "restartCount": restarts}]},
    }


def jobset_pod(job: str, slices: int, number: int, worker: int, *, attempt: int = 0, **others: Any) -> Object:
    """A pod of a JobSet."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job,
        "jobset.sigs.k8s.io/replicatedjob-replicas": str(slices),
        "jobset.sigs.k8s.io/job-index": str(number),
        "jobset.sigs.k8s.io/restart-attempt": str(attempt),
        "batch.kubernetes.io/job-completion-index": str(worker),
    }
    name = f"{job}-workers-{number}-{worker}-{attempt}"
    return pod(name, labels=labels, owner=("Job", f"{job}-workers-{number}"), **others)


def node(address: str, pool: str = "") -> Object:
    """A node."""
    return {
        "metadata": {
            "labels": {POOL_LABEL: pool, ZONE_LABEL: f"zone-of-{pool}", HOST_LABEL: f"host-of-{pool}"} if pool else {}
        },
        "status": {
            "addresses": [{"type": "Hostname", "address": "host"}, {"type": "InternalIP", "address": address}]
        },
    }
