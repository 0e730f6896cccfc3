"""Writes what a configuration's status says, and events; nothing where nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from controller.driver import names
from controller.driver.configuration import Configuration
from controller.driver.sameness import differences
from controller.reconciling import counts
from controller.reconciling.conditions import Event, Findings, events_between, status_of
from controller.reconciling.world import CONFIGURATIONS, World
from controller.writing import Writer
from fuse_tier.errors import TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

_EVENTS: Final = "/api/v1/namespaces/default/events"  # where those of objects without a namespace are
_LONGEST_MESSAGE: Final = 1024  # the API's own limit for an event


class Teller:
    """Its calls raise as a Writer's do. ``identity`` is who tells, of several replicas."""

    def __init__(self, writer: Writer, world: World, identity: str) -> None:
        self._writer = writer
        self._world = world
        self._identity = identity
        self._counted: dict[str, tuple[str, list[str]]] = {}  # names and conditions, by uid

    async def tell(self, configuration: Configuration, found: Findings) -> None:
        """Sees that its status says what was found."""
        now = _now()
        status = status_of(found, configuration.status, names.daemonset_name(configuration.uid), now)
        counts.told(configuration.name, status)
        self._counted[configuration.uid] = (configuration.name, [one["type"] for one in status["conditions"]])
        if not differences(status, configuration.status):
            return
        path = f"{CONFIGURATIONS}/{configuration.name}/status"
        # Of the object that was looked at, not of one that was made under its name since.
        written = await self._writer.merge(path, {"metadata": {"uid": configuration.uid}, "status": status})
        self._world.see_configuration(written)
        for event in events_between(configuration.status, status):
            await self.send(configuration, event)

    def forget(self, uid: str) -> None:
        """It is gone."""
        if (counted := self._counted.pop(uid, None)) is not None:
            counts.forget(*counted)

    async def send(self, configuration: Configuration, event: Event) -> None:
        """What it says is in the status or in the log, too: that it is not taken keeps nobody."""
        try:
            await self._writer.create(_EVENTS, _event(configuration, self._identity, _now(), event))
        except (TierUnavailable, TierRefused) as error:
            log.info("event.not_taken", configuration=configuration.name, reason=str(error))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _event(configuration: Configuration, identity: str, now: str, event: Event) -> Mapping[str, Any]:
    return {
        "metadata": {"generateName": f"{configuration.name}.", "namespace": "default"},
        "involvedObject": {
            "apiVersion": f"{names.GROUP}/v1",
            "kind": "CheckpointConfiguration",
            "name": configuration.name,
            "uid": configuration.uid,
        },
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason,
        "message": event.message[:_LONGEST_MESSAGE],
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "reportingInstance": identity,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
