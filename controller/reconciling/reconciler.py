"""Makes the cluster what the configurations say: one after another, whenever something of one has changed.

What is to be done is decided elsewhere (selection, conditions, driver/); this module reads the world, asks them, and
writes. Invariants: a finalizer stands before anything is made, and nothing that is made is left when it goes; where
nothing has changed nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio

from controller.driver import names
from controller.driver.configuration import Configuration, read_storage
from controller.driver.containers import Settings
from controller.driver.images import choose_images
from controller.driver.manifests import config_map, daemonset
from controller.driver.sameness import differences
from controller.reconciling import counts
from controller.reconciling.conditions import RIGHTS, Findings, read_rollout
from controller.reconciling.issuing import Issuer, TlsSecretUnusable
from controller.reconciling.queue import Queue
from controller.reconciling.removing import CLEAN_SECONDS, Remover
from controller.reconciling.selection import conflict_of
from controller.reconciling.telling import Teller
from controller.reconciling.usage import Usage
from controller.reconciling.world import CONFIGURATIONS, World
from controller.watching import Forbidden, Throttled
from controller.writing import Clash, Gone, Writer
from fuse_tier.errors import ConfigError, TierRefused, TierUnavailable

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 60.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_TOLD: Final = 3  # nodes, of those that one condition is about

Trouble = tuple[str, str]  # a reason, and what to do


@dataclass(frozen=True, slots=True)
class Task:
    """What the controller is told on its command line."""

    settings: Settings
    images: str
    """The config map that names them."""
    identity: str
    """Which of several replicas this is."""
    clean_seconds: float = CLEAN_SECONDS
    """How long the end of a configuration waits for nodes to be clean."""


class Reconciler:
    """One for all configurations. ``usage`` gives what the coordinator tells of one; None where it is not known."""

    def __init__(
        self,
        writer: Writer,
        world: World,
        queue: Queue,
        task: Task,
        issuer: Issuer,
        usage: Callable[[Configuration], Usage | None] = lambda _: None,
    ) -> None:
        self._writer = writer
        self._world = world
        self._queue = queue
        self._task = task
        self._usage = usage
        self._issuer = issuer
        self._teller = Teller(writer, world, task.identity)
        self._remover = Remover(
            writer, world, queue, self._teller, task.settings, images=task.images, clean_seconds=task.clean_seconds
        )
        self._failing: set[str] = set()
        apps = f"/apis/apps/v1/namespaces/{task.settings.namespace}"
        self._daemonsets = f"{apps}/daemonsets"
        self._config_maps = f"/api/v1/namespaces/{task.settings.namespace}/configmaps"

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            uid = await self._queue.next()
            counts.queued(len(self._queue))
            configuration = self._world.configurations.get(uid)
            if configuration is None:
                self._queue.done(uid)
                self._teller.forget(uid)
                continue
            began, failed = time.perf_counter(), True
            try:
                await self._look(configuration)
            except Clash as error:
                log.info("reconcile.again", configuration=configuration.name, reason=str(error))
                self._queue.again(uid)
            except (TierUnavailable, TierRefused) as error:
                self._tell_failure(configuration, error)
                self._queue.again(uid, error.pause if isinstance(error, Throttled) else 0.0)
            else:
                failed = False
                self._failing.discard(uid)
                self._queue.done(uid)
            counts.looked(time.perf_counter() - began, failed=failed)

    async def look_again(self) -> None:
        """Until cancelled: sees, at the start and whenever it is due, to what changes by itself: certificates."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._issuer.serve_ranks()
            except (TierUnavailable, TierRefused, ConfigError) as error:
                if pause == _FIRST_PAUSE_SECONDS:
                    log.warning("certificates.not_issued", reason=str(error), remedy="it is tried again")
                await trio.sleep(pause)
                pause = min(2 * pause, _LOOK_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            self._issuer.tell_ends()
            due = trio.current_time() + self._issuer.seconds_until_due()
            while trio.current_time() < due:
                await trio.sleep(min(_LOOK_SECONDS, due - trio.current_time()))
                due = min(due, trio.current_time() + self._issuer.seconds_until_due())
            self._queue.add(self._world.configurations)

    async def _look(self, configuration: Configuration) -> None:
        if not self._world.is_complete:
            if self._world.refused and not configuration.is_deleted:
                # Nothing is made or removed while not all is known; but somebody may have to mend that.
                unseen = "; ".join(self._world.refused.values())
                await self._teller.tell(
                    configuration, Findings(configuration.name, configuration.generation, None, unseen=unseen)
                )
        elif configuration.is_deleted:
            await self._remove(configuration)
        else:
            await self._make(configuration)

    async def _make(self, configuration: Configuration) -> None:
        if names.FINALIZER not in configuration.finalizers:
            await self._set_finalizers(configuration, [*configuration.finalizers, names.FINALIZER])
        running = self._world.daemonsets
        conflict = conflict_of(
            configuration, self._world.configurations.values(), self._world.occupying(), self._world.nodes.values()
        )
        found = running.get(configuration.uid)
        held: tuple[str, ...] = ()
        wanted = configuration
        if found is not None and not configuration.fault and (storage := read_storage(found)) is not None:
            lost = storage.loses(configuration.storage)
            if lost and configuration.allowed_loss != str(configuration.generation):
                held, wanted = lost, replace(configuration, storage=storage)
        trouble, failure = None, None
        if configuration.fault:
            trouble = ("SpecInvalid", f"{configuration.fault}; until then nothing of it is changed")
        elif found is not None or not conflict:
            trouble, failure = await self._try_to_apply(wanted)
        if trouble is None and self._world.refused:
            trouble = ("Forbidden", f"{'; '.join(self._world.refused.values())}: {RIGHTS}")
        found = running.get(configuration.uid)
        await self._teller.tell(
            configuration,
            Findings(
                configuration.name,
                configuration.generation,
                None if found is None else read_rollout(found),
                conflict,
                held,
                trouble,
                bool(configuration.spec.get("gcsFuseMountOptions")),
                self._world.has_jobsets is False,
                usage=self._usage(configuration),
            ),
        )
        if failure is not None:
            raise failure

    async def _try_to_apply(self, wanted: Configuration) -> tuple[Trouble | None, TierRefused | None]:
        """What a person has to mend, and what is to be tried again all the same."""
        try:
            refused = await self._apply(wanted)
        except TlsSecretUnusable as error:
            return ("TlsSecretUnusable", str(error)), None
        except ConfigError as error:
            return ("ImagesMissing", str(error)), None
        except Forbidden as error:
            return ("Forbidden", f"{error}: {RIGHTS}"), error
        except Clash:
            raise
        except TierRefused as error:
            return ("Refused", f"the API server refuses what is to be made: {error}"), error
        return (_lacking_certificates(refused) if refused else None), None

    async def _apply(self, configuration: Configuration) -> tuple[str, ...]:
        """Says which nodes have no certificate, and why. Raises ConfigError without images."""
        settings, name = self._task.settings, names.daemonset_name(configuration.uid)
        wanted = daemonset(configuration, choose_images(self._task.images, self._world.images()), settings)
        refused = await self._issuer.serve_nodes(configuration)
        await self._issuer.serve_ranks()
        told = config_map(configuration, settings)
        if differences(told, self._world.config_maps.get(name, {})):
            self._world.see_config_map(await self._writer.apply(f"{self._config_maps}/{name}", told))
        if differences(wanted, self._world.daemonsets.get(configuration.uid, {})):
            self._world.see_daemonset(await self._writer.apply(f"{self._daemonsets}/{name}", wanted))
            log.info("daemonset.applied", configuration=configuration.name, daemonset=name)
        return refused

    async def _remove(self, configuration: Configuration) -> None:
        """The finalizer goes when nothing else is left."""
        if names.FINALIZER not in configuration.finalizers or not await self._remover.remove(configuration):
            return
        await self._set_finalizers(configuration, [one for one in configuration.finalizers if one != names.FINALIZER])
        log.info("configuration.removed", configuration=configuration.name)

    async def _set_finalizers(self, configuration: Configuration, finalizers: list[str]) -> None:
        version = self._world.versions.get(configuration.uid)
        if version is None:
            return  # it went while the rest was looked at
        changes = {"metadata": {"finalizers": finalizers, "resourceVersion": version}}
        path = f"{CONFIGURATIONS}/{configuration.name}"
        try:
            found = await self._writer.merge(path, changes)
        except Gone:
            self._world.lose_configuration(configuration.uid)
            return
        if finalizers:
            self._world.see_configuration(found)

    def _tell_failure(self, configuration: Configuration, error: Exception) -> None:
        if configuration.uid not in self._failing:
            self._failing.add(configuration.uid)
            log.warning(
                "reconcile.failed", configuration=configuration.name, reason=str(error), remedy="it is tried again"
            )


def _lacking_certificates(refused: tuple[str, ...]) -> Trouble:
    more = f", and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
    return (
        "NodesWithoutCertificates",
        f"the driver cannot run on nodes for which no certificate can be made: {'; '.join(refused[:_TOLD])}{more}. "
        "Give them other names, or leave them out (nodeSelector); all others are served",
    )
