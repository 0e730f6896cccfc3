"""What the status of a configuration says: conclusions from what was found, by the conventions of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.driver import names
from controller.reconciling.usage import Usage

RIGHTS = "kubectl apply -k deploy/multitier/controller gives the controller's service account its rights"
_NO_JOBSETS = "the cluster has no JobSets, so none can be applied (Jobs and StatefulSets can). If they are wanted"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a daemonset is."""

    desired: int
    ready: int
    updated: int
    is_seen: bool  # by the daemonset controller, in its newest form


@dataclass(frozen=True, slots=True)
class Findings:
    """What one look at a configuration found."""

    name: str
    generation: int
    rollout: Rollout | None  # None without a daemonset
    conflict: str = ""
    held: tuple[str, ...] = ()  # what the change that is held back would lose
    trouble: tuple[str, str] | None = None  # a reason, and what to do
    ignores_options: bool = False
    lacks_jobsets: bool = False  # the cluster, as far as is known
    unseen: str = ""
    """What of the cluster the controller may not look at: then nothing else was found out."""
    usage: Usage | None = None
    ending: str = ""
    """Likewise, what of the driver of one that is being deleted is waited for."""
    cleaning: str = ""
    """How far the nodes of one that is being deleted are; empty for one that is not, or not so far."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One of them."""

    type: str
    is_so: bool
    reason: str
    message: str


def read_rollout(daemonset: Object) -> Rollout:
    """From the object."""
    status = daemonset.get("status") or {}
    return Rollout(
        status.get("desiredNumberScheduled", 0),
        status.get("numberReady", 0),
        status.get("updatedNumberScheduled", 0),
        status.get("observedGeneration", 0) >= daemonset["metadata"]["generation"],
    )


def conclude(found: Findings) -> tuple[Condition, ...]:
    """Ready, Progressing, Degraded and Conflict; only Degraded where nothing else was found out."""
    if found.unseen:
        return (_degraded(found),)
    return (_ready(found), _progressing(found), _degraded(found), _conflict(found))


def _ready(found: Findings) -> Condition:
    rollout = found.rollout
    if found.ending:
        return Condition("Ready", False, "BeingDeleted", "the driver is being taken away")
    if found.cleaning:
        return Condition("Ready", False, "BeingDeleted", "the driver is gone, and its nodes are being cleaned")
    if rollout is None:
        why = "nothing was made yet: see the other conditions"
        return Condition("Ready", False, "Conflict" if found.conflict else "NotMade", why)
    if not rollout.is_seen:
        return Condition("Ready", False, "NotSeen", "the daemonset controller has not taken the daemonset up yet")
    if not rollout.desired:
        return Condition(
            "Ready", False, "NoNodes", "no node matches nodeSelector and tolerations: see kubectl get nodes"
        )
    told = f"the driver is ready on {rollout.ready} of {rollout.desired} nodes"
    if rollout.ready < rollout.desired:
        pods = f"kubectl get pods --all-namespaces -l {names.UID_LABEL} shows which are not"
        return Condition("Ready", False, "NodesNotReady", f"{told}: {pods}")
    return Condition("Ready", True, "AllNodesReady", told)


def _progressing(found: Findings) -> Condition:
    if found.ending:
        return Condition("Progressing", True, "BeingDeleted", found.ending)
    if found.cleaning:
        return Condition("Progressing", True, "CleaningNodes", found.cleaning)
    if found.held:
        command = f"kubectl annotate --overwrite cpc {found.name} {names.DATA_LOSS_ANNOTATION}={found.generation}"
        return Condition(
            "Progressing", False, "ChangeHeld", f"{'; '.join(found.held)}. To have it so all the same: {command}"
        )
    rollout = found.rollout
    if rollout is None:
        return Condition("Progressing", False, "NotMade", "nothing was made yet")
    if rollout.is_seen and rollout.updated >= rollout.desired:
        return Condition("Progressing", False, "RolledOut", "every node runs what the configuration says")
    told = f"{rollout.updated} of {rollout.desired} nodes run what the configuration says"
    return Condition("Progressing", True, "RollingOut", told)


