"""Deletes driver pods that have not been ready for long, so that they are made anew: one, then a pause.

How long a pod has not been ready is counted by this process's own clock, from when it was first seen so: clocks of
machines are never compared. Left alone are pods that end, that no node has, and those of nodes that do not answer:
what would make them anew is not there either. Which pod is next is a pure decision (``next_one``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
import trio

from controller.driver import names
from controller.reconciling import counts
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

GRACE_SECONDS: Final = 300.0

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DriverPod:
    """What is known of one."""

    name: str
    uid: str
    node: str
    configuration: str  # its uid
    is_ready: bool
    is_ending: bool


def read_pod(found: Object) -> DriverPod:
    """From the object."""
    metadata, status = found["metadata"], found.get("status") or {}
    ready = {one["type"]: one["status"] for one in status.get("conditions") or ()}.get("Ready")
    return DriverPod(
        metadata["name"],
        metadata["uid"],
        (found.get("spec") or {}).get("nodeName") or "",
        (metadata.get("labels") or {}).get(names.UID_LABEL, ""),
        ready == "True",
        "deletionTimestamp" in metadata,
    )


def next_one(
    unready: Mapping[DriverPod, float], answering: Collection[str], grace: float
) -> tuple[DriverPod, float] | None:
    """Which pod has been unready for longest, and when its grace is over. ``unready`` has since when each is.

    ``answering`` are the nodes that answer. None without such a pod.
    """
    known = [(pod, since + grace) for pod, since in unready.items() if pod.node in answering]
    return min(known, key=lambda one: (one[1], one[0].name), default=None)


class Uptime:
    """Follows the driver's pods (a ``Follower``) and keeps them up.

    ``deleted`` is told of each pod that was deleted.
    """

    def __init__(
        self,
        writer: Writer,
        namespace: str,
        answering: Callable[[], Collection[str]],
        deleted: Callable[[DriverPod], Awaitable[None]],
        *,
        backoff: float,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._writer = writer
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self._answering = answering
        self._deleted = deleted
        self._backoff = backoff
        self._grace = grace
        self._unready: dict[str, tuple[DriverPod, float]] = {}  # by uid

    def seen(self, found: Object) -> None:
        """It is there, or has changed."""
        pod = read_pod(found)
        if pod.is_ready or pod.is_ending or not pod.node:
            self._unready.pop(pod.uid, None)
        else:
            _, since = self._unready.get(pod.uid, (pod, trio.current_time()))
            self._unready[pod.uid] = (pod, since)

    def lost(self, key: str) -> None:
        """It is gone."""
        self._unready.pop(key, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            now = trio.current_time()
            found = next_one(dict(self._unready.values()), self._answering(), self._grace)
            if found is not None and found[1] <= now:
                await self._delete(found[0])
                await trio.sleep(self._backoff)
            else:  # one that is seen from now on has the whole of its grace before it
                await trio.sleep_until(now + self._grace if found is None else min(found[1], now + self._grace))

    async def _delete(self, pod: DriverPod) -> None:
        try:
            await self._writer.delete(f"{self.path}/{pod.name}", uid=pod.uid)
        except (Gone, Clash) as error:
            self._unready.pop(pod.uid, None)
            log.info("uptime.gone_already", pod=pod.name, reason=str(error))
            return
        except (TierUnavailable, TierRefused) as error:
            log.warning("uptime.not_deleted", pod=pod.name, reason=str(error), remedy="it is tried again")
            return
        self._unready.pop(pod.uid, None)
        counts.driver_pod_deleted()
        log.warning(
            "uptime.pod_deleted",
            pod=pod.name,
            member=pod.node,
            grace_seconds=self._grace,
            remedy="it is made anew; see why it was not ready in its containers' logs",
        )
        await self._deleted(pod)
