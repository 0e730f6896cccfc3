"""Makes the cluster what the configurations say: one after another, whenever something of one has changed.

What is to be done is decided elsewhere (selection, conditions, driver/); this module reads the world, asks them, and
writes. Invariants: a finalizer stands before anything is made, and nothing that is made is left when it goes; where
nothing has changed nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import trio

from controller.driver import names
from controller.driver.configuration import Configuration, read_storage
from controller.driver.containers import Settings
from controller.driver.images import choose_images
from controller.driver.manifests import config_map, daemonset
from controller.driver.sameness import differences
from controller.reconciling.conditions import Findings, events_between, read_rollout, status_of
from controller.reconciling.issuing import Issuer
from controller.reconciling.queue import Queue
from controller.reconciling.selection import conflict_of
from controller.reconciling.world import CONFIGURATIONS, Object, World
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import ConfigError, TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS: Final = 3600.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_EVENTS: Final = "/api/v1/namespaces/default/events"  # where those of objects without a namespace are


@dataclass(frozen=True, slots=True)
class Task:
    """What the controller is told on its command line."""

    settings: Settings
    images: str
    """The config map that names them."""
    identity: str
    """Which of several replicas this is."""


class Reconciler:
    """One for all configurations."""

    def __init__(self, writer: Writer, world: World, queue: Queue, task: Task) -> None:
        self._writer = writer
        self._world = world
        self._queue = queue
        self._task = task
        self._issuer = Issuer(writer, world, task.settings)
        self._failing: set[str] = set()
        apps = f"/apis/apps/v1/namespaces/{task.settings.namespace}"
        self._daemonsets = f"{apps}/daemonsets"
        self._secrets = f"/api/v1/namespaces/{task.settings.namespace}/secrets"
        self._config_maps = f"/api/v1/namespaces/{task.settings.namespace}/configmaps"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            uid = await self._queue.next()
            configuration = self._world.configurations.get(uid)
            if configuration is None:
                self._queue.done(uid)
                continue
            try:
                await (self._remove if configuration.is_deleted else self._make)(configuration)
            except Clash as error:
                log.info("reconcile.again", configuration=configuration.name, reason=str(error))
                self._queue.again(uid)
            except (TierUnavailable, TierRefused) as error:
                self._tell_failure(configuration, error)
                self._queue.again(uid)
            else:
                self._failing.discard(uid)
                self._queue.done(uid)

    async def look_again(self) -> None:
        """Until cancelled: sees, at the start and each hour, to what grows old without any change: certificates."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._issuer.serve_ranks()
            except (TierUnavailable, TierRefused) as error:
                log.warning("certificates.not_issued", reason=str(error), remedy="it is tried again")
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            await trio.sleep(_LOOK_AGAIN_SECONDS)
            self._queue.add(self._world.configurations)

    async def _make(self, configuration: Configuration) -> None:
        if names.FINALIZER not in configuration.finalizers:
            await self._set_finalizers(configuration, [*configuration.finalizers, names.FINALIZER])
        running = self._world.daemonsets
        conflict = conflict_of(
            configuration, self._world.configurations.values(), running.keys(), self._world.nodes.values()
        )
        found = running.get(configuration.uid)
        held: tuple[str, ...] = ()
        wanted = configuration
        if found is not None and (storage := read_storage(found)) is not None:
            lost = storage.loses(configuration.storage)
            if lost and configuration.allowed_loss != str(configuration.generation):
                held, wanted = lost, replace(configuration, storage=storage)
        trouble = None
        failure: TierRefused | None = None
        if configuration.spec.get("tlsSecretName"):
            trouble = (
                "TlsSecretNotSupported",
                "tlsSecretName is not supported yet: leave it out, and certificates are made",
            )
        elif found is not None or not conflict:
            try:
                await self._apply(wanted)
            except ConfigError as error:
                trouble = ("ImagesMissing", str(error))
            except TierRefused as error:
                trouble = ("Refused", f"the API server refuses what is to be made: {error}")
                failure = error
        found = running.get(configuration.uid)
        rollout = None if found is None else read_rollout(found)
        await self._tell(
            configuration,
            Findings(
                configuration.name,
                configuration.generation,
                rollout,
                conflict,
                held,
                trouble,
                bool(configuration.spec.get("gcsFuseMountOptions")),
            ),
        )
        if failure is not None:
            raise failure

    async def _apply(self, configuration: Configuration) -> None:
        """Raises ConfigError without images."""
        settings, name = self._task.settings, names.daemonset_name(configuration.uid)
        wanted = daemonset(configuration, choose_images(self._task.images, self._world.images()), settings)
        await self._issuer.serve_nodes(configuration)
        told = config_map(configuration, settings)
        if differences(told, self._world.config_maps.get(name, {})):
            self._world.see_config_map(await self._writer.apply(f"{self._config_maps}/{name}", told))
        if differences(wanted, self._world.daemonsets.get(configuration.uid, {})):
            self._world.see_daemonset(await self._writer.apply(f"{self._daemonsets}/{name}", wanted))
            log.info("daemonset.applied", configuration=configuration.name, daemonset=name)

    async def _remove(self, configuration: Configuration) -> None:
        """The daemonset with its pods; what they read; and then the finalizer. Each waits for the one before."""
        if names.FINALIZER not in configuration.finalizers:
            return
        found = self._world.daemonsets.get(configuration.uid)
        if found is not None:
            if "deletionTimestamp" not in found["metadata"]:
                name = found["metadata"]["name"]
                await self._delete(f"{self._daemonsets}/{name}", "Foreground")
                log.info("daemonset.deleted", configuration=configuration.name, daemonset=name)
            return
        for collection, known in (
            (self._config_maps, self._world.config_maps),
            (self._secrets, self._world.secrets),
        ):
            for name, one in list(known.items()):
                if (one["metadata"].get("annotations") or {}).get(
                    names.CONFIGURATION_ANNOTATION
                ) == configuration.name:
                    await self._delete(f"{collection}/{name}")
        await self._set_finalizers(configuration, [one for one in configuration.finalizers if one != names.FINALIZER])
        log.info("configuration.removed", configuration=configuration.name)

    async def _delete(self, path: str, propagation: str = "Background") -> None:
        try:
            await self._writer.delete(path, propagation)
        except Gone:
            log.info("object.gone_already", path=path)

    async def _set_finalizers(self, configuration: Configuration, finalizers: list[str]) -> None:
        version = self._world.versions[configuration.uid]
        changes = {"metadata": {"finalizers": finalizers, "resourceVersion": version}}
        path = f"{CONFIGURATIONS}/{configuration.name}"
        try:
            found = await self._writer.merge(path, changes)
        except Gone:
            self._world.lose_configuration(configuration.uid)
            return
        if finalizers:
            self._world.see_configuration(found)

    async def _tell(self, configuration: Configuration, findings: Findings) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = status_of(findings, configuration.status, names.daemonset_name(configuration.uid), now)
        if not differences(status, configuration.status):
            return
        path = f"{CONFIGURATIONS}/{configuration.name}/status"
        # Of the object that was looked at, not of one that was made under its name since.
        found = await self._writer.merge(path, {"metadata": {"uid": configuration.uid}, "status": status})
        self._world.see_configuration(found)
        for event in events_between(configuration.status, status):
            await self._send_event(configuration, _event(configuration, self._task.identity, now, event))

    async def _send_event(self, configuration: Configuration, event: Object) -> None:
        """What it says is in the status, too: that it is not taken keeps nobody."""
        try:
            await self._writer.create(_EVENTS, event)
        except (TierUnavailable, TierRefused) as error:
            log.info("event.not_taken", configuration=configuration.name, reason=str(error))

    def _tell_failure(self, configuration: Configuration, error: Exception) -> None:
        if configuration.uid not in self._failing:
            self._failing.add(configuration.uid)
            log.warning(
                "reconcile.failed", configuration=configuration.name, reason=str(error), remedy="it is tried again"
            )


def _event(configuration: Configuration, identity: str, now: str, event: Any) -> dict[str, Any]:
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
        "message": event.message[:1024],  # the API's own limit
        "source": {"component": names.MANAGER},
        "reportingComponent": names.MANAGER,
        "reportingInstance": identity,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
