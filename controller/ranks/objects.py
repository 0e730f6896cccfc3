"""What is read off Kubernetes' objects: which job a pod is of, and its place in it.

Objects are as the API server writes them, in JSON. They are other people's: whatever is missing or malformed in them
makes a pod one without a job, never an error here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fuse_tier.checkpoints import is_checkpoint_name
from fuse_tier.restarts import Wish

POOL_LABEL: Final = "cloud.google.com/gke-nodepool"
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
HOST_LABEL: Final = "kubernetes.io/hostname"

STEP_ANNOTATION: Final = "checkpointing.gke.io/restore-step"
BACKUP_ANNOTATION: Final = "checkpointing.gke.io/restore-backup"
_LONGEST_STEP: Final = 18  # digits

_JOBSET: Final = "jobset.sigs.k8s.io/"
_INDEX: Final = "batch.kubernetes.io/job-completion-index"
_POD_INDEX: Final = "apps.kubernetes.io/pod-index"
_OVER: Final = frozenset({"Succeeded", "Failed"})

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """A namespace and a name in it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that says how many workers there are."""

    kind: str  # Job or StatefulSet
    name: Name

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An object of Kubernetes', as events name it."""

    version: str
    kind: str
    name: Name
    uid: str  # empty: not known


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its job a pod stands. ``slices``, ``slice`` and ``attempt`` are a JobSet's; else 1, 0 and 0."""

    job: Name
    owner: Owner
    slices: int
    slice: int
    worker: int
    attempt: int  # of the JobSet to run, counted from 0
    origin: str  # the uid of what made it: jobs that have one name after another differ in it
    is_of_jobset: bool = False

    @property
    def made_by(self) -> Reference:
        """The JobSet, Job or StatefulSet."""
        if self.is_of_jobset:
            return Reference("jobset.x-k8s.io/v1alpha2", "JobSet", self.job, self.origin)
        version = "apps/v1" if self.owner.kind == "StatefulSet" else "batch/v1"
        return Reference(version, self.owner.kind, self.job, self.origin)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod with a volume of ours."""

    uid: str
    name: Name
    created: str  # in the API's way of writing, which sorts
    node: str  # empty until it is scheduled
    is_over: bool  # its containers have ended, or are about to
    place: Place | None  # None: of no job that has ranks
    restarts: int = 0  # of its containers, in their place


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of a node: what it fails together with, and where others reach it."""

    pool: str
    address: str
    zone: str = ""
    host: str = ""


def read_pod(found: Object, driver: str) -> Pod | None:
    """None for a pod that has no volume of this CSI driver's."""
    spec, metadata, status = found.get("spec") or {}, found["metadata"], found.get("status") or {}
    volumes = spec.get("volumes") or []
    if not any((volume.get("csi") or {}).get("driver") == driver for volume in volumes):
        return None
    name = Name(metadata["namespace"], metadata["name"])
    is_over = bool(metadata.get("deletionTimestamp")) or status.get("phase") in _OVER
    created = metadata.get("creationTimestamp") or ""
    restarts = sum(one.get("restartCount") or 0 for one in status.get("containerStatuses") or [])
    return Pod(metadata["uid"], name, created, spec.get("nodeName") or "", is_over, _place(name, metadata), restarts)


def read_wish(found: Object) -> Wish | str | None:
    """What somebody has written on a JobSet, Job or StatefulSet; as a sentence where it cannot be followed."""
    told = found["metadata"].get("annotations") or {}
    step, backup = (str(told.get(name, "")) for name in (STEP_ANNOTATION, BACKUP_ANNOTATION))
    if step and backup:
        return f"{STEP_ANNOTATION} and {BACKUP_ANNOTATION} are both there: leave one"
    if backup:
        if not is_checkpoint_name(backup):
            return f"{BACKUP_ANNOTATION}: {backup[:40]!r} is no date of a backup, such as 2026-01-31_08-30"
        return Wish(f"backup {backup}", backup=backup)
    if not step:
        return None
    if not (step.isascii() and step.isdecimal() and len(step) <= _LONGEST_STEP):
        return f"{STEP_ANNOTATION}: {step[:40]!r} is no step: give a number"
    return Wish(f"step {step}", int(step))


def read_node(found: Object) -> Node:
    """What it fails together with, by its labels, and where others reach it."""
    addresses = {one.get("type"): one.get("address") for one in (found.get("status") or {}).get("addresses") or []}
    labels = found["metadata"].get("labels") or {}
    address = addresses.get("InternalIP") or addresses.get("Hostname") or ""
    return Node(labels.get(POOL_LABEL, ""), address, labels.get(ZONE_LABEL, ""), labels.get(HOST_LABEL, ""))


def read_workers(found: Object) -> int | None:
    """How many workers a Job has whose pods are indexed, or a StatefulSet; None for other Jobs."""
    spec = found.get("spec") or {}
    if "replicas" in spec or "serviceName" in spec:
        return int(spec.get("replicas", 1))
    if spec.get("completionMode") != "Indexed":
        return None
    completions = spec.get("completions")
    return int(completions) if completions else None


def _place(name: Name, metadata: Object) -> Place | None:
    told = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    owners = {one.get("kind"): one for one in metadata.get("ownerReferences") or []}
    if (stateful_set := owners.get("StatefulSet")) is not None:
        ordinal = _number(told.get(_POD_INDEX, name.name.rpartition("-")[2]))
        its_name = Name(name.namespace, stateful_set.get("name") or "")
        owner = Owner("StatefulSet", its_name)
        return None if ordinal is None else Place(its_name, owner, 1, 0, ordinal, 0, stateful_set.get("uid") or "")
    job, worker = owners.get("Job"), _number(told.get(_INDEX))
    if job is None or worker is None:
        return None
    its_name = Name(name.namespace, job.get("name") or "")
    owner = Owner("Job", its_name)
    if (jobset := told.get(f"{_JOBSET}jobset-name")) is None:
        return Place(its_name, owner, 1, 0, worker, 0, job.get("uid") or "")
    slices, number, attempt = (
        _number(told.get(f"{_JOBSET}{label}", default))
        for label, default in (("replicatedjob-replicas", "1"), ("job-index", "0"), ("restart-attempt", "0"))
    )
    if slices is None or number is None or attempt is None:
        return None
    origin = told.get(f"{_JOBSET}jobset-uid", "")  # older JobSet controllers write none
    return Place(Name(name.namespace, jobset), owner, slices, number, worker, attempt, origin, is_of_jobset=True)


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 10 else None