def _degraded(found: Findings) -> Condition:
    if found.unseen:
        return Condition("Degraded", True, "Forbidden", f"{found.unseen}: {RIGHTS}")
    if found.trouble is not None:
        return Condition("Degraded", True, *found.trouble)
    if found.lacks_jobsets:
        return Condition("Degraded", False, "JobSetsNotInstalled", f"{_NO_JOBSETS}: {names.JOBSET_COMMAND}")
    if found.ignores_options:
        return Condition(
            "Degraded",
            False,
            "OptionsNotNeeded",
            "gcsFuseMountOptions have no effect: nothing is mounted with gcsfuse",
        )
    return Condition("Degraded", False, "AsWanted", "the controller could do all that it had to")


def _conflict(found: Findings) -> Condition:
    if found.conflict:
        return Condition("Conflict", True, "NodesTaken", found.conflict)
    return Condition("Conflict", False, "NoConflict", "no node is another configuration's")


def status_of(found: Findings, before: Object, daemonset_name: str, now: str) -> dict[str, Any]:
    """The status to write, equal to the one before where nothing has changed."""
    earlier = {one["type"]: one for one in before.get("conditions") or ()}
    conditions = []
    for one in conclude(found):
        told = "True" if one.is_so else "False"
        was = earlier.get(one.type, {})
        conditions.append(
            {
                "type": one.type,
                "status": told,
                "reason": one.reason,
                "message": one.message,
                "observedGeneration": found.generation,
                "lastTransitionTime": was["lastTransitionTime"] if was.get("status") == told else now,
            }
        )
    if found.unseen:
        kept = [one for one in before.get("conditions") or () if one["type"] != "Degraded"]
        return {
            "nodesDesired": before.get("nodesDesired", 0),
            "nodesReady": before.get("nodesReady", 0),
            "error": conditions[0]["message"],
            "conditions": [*kept, *conditions],
        }
    wrong = [found.conflict, "; ".join(found.held), found.trouble[1] if found.trouble else ""]
    rollout = found.rollout
    return {
        "observedGeneration": found.generation,
        "instanceHandle": daemonset_name if rollout or found.ending or found.cleaning else "",
        "error": "; ".join(filter(None, wrong)),
        "nodesDesired": rollout.desired if rollout else 0,
        "nodesReady": rollout.ready if rollout else 0,
        **_used(found.usage, before),
        "conditions": conditions,
    }


def _used(usage: Usage | None, before: Object) -> dict[str, Any]:
    """What is not known stays as it was said last; None takes away what was said and is not so any more."""
    if usage is None:
        return {}
    told = {"volumes": usage.volumes, "lastCompleteStep": usage.step, "lastBackupTime": usage.backup or None}
    return {key: value for key, value in told.items() if value is not None or before.get(key) is not None}


@dataclass(frozen=True, slots=True)
class Event:
    """What is told of a configuration, once."""

    is_warning: bool
    reason: str
    message: str


_WARNED = ("ChangeHeld", "NoNodes", "JobSetsNotInstalled")


def events_between(before: Object, after: Object) -> tuple[Event, ...]:
    """What is worth telling of a change of the status: nothing twice, also after a restart of the controller."""

    def known(status: Object) -> dict[str, tuple[str, str]]:
        return {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions") or ()}

    earlier, found = known(before), []
    for one in after["conditions"]:
        if earlier.get(one["type"]) == (one["status"], one["reason"]):
            continue
        kind, so = one["type"], one["status"] == "True"
        if kind == "Conflict" and so:
            found.append(Event(True, "Conflict", one["message"]))
        elif (kind == "Degraded" and so) or one["reason"] in _WARNED:
            found.append(Event(True, one["reason"], one["message"]))
        elif kind == "Ready" and so:
            found.append(Event(False, "Ready", one["message"]))
        elif kind == "Conflict" and earlier.get(kind, ("",))[0] == "True":
            found.append(Event(False, "ConflictOver", one["message"]))
        elif one["reason"] == "OptionsNotNeeded":
            found.append(Event(False, one["reason"], one["message"]))
    return tuple(found)
