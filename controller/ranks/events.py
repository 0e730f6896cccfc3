"""Events on a job: on the JobSet, Job or StatefulSet whose pods have the volumes, for ``kubectl describe``.

An event that cannot be sent is told in the log, where all of it stands anyway, and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import trio

from controller.ranks.book import RankBook
from controller.ranks.objects import Name, Pod, Reference
from controller.writing import Writer
from fuse_tier.checkpoints import Job
from fuse_tier.coordinate.milestones import Observer
from fuse_tier.errors import TierRefused, TierUnavailable
from fuse_tier.identity import Identity

log = structlog.get_logger(__name__)

COMPONENT: Final = "fuse-tier-ranks"
_MOST_WAITING: Final = 1000
_LONGEST_MESSAGE: Final = 1024  # the API's own limit
_RESTARTS_TOLD_EVERY_SECONDS: Final = 60.0  # of one job: its pods restart together


class JobEvents(Observer):
    """Of all jobs of a cluster."""

    def __init__(self, writer: Writer, book: RankBook) -> None:
        self._writer = writer
        self._book = book
        self._restarts_told: dict[Name, float] = {}
        self._give, self._take = trio.open_memory_channel[tuple[str, Mapping[str, Any]]](_MOST_WAITING)

    def resumed(self, job: Job, step: int, ranks: int, tiers: Sequence[str]) -> None:
        """See Observer."""
        who = f"All {ranks} ranks go" if ranks > 1 else "The job goes"
        where = f", which is in {', '.join(tiers)}" if tiers else ""
        self._tell(job, "Normal", "Restored", f"{who} on from step {step}{where}")

    def not_backed_up(self, identity: Identity, reason: str) -> None:
        """See Observer."""
        told = f"{identity} could not be copied to the bucket; it is tried again: {reason}"
        self._tell(Job.of(identity), "Warning", "BackupFailed", told)

    def restarted(self, job: Name, pod: Pod) -> None:
        """A container was started again in its place: its node may have seen it, and we cannot tell whether."""
        now = trio.current_time()
        if now - self._restarts_told.get(job, float("-inf")) < _RESTARTS_TOLD_EVERY_SECONDS:
            return
        self._restarts_told = {one: at for one, at in self._restarts_told.items() if now - at < 3600} | {job: now}
        log.warning("ranks.restarted_in_place", job=str(job), pod=str(pod.name), remedy="docs/frameworks.md")
        told = (
            f"{pod.name.name} was started again in its place. It is given the step that all ranks have at its first "
            "look at its volume, which an event Restored tells of; where its node cannot see containers, unless the "
            "job asks (docs/frameworks.md), its ranks may go on from different ones"
        )
        self._tell(Job(job.namespace, job.name), "Warning", "RestartedInPlace", told)

    def _tell(self, job: Job, kind: str, reason: str, message: str) -> None:
        owner = self._book.origin_of(Name(job.namespace, job.workload))
        if owner is None:
            log.info("event.of_no_job", job=str(job), reason=reason, message=message)
            return
        try:
            self._give.send_nowait((job.namespace, _event(owner, kind, reason, message)))
        except trio.WouldBlock:
            log.info("event.dropped", job=str(job), reason=reason, message=message)

    async def run(self) -> None:
        """Sends them, until cancelled."""
        self._book.restarted = self.restarted
        async for namespace, event in self._take:
            try:
                await self._writer.create(f"/api/v1/namespaces/{namespace}/events", event)
            except (TierUnavailable, TierRefused) as error:
                log.info("event.not_taken", object=event["involvedObject"]["name"], reason=str(error))


def _event(owner: Reference, kind: str, reason: str, message: str) -> Mapping[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "metadata": {"generateName": f"{owner.name.name}.", "namespace": owner.name.namespace},
        "involvedObject": {
            "apiVersion": owner.version,
            "kind": owner.kind,
            "namespace": owner.name.namespace,
            "name": owner.name.name,
            **({"uid": owner.uid} if owner.uid else {}),
        },
        "type": kind,
        "reason": reason,
        "message": message[:_LONGEST_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
